"""Which names the checks fail_if and which they let pass, on facts alone: no engine is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from checks import test_absent, test_layers
from checks.expectations import Expectations, SizeLimits
from checks.facts import Content, Copies, DebianPackage, Distribution, File, FileSystem, Interpreter
from checks.layers import ImageLayers, TarLayer, TarMember
from checks.verdicts import Findings, NotApplicable

SITE = "/opt/venv/lib/python3.13/site-packages"
NO_LAYERS = ImageLayers((), (), {})
EMPTY = FileSystem(Interpreter("3.13.5", "/opt/venv/bin/python3", "/opt/venv"), (SITE,), (), (), (), (), (), (), ())
EXPECTED = Expectations(
    target="api", development_only={"pytest": ("pytest", "_pytest"), "pytest-testinfra": ("testinfra",)}
)


def holding(*paths: str, kind: str = "file", mode: int = 0o644) -> FileSystem:
    """A file system with these paths and the folders above them."""
    folders = {path[:end] for path in paths for end, letter in enumerate(path) if letter == "/" and end}
    mode = mode | (0o111 if "/libexec/" in "".join(paths) or "/opt/x" in "".join(paths) else 0)
    files = [File(folder, "folder", 0o755, 0, 0, 0) for folder in sorted(folders - set(paths))]
    return replace(EMPTY, files=(*files, *(File(path, kind, mode, 0, 0, 1) for path in paths)))


def found_by_tool(tool: str, file_system: FileSystem) -> list[str]:
    """What the check of one tool finds."""
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
    assert [name for name in test_absent.TOOLS if found_by_tool(name, holding(path))] == [tool]


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
def test_what_only_sounds_like_a_tool_is_let_pass(path: str) -> None:
    assert [name for name in test_absent.TOOLS if found_by_tool(name, holding(path))] == []


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
    file_system = replace(EMPTY, packages=(DebianPackage(package, "1"),))
    assert [name for name in test_absent.TOOLS if found_by_tool(name, file_system)] == [tool]


@pytest.mark.parametrize(
    "package", ["gcc-14-base", "libgcc-s1", "libstdc++6", "libc6", "dpkg", "libmaker", "make-guile-doc"]
)
def test_package_that_every_image_has_is_let_pass(package: str) -> None:
    file_system = replace(EMPTY, packages=(DebianPackage(package, "1"),))
    assert [name for name in test_absent.TOOLS if found_by_tool(name, file_system)] == []


def test_tool_under_its_own_name_is_not_also_one_under_another() -> None:
    known = replace(EMPTY, contents=(Content("/usr/bin/gcc-14", "a part of GCC"),))
    test_absent.test_no_build_tool_hides_under_another_name(known, NO_LAYERS)
    hidden = replace(EMPTY, contents=(Content("/usr/bin/helper", "a part of GCC"),))
    with pytest.raises(Findings, match="/usr/bin/helper is a part of GCC"):
        test_absent.test_no_build_tool_hides_under_another_name(hidden, NO_LAYERS)


@pytest.mark.parametrize(
    "path", ["/root/.cache/uv/x", "/root/.local/bin/uv", "/home/a/.local/share/uv/x", "/srv/wheels-v5/x"]
)
def test_traces_of_uv_are_found(path: str) -> None:
    with pytest.raises(Findings):
        test_absent.test_no_uv_cache(holding(path), NO_LAYERS)


@pytest.mark.parametrize("path", ["/usr/local/bin/uv", f"{SITE}/uvicorn/x.py", "/srv/archive-v0.txt"])
def test_what_is_no_trace_of_a_cache_is_let_pass(path: str) -> None:
    test_absent.test_no_uv_cache(holding(path), NO_LAYERS)


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
def test_development_tools_are_found_without_their_metadata(path: str) -> None:
    with pytest.raises(Findings):
        test_absent.test_no_development_distribution(EXPECTED, holding(path), NO_LAYERS)


def test_development_distribution_is_found_however_it_is_spelt() -> None:
    file_system = replace(EMPTY, distributions=(Distribution("Pytest_TestInfra", "10.2", f"{SITE}/x.dist-info"),))
    with pytest.raises(Findings, match=r"Pytest_TestInfra 10\.2"):
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
def test_folders_of_tests_are_found(path: str) -> None:
    with pytest.raises(Findings):
        test_absent.test_no_tests_or_scripts(EXPECTED, holding(path), NO_LAYERS)


@pytest.mark.parametrize(
    "path",
    [
        f"{SITE}/torch/testing/x.py",
        f"{SITE}/a/test/runtime.py",
        f"{SITE}/alembic/testing/suite/test_op.py",
        "/app/service/x.py",
    ],
)
def test_folders_that_code_needs_are_let_pass(path: str) -> None:
    test_absent.test_no_tests_or_scripts(EXPECTED, holding(path), NO_LAYERS)


def test_finding_names_size_layer_and_instruction() -> None:
    layer = TarLayer(0, "RUN apt-get install gcc # buildkit", 1, (TarMember("/usr/bin/gcc", "file", 1, 0o755, "00"),))
    layers = ImageLayers((layer,), (), {"/usr/bin/gcc": 0})
    with pytest.raises(Findings) as raised:
        test_absent.test_tool_is_absent("gcc", holding("/usr/bin/gcc"), layers)
    assert raised.value.found == ["/usr/bin/gcc (1 bytes; layer 0: RUN apt-get install gcc)"]
    assert "builder" in raised.value.fix


def test_small_copies_are_let_pass() -> None:
    small = replace(EMPTY, copies=(Copies(99_999, ("/a", "/b")),))
    test_layers.test_no_copies(small, NO_LAYERS)


def test_budget_that_is_not_set_is_said_to_be() -> None:
    expected = replace(EXPECTED, budgets=SizeLimits())
    for judge in (
        test_layers.test_size_is_within_budget,
        test_layers.test_each_layer_is_within_budget,
        test_layers.test_number_of_layers_is_within_budget,
    ):
        with pytest.raises(NotApplicable, match=r"images\.toml"):
            judge(NO_LAYERS, expected)
