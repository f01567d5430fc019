"""Groups removed files by package and path, with the reason why a runtime image does not need them."""

from pathlib import Path

import pytest

from buildkit.diff.matching import match_files
from buildkit.diff.removed import CONCERNS, concern_bytes, removed_components
from tests.support.images import LayerMaker, measure_layers

SITE = "opt/venv/lib/python3.13/site-packages"
PLACE = "usr/local/lib/python3.12/dist-packages"


def removed(folder: Path, before: LayerMaker, after: LayerMaker) -> dict[str, tuple[str, int, int]]:
    old, new = measure_layers(folder / "b", before), measure_layers(folder / "a", after)
    found = removed_components(match_files(old, new), old, new)
    return {each.name: (each.reason, each.removed_bytes, each.files) for each in found}


def debian(*names: str) -> LayerMaker:
    maker = LayerMaker()
    status = [f"Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n" for name in names]
    for name in names:
        maker.file(f"var/lib/dpkg/info/{name}.list", f"/usr/bin/{name}\n/usr/lib/{name}\n")
        maker.file(f"usr/bin/{name}", "b" * 70).file(f"usr/lib/{name}", "l" * 30)
    return maker.file("var/lib/dpkg/status", "\n".join(status))


def test_removed_package_is_one_component(tmp_path: Path) -> None:
    found = removed(tmp_path, debian("gcc-14", "curl"), LayerMaker().file("usr/bin/curl", "b" * 70))
    assert found["gcc-14 (debian)"] == ("build tool", 100, 2)
    assert found["curl (debian)"] == ("not needed", 30, 1)


def test_files_without_package_are_grouped_by_path(tmp_path: Path) -> None:
    before = LayerMaker().file("root/.cache/uv/a/b", "u" * 900).file("root/.cache/uv/c", "u").file("app/x/y", "123")
    before.file("x/__pycache__/y.cpython-313.pyc", "p").file("top", "t")
    assert removed(tmp_path, before, LayerMaker()) == {
        "root/.cache/uv": ("package manager", 901, 2),
        "app/x": ("not needed", 3, 1),
        "bytecode of no package": ("compiled again from its source", 1, 1),
        "files in the root directory": ("not needed", 1, 1),
    }


def test_smaller_library_counts_as_removed_and_moved_file_does_not(tmp_path: Path) -> None:
    before = LayerMaker().file("usr/lib/liba.so", "s" * 50).file("moved/from", "q" * 20)
    after = LayerMaker().file("usr/lib/liba.so", "s" * 10).file("moved/to/from", "q" * 20)
    name = "symbols and other parts of shared objects"
    assert removed(tmp_path, before, after) == {name: ("not needed to run", 40, 1)}


def test_moved_environment_is_compared_file_by_file(tmp_path: Path) -> None:
    lower, upper = LayerMaker(), LayerMaker()
    for maker, site, library in ((lower, PLACE, "s" * 900), (upper, SITE, "s" * 400)):
        maker.file(f"{site}/web-1.dist-info/RECORD", "web.py,,\nweb.so,,\ngone.py,,\n")
        maker.file(f"{site}/web.py", "same").file(f"{site}/web.so", library)
    lower.file(f"{PLACE}/gone.py", "1" * 30)
    assert removed(tmp_path, lower, upper) == {
        "symbols and other parts of shared objects": ("not needed to run", 500, 1),
        "parts of web (python)": ("not needed", 30, 1),
    }


def test_parts_of_a_package_are_grouped_by_reason(tmp_path: Path) -> None:
    record = LayerMaker().file(
        f"{SITE}/web-1.dist-info/RECORD", "".join(f"web/{name},,\n" for name in ("a.so", "a.pyc"))
    )
    before = LayerMaker().file(f"{SITE}/web-1.dist-info/RECORD", "web/a.so,,\nweb/a.pyc,,\nweb/tests/b.py,,\n")
    before.file(f"{SITE}/web/a.so", "s" * 5).file(f"{SITE}/web/a.pyc", "p" * 3).file(f"{SITE}/web/tests/b.py", "t")
    old, new = measure_layers(tmp_path / "b", before), measure_layers(tmp_path / "a", record)
    found = removed_components(match_files(old, new), old, new)
    assert [(each.name, each.reason, each.removed_bytes) for each in found] == [
        ("parts of web (python)", "libraries that are not loaded", 5),
        ("parts of web (python)", "bytecode", 3),
        ("parts of web (python)", "tests and examples", 1),
    ]


@pytest.mark.parametrize(
    ("path", "concern"),
    [
        ("root/.cache/uv/archive", "package manager"),
        ("var/lib/apt/lists/x", "package index"),
        ("opt/tests/test_a.py", "tests and examples"),
        ("usr/include/stdio.h", None),
        ("usr/bin/bash", None),
    ],
)
def test_concern_is_judged_by_path(tmp_path: Path, path: str, concern: str | None) -> None:
    sizes = concern_bytes(measure_layers(tmp_path, LayerMaker().file(path, "12345")))
    assert {name: size for name, size in sizes.items() if size} == ({concern: 5} if concern else {})


@pytest.mark.parametrize(
    ("package", "concern"),
    [
        ("gcc-14", "build tool"),
        ("libc6-dev", "development headers"),
        ("pytest-xdist", "development tool"),
        ("uv", "package manager"),
        ("curl", None),
        ("gcc-14-base", None),
    ],
)
def test_concern_is_judged_by_package(tmp_path: Path, package: str, concern: str | None) -> None:
    sizes = concern_bytes(measure_layers(tmp_path, debian(package)))
    assert {name: size for name, size in sizes.items() if size} == ({concern: 100} if concern else {})


def test_measurement_without_files_has_no_concerns(tmp_path: Path) -> None:
    measurement = measure_layers(tmp_path, debian("gcc-14")).without_files()
    assert concern_bytes(measurement) == dict.fromkeys(CONCERNS, 0)
