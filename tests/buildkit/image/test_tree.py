"""Breaks files down into the parts of a CUDA Python image, and into folders."""

import pytest

from buildkit.image.model import FileRecord, FolderSize, TreeRow
from buildkit.image.tree import folder_sizes, make_row, make_tree

SITE = "usr/local/lib/python3.13/site-packages"


def record(path: str, size_bytes: int) -> FileRecord:
    return FileRecord(path, "file", size_bytes, 0o644, 0, 0, "", "", 0, -1)


def parts(*paths: str, working_dir: str = "app") -> set[str]:
    rows = make_tree([record(path, 1) for path in paths], len(paths), working_dir)
    return {row.label for row in rows if row.files and row.label != "site-packages"}


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (f"{SITE}/nvidia/cublas/lib/libcublas.so.12", "site-packages/nvidia"),
        (f"{SITE}/torch/lib/libtorch.so", "site-packages/torch"),
        (f"{SITE}/triton/x.py", "site-packages/triton"),
        (f"{SITE}/six.py", "site-packages/others"),
        ("opt/venv/lib64/python3.12/site-packages/six.py", "site-packages/others"),
        ("usr/lib/python3/dist-packages/apt.py", "base system"),
        ("usr/local/bin/alembic", "bin"),
        ("usr/bin/bash", "base system"),
        ("app/main.py", "application"),
        ("root/.cache/uv/x", "home"),
        ("home/user/.profile", "home"),
        ("etc/passwd", "base system"),
    ],
)
def test_file_belongs_to_its_part(path: str, part: str) -> None:
    assert parts(path) == {part}


def test_programs_of_an_environment_are_bin() -> None:
    assert parts("opt/venv/bin/python", "opt/venv/lib/python3.13/site-packages/six.py") == {
        "bin",
        "site-packages/others",
    }
    assert parts("opt/venv/bin/python") == {"base system"}


def test_site_packages_row_is_the_sum_of_its_folders() -> None:
    rows = make_tree([record(f"{SITE}/torch/a", 30), record(f"{SITE}/b.py", 10), record("etc/c", 60)], 100, "")
    sizes = {row.label: (row.final_bytes, row.fraction) for row in rows if row.files}
    assert sizes == {
        "site-packages": (40, 0.4),
        "site-packages/torch": (30, 0.3),
        "site-packages/others": (10, 0.1),
        "base system": (60, 0.6),
    }


def test_row_of_an_empty_image_has_fraction_0() -> None:
    assert make_row("x", None, [], 0) == TreeRow("x", None, 0, 0.0, 0)


def test_folders_include_their_subfolders() -> None:
    files = [record("a/b/c/one", 5), record("a/two", 3), record("three", 1)]
    assert folder_sizes(files) == (
        FolderSize("", 9, 3),
        FolderSize("a", 8, 2),
        FolderSize("a/b", 5, 1),
        FolderSize("a/b/c", 5, 1),
    )
    assert [folder.path for folder in folder_sizes(files, 8)] == ["", "a"]
