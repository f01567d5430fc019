"""Merges layers: visible files, and waste with its cause. test_engine_oracle.py compares with a real engine."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildkit.image.errors import CorruptLayer, LayerError, UnsafePath
from buildkit.image.merge import MergedFileSystem, merge
from tests.support.images import LayerMaker, read_blob


def merged(*makers: LayerMaker) -> MergedFileSystem:
    return merge([read_blob(maker.tar()) for maker in makers])


def names(file_system: MergedFileSystem) -> list[str]:
    return [path for path, _ in file_system.walk()]


def waste(file_system: MergedFileSystem) -> Sequence[tuple[str, int, str, int, int]]:
    ordered = sorted(file_system.waste, key=lambda each: (each.path, each.stored_by))
    return [(each.path, each.wasted_bytes, each.cause, each.stored_by, each.caused_by) for each in ordered]


def test_whiteout_deletes_a_file_or_a_directory() -> None:
    lower = LayerMaker().file("a/one", "11").file("a/two", "222").file("b/c/three", "3").file("keep", "4")
    upper = LayerMaker().whiteout("a/one").whiteout("b").whiteout("never/there")
    result = merged(lower, upper)
    assert names(result) == ["a", "a/two", "keep", "never"]
    assert waste(result) == [("a/one", 2, "deleted", 0, 1), ("b/c/three", 1, "deleted", 0, 1)]


def test_whiteout_hides_nothing_of_its_own_layer() -> None:
    lower = LayerMaker().file("a", "old")
    for upper in (LayerMaker().whiteout("a").file("a", "newer"), LayerMaker().file("a", "newer").whiteout("a")):
        result = merged(lower, upper)
        assert names(result) == ["a"]
        assert waste(result) == [("a", 3, "overwritten", 0, 1)]


def test_opaque_directory_hides_all_lower_files() -> None:
    lower = LayerMaker().file("d/old", "1").file("d/same", "22").file("d/changed", "333").file("d/sub/deep", "4444")
    upper = LayerMaker().directory("d").file("d/same", "22").file("d/changed", "xxx").opaque("d").file("d/new", "5")
    result = merged(lower, upper)
    assert names(result) == ["d", "d/changed", "d/new", "d/same"]
    assert waste(result) == [
        ("d/changed", 3, "overwritten", 0, 1),
        ("d/old", 1, "deleted", 0, 1),
        ("d/same", 2, "metadata only", 0, 1),
        ("d/sub/deep", 4, "deleted", 0, 1),
    ]


def test_chown_layer_is_metadata_only() -> None:
    lower = LayerMaker().file("app/a", "x" * 1000).file("app/b", "y" * 500)
    upper = LayerMaker().file("app/a", "x" * 1000, uid=1000).file("app/b", "z" * 500, uid=1000)
    result = merged(lower, upper)
    assert waste(result) == [("app/a", 1000, "metadata only", 0, 1), ("app/b", 500, "overwritten", 0, 1)]


def test_content_with_another_name_is_not_wasted() -> None:
    lower = LayerMaker().file("a", "12345").hardlink("b", "a")
    assert waste(merged(lower, LayerMaker().whiteout("a"))) == []
    assert waste(merged(lower, LayerMaker().whiteout("a"), LayerMaker().file("b", "1"))) == [
        ("b", 5, "overwritten", 0, 2)
    ]
    chown = LayerMaker().file("a", "12345", uid=1).hardlink("b", "a")
    assert waste(merged(lower, chown)) == [("b", 5, "metadata only", 0, 1)]


def test_name_twice_in_one_layer_is_overwritten() -> None:
    result = merged(LayerMaker().file("a", "old").file("a", "newer"))
    assert names(result) == ["a"]
    assert waste(result) == [("a", 3, "overwritten", 0, 0)]


def test_files_directories_and_links_replace_one_another() -> None:
    lower = LayerMaker().file("f", "1").file("d/in", "22").symlink("s", "f")
    upper = LayerMaker().directory("f").file("f/in", "x").file("d", "y").file("s", "z")
    result = merged(lower, upper)
    assert names(result) == ["d", "f", "f/in", "s"]
    assert waste(result) == [("d/in", 2, "deleted", 0, 1), ("f", 1, "overwritten", 0, 1)]


def test_directory_named_again_keeps_its_files() -> None:
    result = merged(LayerMaker().file("d/f", "1"), LayerMaker().directory("d", mode=0o700))
    assert names(result) == ["d", "d/f"]
    (node,) = [node for path, node in result.walk() if path == "d"]
    assert node.entry is not None
    assert node.entry.mode == 0o700


def test_link_of_a_lower_layer_becomes_a_directory() -> None:
    """As overlay engines unpack it, and as the documentation of COPY --link says."""
    lower = LayerMaker().file("usr/lib/a", "1").symlink("lib", "usr/lib")
    result = merged(lower, LayerMaker().file("lib/b", "2"))
    assert names(result) == ["lib", "lib/b", "usr", "usr/lib", "usr/lib/a"]


def test_link_of_the_same_layer_is_followed_inside_the_root() -> None:
    maker = LayerMaker().symlink("lib", "usr/lib").file("lib/a", "1")
    maker.symlink("etc/up", "../../../..").file("etc/up/b", "2").symlink("abs", "/usr").file("abs/c", "3")
    assert names(merged(maker)) == ["abs", "b", "etc", "etc/up", "lib", "usr", "usr/c", "usr/lib", "usr/lib/a"]


def test_cycle_of_links_and_path_below_a_file_are_refused() -> None:
    with pytest.raises(UnsafePath, match="cycle"):
        merged(LayerMaker().symlink("a", "b").symlink("b", "a").file("a/c", "1"))
    with pytest.raises(CorruptLayer, match="below a file"):
        merged(LayerMaker().file("a", "1").file("a/b", "1"))


def test_hard_link_without_target_is_refused() -> None:
    for maker in (LayerMaker().hardlink("a", "b"), LayerMaker().directory("d").hardlink("a", "d")):
        with pytest.raises(CorruptLayer, match="hard link"):
            merged(maker)


def test_real_path_follows_links() -> None:
    lower = LayerMaker().file("usr/lib/a", "1").symlink("lib", "usr/lib").symlink("usr/lib/b", "../../lib/a")
    result = merged(lower.symlink("loop", "loop"))
    assert result.real_path("lib/b") == "usr/lib/a"
    assert result.real_path("loop") is None
    assert result.real_path("lib/none") is None


PATHS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
TARGETS = PATHS | st.sampled_from(["..", "../..", "/a", "../b", "/"])
OPERATIONS = st.one_of(
    st.tuples(st.just("file"), PATHS, st.text("xyz", max_size=4)),
    st.tuples(st.just("directory"), PATHS, st.just("")),
    st.tuples(st.just("symlink"), PATHS, TARGETS),
    st.tuples(st.just("hardlink"), PATHS, PATHS),
    st.tuples(st.just("whiteout"), PATHS, st.just("")),
    st.tuples(st.just("opaque"), PATHS, st.just("")),
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(OPERATIONS, max_size=7), min_size=1, max_size=4))
def test_stored_bytes_are_visible_or_wasted(layers: list[list[tuple[str, str, str]]]) -> None:
    """Layers of any entries are refused or add up, and `names` counts the visible paths of each file."""
    makers = []
    for operations in layers:
        maker = LayerMaker()
        for kind, path, argument in operations:
            getattr(maker, kind)(*([path, argument] if kind in {"file", "symlink", "hardlink"} else [path]))
        makers.append(maker)
    try:
        result = merged(*makers)
    except LayerError:
        return
    seen = sum(stored.entry.size_bytes for stored in result.stored if stored.names)
    assert sum(stored.entry.size_bytes for stored in result.stored) - seen == sum(
        each.wasted_bytes for each in result.waste
    )
    found = Counter(id(node.file) for _, node in result.walk() if node.file is not None)
    assert found == {id(stored): stored.names for stored in result.stored if stored.names}
    for path, node in result.walk():
        if node.file is not None:
            assert result.real_path(path) == path


def test_deep_paths_do_not_exhaust_the_stack() -> None:
    deep = "d/" * 1900
    result = merged(LayerMaker().file(f"{deep}f", "1"), LayerMaker().whiteout("d"))
    assert waste(result) == [(f"{deep}f", 1, "deleted", 0, 1)]
