"""Finds contents that are stored twice, and libraries with several copies."""

from buildkit.image.duplicates import find_duplicate_libraries, find_duplicates
from buildkit.image.merge import merge
from buildkit.image.model import FileRecord
from buildkit.image.packages import Package
from tests.support.images import LayerMaker, read_blob


def test_equal_contents_are_found_across_layers_and_paths() -> None:
    lower = LayerMaker().file("a", "x" * 100).file("hidden", "y" * 10).file("empty").file("empty2")
    upper = LayerMaker().file("b", "x" * 100).file("c", "x" * 100).file("hidden", "y" * 10, uid=1)
    first, second = find_duplicates(merge([read_blob(maker.tar()) for maker in (lower, upper)]))
    assert (first.size_bytes, first.copies, first.extra_bytes) == (100, 3, 200)
    assert [(copy.layer, copy.path, copy.is_visible) for copy in first.examples] == [
        (0, "a", True),
        (1, "b", True),
        (1, "c", True),
    ]
    assert (second.size_bytes, second.extra_bytes) == (10, 10)
    assert [copy.is_visible for copy in second.examples] == [False, True]


def test_hard_link_is_not_a_duplicate() -> None:
    assert find_duplicates(merge([read_blob(LayerMaker().file("a", "x").hardlink("b", "a").tar())])) == ()


def library(path: str, size_bytes: int, package: int = -1) -> FileRecord:
    return FileRecord(path, "file", size_bytes, 0o644, 0, 0, "", "", 0, package)


def test_cuda_libraries_of_two_versions_are_duplicates() -> None:
    torch = Package("python", "torch", "2", "", 0, 1, 80)
    files = [library("cuda/libcudart.so.12.4.127", 90), library("torch/libcudart-d0da41ae.so.11.0", 80, 0)]
    (found,) = find_duplicate_libraries(files, [torch])
    assert (found.soname, found.is_cuda, found.extra_bytes) == ("libcudart.so", True, 80)
    assert [(copy.path, copy.package) for copy in found.copies] == [
        ("cuda/libcudart.so.12.4.127", None),
        ("torch/libcudart-d0da41ae.so.11.0", "torch"),
    ]


def test_other_libraries_of_two_versions_are_no_duplicates() -> None:
    files = [library("a/libz.so.1", 5), library("b/libz.so.2", 5), library("c/libz.so", 5)]
    assert find_duplicate_libraries(files, []) == ()


def test_cuda_libraries_are_listed_first() -> None:
    files = [library(f"{folder}/{name}", 9) for folder in "ab" for name in ("libbig.so.1", "libnccl.so.2")]
    assert [each.soname for each in find_duplicate_libraries(files, [])] == ["libnccl.so", "libbig.so.1"]
