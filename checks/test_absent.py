"""Checks that the image has no build tools, caches, tests, development packages or setuid files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from packaging.utils import canonicalize_name

from checks.results import fail_if

if TYPE_CHECKING:
    from collections.abc import Iterator

    from checks.expectations import Expectations
    from checks.facts import File, FileSystem
    from checks.layers import ImageLayers

TRIPLET = r"(?:[a-z0-9_]+-linux-gnu-)?"
VERSION = r"(?:-\d+(?:\.\d+)*)?"
# Tool -> three patterns, for the complete names of its files, its Debian packages and its Python distributions.
TOOLS: dict[str, tuple[str, str, str]] = {
    "gcc": (
        rf"{TRIPLET}(gcc|gcc-ar|gcc-nm|gcc-ranlib|cpp){VERSION}|cc1|collect2|lto1|lto-wrapper|{TRIPLET}lto-dump{VERSION}",
        r"(gcc|cpp)(-\d+)?(-x86-64-linux-gnu|-aarch64-linux-gnu)?|libgcc-\d+-dev",
        r"",
    ),
    "g++": (
        rf"{TRIPLET}(g\+\+|c\+\+){VERSION}|cc1plus",
        r"g\+\+(-\d+)?(-x86-64-linux-gnu|-aarch64-linux-gnu)?|libstdc\+\+-\d+-dev",
        r"",
    ),
    "cc": (r"cc|c89|c99|clang(-\d+)?|clang\+\+(-\d+)?|tcc", r"clang(-\d+)?|tcc", r""),
    "ld": (rf"{TRIPLET}(ld|ld\.bfd|ld\.gold|gold|ld\.lld|lld|mold)", r"lld(-\d+)?|mold", r""),
    "as": (rf"{TRIPLET}as", r"binutils(-.*)?|libbinutils", r""),
    "make": (r"g?make|cmake|ninja", r"make|cmake|ninja-build", r"cmake|ninja"),
    "build-essential": (r"", r"build-essential|libc6-dev|linux-libc-dev", r""),
    "dpkg-dev": (r"dpkg-(source|buildpackage|architecture|gencontrol|shlibdeps)", r"dpkg-dev|libdpkg-perl", r""),
    "uv": (r"uv", r"", r"uv"),
    "uvx": (r"uvx", r"", r""),
}
TOOL_NAMES = "|".join(names for names, _, _ in TOOLS.values() if names)
PYTHON_ENVIRONMENTS = re.compile(r".*/(site|dist)-packages/")
STANDARD_LIBRARY_TESTS = re.compile(r"/usr/(local/)?lib/python3[.0-9]*/(test|.*/tests?)(/|\Z)")
HEADERS = (".h", ".hh", ".hpp", ".hxx", ".cuh", ".h.in", ".pxd")
TEST_MODULE = re.compile(r"(test_.*|.*_test|conftest)\.pyc?")
UV_CACHE = re.compile(r"(archive|wheels|sdists|simple|interpreter|builds|git|environments)-v\d+")


def describe(file_system: FileSystem, layers: ImageLayers, paths: Iterator[str]) -> Iterator[str]:
    """Yields each path with its size, its layer and the instruction that made that layer."""
    for path in paths:
        size_bytes = file_system.by_path[path].size_bytes if path in file_system.by_path else 0
        yield f"{path} ({size_bytes} bytes; {layers.where(path)})"


def is_command(file: File) -> bool:
    """Whether the file can be run; shell completions and documentation have the names of tools, but cannot be run."""
    is_runnable = file.kind == "link" or bool(file.mode & 0o111) or "/bin/" in file.path
    return file.kind != "folder" and is_runnable and not file.path.startswith(("/var/lib/dpkg/", "/usr/share/"))


def outermost(paths: list[str]) -> Iterator[str]:
    """Yields those of *paths* that are not below another one."""
    last = "\0"
    for path in sorted(paths):
        if not path.startswith(f"{last}/"):
            last = path
            yield path


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_is_absent(tool: str, file_system: FileSystem, layers: ImageLayers) -> None:
    """{tool} is absent: no file, Debian package or Python distribution."""
    names, packages, distributions = TOOLS[tool]
    found = [
        *describe(
            file_system,
            layers,
            (file.path for file in file_system.files if is_command(file) and re.fullmatch(names, file.name)),
        ),
        *(
            f"Debian package {name} {version} ({layers.where('/var/lib/dpkg/status')})"
            for name, version in file_system.packages.items()
            if re.fullmatch(packages, name)
        ),
        *(
            f"distribution {item.name} {item.version} at {item.path} ({layers.where(item.path)})"
            for item in file_system.distributions
            if re.fullmatch(distributions, item.name)
        ),
    ]
    fail_if(found, fix="install build tools only in a builder stage, and copy its results into the final stage")


def test_no_renamed_build_tool(file_system: FileSystem, layers: ImageLayers) -> None:
    """No executable is a renamed compiler, linker, assembler, make or uv."""
    found = (
        f"{path} is {kind} ({layers.where(path)})"
        for path, kind in file_system.recognized.items()
        if not kind.startswith(("a static", "a Debian", "an entry"))
        and not re.fullmatch(TOOL_NAMES, path.rpartition("/")[2])
    )
    fail_if(found, fix="copy single files from the builder stage, not folders such as /usr/local")


def test_no_uv_cache(file_system: FileSystem, layers: ImageLayers) -> None:
    """The uv cache and the files of uv's installer in home folders are absent."""
    paths = [
        file.path
        for file in file_system.files
        if file.path.endswith(("/.cache/uv", "/.local/share/uv", "/.config/uv", "/uv-receipt.json"))
        or re.fullmatch(r"(/root|/home/[^/]+)/\.local/bin/uvx?", file.path)
        or (file.kind == "folder" and UV_CACHE.fullmatch(file.name))
    ]
    fail_if(
        describe(file_system, layers, outermost(paths)),
        fix="keep uv's cache out of the layer with RUN --mount=type=cache,target=/root/.cache, and do not copy /root",
    )


def test_no_pip_cache(file_system: FileSystem, layers: ImageLayers) -> None:
    """No folder has the pip cache or wheels."""
    cached = file_system.recognized_as("an entry of pip's HTTP cache")
    paths = [
        file.path
        for file in file_system.files
        if file.path.endswith("/.cache/pip")
        or (file.kind == "file" and file.path.endswith(".whl") and "/ensurepip/" not in file.path)
        or file.path in cached
    ]
    fail_if(
        describe(file_system, layers, outermost(paths)),
        fix="keep pip's cache out of the layer with RUN --mount=type=cache,target=/root/.cache",
    )


def test_no_apt_lists(file_system: FileSystem, layers: ImageLayers) -> None:
    """The package lists and archives of apt are absent."""
    archives = file_system.recognized_as("a Debian package")
    paths = (
        file.path
        for file in file_system.files
        if file.kind == "file"
        and (
            (file.path.startswith("/var/lib/apt/lists/") and file.name != "lock")
            or (file.path.startswith("/var/cache/apt/") and file.name != "lock")
            or re.search(r"_(Packages|Sources|InRelease|Release|Translation-\w+)(\.\w+)?\Z", file.name)
            or file.path in archives
        )
    )
    fail_if(
        describe(file_system, layers, paths),
        fix="keep /var/lib/apt and /var/cache/apt out of the layer, each by RUN --mount=type=cache,target=FOLDER",
    )


def test_no_development_distribution(expectations: Expectations, file_system: FileSystem, layers: ImageLayers) -> None:
    """The dev group (pytest and others) is absent: no distribution, command or module of it."""
    modules = {module for names in expectations.development_only.values() for module in names}
    names = {canonicalize_name(name) for name in expectations.development_only}
    commands = {f"/bin/{name}" for name in names | {"py.test"}}
    found = [
        *(
            f"distribution {item.name} {item.version} at {item.path} ({layers.where(item.path)})"
            for item in file_system.distributions
            if canonicalize_name(item.name) in names
        ),
        *describe(
            file_system,
            layers,
            (
                file.path
                for file in file_system.files
                if (
                    PYTHON_ENVIRONMENTS.fullmatch(file.path.removesuffix(file.name))
                    and file.name.removesuffix(".py") in modules
                )
                or (file.kind != "folder" and file.path.endswith(tuple(commands)))
            ),
        ),
    ]
    fail_if(found, fix="build without INCLUDE_DEV=1: only the target dev has the dev group")


def test_no_tests_or_scripts(expectations: Expectations, file_system: FileSystem, layers: ImageLayers) -> None:
    """Neither the application nor the Python environment has folders of tests or scripts."""
    places = [expectations.application, *file_system.site_packages]
    holders = {file.path.rpartition("/")[0] for file in file_system.below(*places) if TEST_MODULE.fullmatch(file.name)}
    paths = [
        file.path
        for file in file_system.below(*places)
        if file.kind == "folder"
        and not STANDARD_LIBRARY_TESTS.match(file.path)
        and (
            (file.name in ("tests", "test") and any(f"{h}/".startswith(f"{file.path}/") for h in holders))
            or (file.name in ("tests", "test") and file.path.rpartition("/")[0] in file_system.site_packages)
            or (file.name in ("tests", "scripts") and file.path.startswith(f"{expectations.application}/"))
        )
    ]
    fail_if(
        describe(file_system, layers, outermost(paths)),
        fix="remove tests in the stage that installs, and copy only the folders that the application needs",
    )


def test_no_headers_or_static_libraries(file_system: FileSystem, layers: ImageLayers) -> None:
    """The Python environment has no header files and no static libraries."""
    archives = file_system.recognized_as("a static library")
    paths = (
        file.path
        for file in file_system.below(*file_system.site_packages)
        if file.kind == "file" and (file.name.endswith((*HEADERS, ".a")) or file.path in archives)
    )
    fail_if(
        describe(file_system, layers, paths),
        fix="remove them in the stage that installs: nothing can be compiled in this image",
    )


def test_no_git_repository(file_system: FileSystem, layers: ImageLayers) -> None:
    """The image has no git repository, bare or not."""
    paths = [
        file.path
        for file in file_system.files
        if file.name == ".git"
        or (
            file.kind == "folder"
            and file.name == "objects"
            and {f"{file.path[:-7]}HEAD", f"{file.path[:-7]}refs"} <= file_system.by_path.keys()
        )
    ]
    fail_if(
        describe(file_system, layers, outermost(paths)),
        fix="copy only the folders that the image needs, and list .git in .dockerignore",
    )


def test_no_setuid_file(file_system: FileSystem, layers: ImageLayers) -> None:
    """No file has the setuid bit, the setgid bit or capabilities."""
    found = (
        f"{file.path} has {'capabilities' if file.has_capabilities else f'mode {file.mode:04o}'},"
        f" owner {file.uid}:{file.gid} ({layers.where(file.path)})"
        for file in file_system.files
        if file.kind == "file" and (file.mode & 0o6000 or file.has_capabilities)
    )
    fail_if(
        found,
        fix="run `find / -xdev -perm /6000 -type f -exec chmod a-s {} +` in the instruction that installs the files",
    )
