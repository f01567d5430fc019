"""Tests checks/test_absent.py on invented facts: names that it must find, and names that it must accept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from checks import test_absent
from checks.expectations import Expectations
from checks.facts import Distribution, File, FileSystem, Interpreter
from checks.layers import ImageLayers, TarLayer, TarMember
from checks.results import Findings

SITE = "/opt/venv/lib/python3.13/site-packages"
NO_LAYERS = ImageLayers((), (), {})
EMPTY = FileSystem(Interpreter("3.13.5", "/opt/venv/bin/python3", "/opt/venv"), (SITE,), (), (), {}, (), {}, {}, ())
EXPECTED = Expectations(
    target="api", development_only={"pytest": ("pytest", "_pytest"), "pytest-testinfra": ("testinfra",)}
)


def with_paths(*paths: str, kind: str = "file", mode: int = 0o644) -> FileSystem:
    """Returns a file system with these paths and their folders."""
    folders = {path[:end] for path in paths for end, letter in enumerate(path) if letter == "/" and end}
    mode = mode | (0o111 if "/libexec/" in "".join(paths) or "/opt/x" in "".join(paths) else 0)
    files = [File(folder, "folder", 0o755, 0, 0, 0) for folder in sorted(folders - set(paths))]
    return replace(EMPTY, files=(*files, *(File(path, kind, mode, 0, 0, 1) for path in paths)))


def find_tool(tool: str, file_system: FileSystem) -> list[str]:
    """Returns the findings of the check for one tool."""
    try:
        test_absent.test_tool_is_absent(tool, file_system, NO_LAYERS)
    except Findings as findings:
        return findings.found
    return []


@pytest.mark.parametrize(
    ("tool", "path"),
    [
        ("gcc", "/usr/bin/gcc"),
        ("gcc", "/usr/bin/gcc-14"),
        ("gcc", "/usr/bin/aarch64-linux-gnu-gcc-12"),
        ("gcc", "/usr/libexec/gcc/x86_64-linux-gnu/14/cc1"),
        ("g++", "/usr/bin/g++"),
        ("g++", "/usr/bin/x86_64-linux-gnu-g++-14"),
        ("g++", "/usr/libexec/gcc/x86_64-linux-gnu/14/cc1plus"),
        ("cc", "/usr/bin/cc"),
        ("cc", "/usr/bin/clang-19"),
        ("ld", "/usr/bin/x86_64-linux-gnu-ld.bfd"),
        ("ld", "/opt/x/ld"),
        ("as", "/usr/bin/as"),
        ("make", "/usr/bin/gmake"),
        ("dpkg-dev", "/usr/bin/dpkg-buildpackage"),
        ("uv", "/root/.local/bin/uv"),
        ("uvx", "/usr/local/bin/uvx"),
    ],
)
def test_file_of_a_tool_is_found_by_that_tool_only(tool: str, path: str) -> None:
    assert [name for name in test_absent.TOOLS if find_tool(name, with_paths(path))] == [tool]


@pytest.mark.parametrize(
    "path",
    [
        "/usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
        "/usr/share/doc/gcc-14-base/copyright",
        "/usr/lib64/ld-linux-x86-64.so.2",
        "/etc/ld.so.conf",
        "/usr/bin/ldd",
        "/usr/bin/dpkg",
        f"{SITE}/uvloop/loop.so",
        f"{SITE}/torch/utils/make.py",
        "/usr/share/bash-completion/completions/gcc",
        "/var/lib/dpkg/alternatives/cc",
        "/app/service/make",
        f"{SITE}/mypkg/as.py",
    ],
)
def test_file_with_a_similar_name_is_accepted(path: str) -> None:
    assert [name for name in test_absent.TOOLS if find_tool(name, with_paths(path))] == []


@pytest.mark.parametrize(
    ("tool", "package"),
    [
        ("gcc", "gcc"),
        ("gcc", "gcc-14-x86-64-linux-gnu"),
        ("gcc", "cpp-14"),
        ("gcc", "libgcc-14-dev"),
        ("g++", "g++-14"),
        ("g++", "libstdc++-14-dev"),
        ("as", "binutils-x86-64-linux-gnu"),
        ("make", "make"),
        ("build-essential", "build-essential"),
        ("build-essential", "libc6-dev"),
        ("dpkg-dev", "dpkg-dev"),
    ],
)
def test_package_of_a_tool_is_found_by_that_tool_only(tool: str, package: str) -> None:
    file_system = replace(EMPTY, packages={package: "1"})
    assert [name for name in test_absent.TOOLS if find_tool(name, file_system)] == [tool]


@pytest.mark.parametrize(
    "package", ["gcc-14-base", "libgcc-s1", "libstdc++6", "libc6", "dpkg", "libmaker", "make-guile-doc"]
)
def test_package_with_a_similar_name_is_accepted(package: str) -> None:
    file_system = replace(EMPTY, packages={package: "1"})
    assert [name for name in test_absent.TOOLS if find_tool(name, file_system)] == []


def test_tool_under_its_own_name_is_not_renamed() -> None:
    known = replace(EMPTY, recognized={"/usr/bin/gcc-14": "a part of GCC"})
    test_absent.test_no_renamed_build_tool(known, NO_LAYERS)
    hidden = replace(EMPTY, recognized={"/usr/bin/helper": "a part of GCC"})
    with pytest.raises(Findings, match="/usr/bin/helper is a part of GCC"):
        test_absent.test_no_renamed_build_tool(hidden, NO_LAYERS)


@pytest.mark.parametrize(
    "path", ["/root/.cache/uv/x", "/root/.local/bin/uv", "/home/a/.local/share/uv/x", "/srv/wheels-v5/x"]
)
def test_files_of_uv_are_found(path: str) -> None:
    with pytest.raises(Findings):
        test_absent.test_no_uv_cache(with_paths(path), NO_LAYERS)


@pytest.mark.parametrize("path", ["/usr/local/bin/uv", f"{SITE}/uvicorn/x.py", "/srv/archive-v0.txt"])
def test_file_outside_a_uv_cache_is_accepted(path: str) -> None:
    test_absent.test_no_uv_cache(with_paths(path), NO_LAYERS)


@pytest.mark.parametrize(
    "path",
    [
        f"{SITE}/_pytest/main.py",
        f"{SITE}/pytest.py",
        f"{SITE}/testinfra/x.py",
        "/opt/venv/bin/pytest",
        "/usr/bin/py.test",
    ],
)
def test_development_tool_without_metadata_is_found(path: str) -> None:
    with pytest.raises(Findings):
        test_absent.test_no_development_distribution(EXPECTED, with_paths(path), NO_LAYERS)


def test_development_distribution_in_any_spelling_is_found() -> None:
    file_system = replace(EMPTY, distributions=(Distribution("Pytest__TestInfra", "10.2", f"{SITE}/x.dist-info"),))
    with pytest.raises(Findings, match=r"Pytest__TestInfra 10\.2"):
        test_absent.test_no_development_distribution(EXPECTED, file_system, NO_LAYERS)


@pytest.mark.parametrize(
    "path",
    [
        "/app/tests/x",
        "/app/scripts/x",
        f"{SITE}/a/tests/test_x.py",
        f"{SITE}/a/test/b/x_test.pyc",
        f"{SITE}/a/tests/conftest.py",
    ],
)
def test_folder_of_tests_is_found(path: str) -> None:
    with pytest.raises(Findings):
        test_absent.test_no_tests_or_scripts(EXPECTED, with_paths(path), NO_LAYERS)


@pytest.mark.parametrize(
    "path",
    [
        f"{SITE}/torch/testing/x.py",
        f"{SITE}/a/test/runtime.py",
        f"{SITE}/alembic/testing/suite/test_op.py",
        "/app/service/x.py",
    ],
)
def test_folder_without_tests_is_accepted(path: str) -> None:
    test_absent.test_no_tests_or_scripts(EXPECTED, with_paths(path), NO_LAYERS)


def test_finding_names_size_layer_and_instruction() -> None:
    layer = TarLayer(0, "RUN apt-get install gcc # buildkit", 1, (TarMember("/usr/bin/gcc", "file", 1, 0o755, "00"),))
    layers = ImageLayers((layer,), (), {"/usr/bin/gcc": 0})
    with pytest.raises(Findings) as raised:
        test_absent.test_tool_is_absent("gcc", with_paths("/usr/bin/gcc"), layers)
    assert raised.value.found == ["/usr/bin/gcc (1 bytes; layer 0: RUN apt-get install gcc)"]
    assert "builder" in raised.value.fix
