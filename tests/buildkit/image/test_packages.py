"""Finds the owners of files, by the package lists of Python and Debian."""

import pytest

from buildkit.image.errors import CorruptLayer
from buildkit.image.merge import merge
from buildkit.image.packages import Ownership, find_owners
from tests.support.images import LayerMaker, read_blob

SITE = "opt/venv/lib/python3.13/site-packages"


def owned(*makers: LayerMaker) -> Ownership:
    layers = [read_blob(maker.tar(), captures=lambda _: True) for maker in makers]
    return find_owners(merge(layers), [layer.captured for layer in layers])


def sizes(ownership: Ownership) -> dict[str, tuple[str, int, int]]:
    return {package.name: (package.version, package.files, package.final_bytes) for package in ownership.packages}


def distribution(name: str, version: str, record: str) -> LayerMaker:
    return LayerMaker().file(f"{SITE}/{name}-{version}.dist-info/RECORD", record)


def test_distribution_owns_its_record_and_its_bytecode() -> None:
    record = (
        'Some_Pkg/__init__.py,sha256=x,3\n"Some_Pkg/odd,name.py",,\n../../../bin/tool,,\ngone.py,,\n'
        "some_pkg-1.0.dist-info/RECORD,,\n"
    )
    layer = (
        distribution("some_pkg", "1.0", record)
        .file(f"{SITE}/Some_Pkg/__init__.py", "123")
        .file(f"{SITE}/Some_Pkg/odd,name.py", "12345")
        .file(f"{SITE}/Some_Pkg/__pycache__/__init__.cpython-313.pyc", "1" * 10)
        .file(f"{SITE}/Some_Pkg/__pycache__/__init__.cpython-313.opt-1.pyc", "1" * 20)
        .file(f"{SITE}/Some_Pkg/stray.py", "of no package")
        .file("opt/venv/bin/tool", "#!")
    )
    ownership = owned(layer)
    assert sizes(ownership) == {"some-pkg": ("1.0", 6, 3 + 5 + 10 + 20 + 2 + len(record))}
    assert f"{SITE}/Some_Pkg/stray.py" not in ownership.owner_of
    assert ownership.packages[0].location == SITE


def test_file_of_two_distributions_counts_once() -> None:
    one = distribution("a", "1", "shared/__init__.py,,\n")
    two = distribution("b", "2", "shared/__init__.py,,\n")
    ownership = owned(one, two, LayerMaker().file(f"{SITE}/shared/__init__.py", "1234"))
    assert sizes(ownership) == {"a": ("1", 1, 4), "b": ("2", 0, 0)}
    assert [package.layer for package in ownership.packages] == [0, 1]


def test_hidden_record_does_not_count() -> None:
    old = distribution("a", "1", "a.py,,\n").file(f"{SITE}/a.py", "1")
    new = distribution("a", "2", "b.py,,\n").whiteout(f"{SITE}/a-1.dist-info").file(f"{SITE}/b.py", "22")
    assert sizes(owned(old, new)) == {"a": ("2", 1, 2)}


def test_record_that_is_not_a_list_is_refused() -> None:
    with pytest.raises(CorruptLayer, match="not a list of files"):
        owned(distribution("a", "1", '"' + "x" * 200_000))


STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Description: GNU C Library
 folded line with Package: no
Version: 2.41-12

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: base-files
Status: install ok installed
Architecture: amd64
Version: 13.8
"""


def test_debian_package_owns_its_list_through_links() -> None:
    layer = (
        LayerMaker()
        .file("var/lib/dpkg/status", STATUS)
        .file("var/lib/dpkg/info/libc6:amd64.list", "/.\n/lib\n/lib/libc.so.6\n/usr/share/doc/left/out\n")
        .file("var/lib/dpkg/info/base-files.list", "/.\n/etc\n/etc/issue\n/usr/lib\n")
        .symlink("lib", "usr/lib")
        .file("usr/lib/libc.so.6", "1" * 100)
        .file("etc/issue", "12345")
    )
    ownership = owned(layer)
    assert sizes(ownership) == {"base-files": ("13.8", 1, 5), "libc6": ("2.41-12", 1, 100)}
    assert set(ownership.owner_of) == {"usr/lib/libc.so.6", "etc/issue"}


def test_distroless_package_is_listed_in_status_d() -> None:
    layer = (
        LayerMaker()
        .file("var/lib/dpkg/status.d/tzdata", "Package: tzdata\nVersion: 2026b\nArchitecture: all\n")
        .file("var/lib/dpkg/status.d/tzdata.md5sums", "d41d8cd98f00b204e9800998ecf8427e  usr/share/zoneinfo/UTC\n")
        .file("usr/share/zoneinfo/UTC", "UTC0")
    )
    assert sizes(owned(layer)) == {"tzdata": ("2026b", 1, 4)}


def test_image_without_lists_has_no_packages() -> None:
    assert owned(LayerMaker().file("a", "1")).packages == ()
