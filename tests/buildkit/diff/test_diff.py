"""Compares images: changes of layers, packages and files, their causes, and the bytes to fetch."""

from dataclasses import replace
from pathlib import Path

import pytest

from buildkit.diff.diff import compare
from buildkit.diff.model import Comparison
from buildkit.image.labels import BASE_LAYERS_LABEL
from buildkit.image.model import Measurement
from tests.support.images import Compression, LayerMaker, measure_layers

SITE = "opt/venv/lib/python3.13/site-packages"


def measured(folder: Path, layers: list[tuple[str, LayerMaker]], *, compression: Compression = "none") -> Measurement:
    makers = [maker for _, maker in layers]
    return measure_layers(folder, *makers, instructions=[text for text, _ in layers], compression=compression)


def base() -> LayerMaker:
    return LayerMaker().file("etc/os", "x" * 100)


def distribution(name: str, version: str, content: str) -> LayerMaker:
    maker = LayerMaker().file(f"{SITE}/{name}-{version}.dist-info/RECORD", f"{name}.py,,\n")
    return maker.file(f"{SITE}/{name}.py", content)


def before_layers() -> list[tuple[str, LayerMaker]]:
    return [
        ("ADD base", base()),
        ("COPY cuda", LayerMaker().file(f"{SITE}/nvidia/lib.so", "n" * 5000)),
        ("COPY web", distribution("web", "1.0", "w" * 300)),
        ("COPY app", LayerMaker().file("app/a.py", "1").file("app/same", "size").file("app/gone", "123")),
        ("RUN tools", LayerMaker().file("root/.cache/uv/archive", "u" * 900)),
    ]


def after_layers() -> list[tuple[str, LayerMaker]]:
    return [
        ("ADD base", base()),
        ("COPY cuda", LayerMaker().file(f"{SITE}/nvidia/lib.so", "n" * 5000)),
        ("COPY models", LayerMaker().file("opt/model", "m" * 40)),
        ("COPY web", distribution("web", "1.1", "w" * 320)),
        ("COPY app", LayerMaker().file("app/a.py", "12").file("app/same", "eziz", mode=0o600).file("app/new", "1")),
    ]


@pytest.fixture(name="comparison")
def _comparison(tmp_path: Path) -> Comparison:
    before = measured(tmp_path / "b", before_layers(), compression="gzip")
    return compare(before, measured(tmp_path / "a", after_layers(), compression="gzip"))


def test_identical_images_have_an_empty_comparison(tmp_path: Path) -> None:
    before, after = measured(tmp_path / "b", before_layers()), measured(tmp_path / "a", before_layers())
    comparison = compare(before, after)
    assert comparison.is_empty
    assert (comparison.packages, comparison.files, comparison.removed, comparison.transfer_bytes) == ((), (), (), 0)
    assert {layer.kind for layer in comparison.layers} == {"same"}
    assert all(figure.before == figure.after for figure in comparison.figures)


def test_layers_are_matched_by_content_then_by_instruction(comparison: Comparison) -> None:
    assert [(each.kind, each.cause, each.before, each.after) for each in comparison.layers] == [
        ("same", None, 0, 0),
        ("same", None, 1, 1),
        ("added", None, None, 2),
        ("grown", "input", 2, 3),
        ("shrunk", "input", 3, 4),
        ("removed", None, 4, None),
    ]
    assert not comparison.is_empty


def test_layer_change_has_a_cause(tmp_path: Path) -> None:
    before = [
        ("ADD base", base()),
        ("COPY x", LayerMaker().file("x", "1")),
        ("RUN install y", LayerMaker().file("y", "1")),
    ]
    after = [
        ("ADD base", LayerMaker().file("etc/os", "y" * 100)),
        ("COPY x", LayerMaker().file("x", "1", mtime=99)),
        ("RUN install y z", LayerMaker().file("y", "2")),
    ]
    comparison = compare(measured(tmp_path / "b", before), measured(tmp_path / "a", after))
    assert [(each.kind, each.cause) for each in comparison.layers] == [
        ("changed", "base"),
        ("changed", "metadata only"),
        ("changed", "instruction"),
    ]


def test_file_change_has_a_kind(comparison: Comparison) -> None:
    files = {each.path: (each.kind, each.before_bytes, each.after_bytes) for each in comparison.files or ()}
    assert files["app/a.py"] == ("grown", 1, 2)
    assert files["app/same"] == ("changed", 4, 4)
    assert files["app/gone"] == ("removed", 3, 0)
    assert files["app/new"] == ("added", 0, 1)
    assert f"{SITE}/nvidia/lib.so" not in files
    assert "etc/os" not in files


def test_change_of_mode_owner_or_target_is_metadata_only(tmp_path: Path) -> None:
    one = LayerMaker().file("mode", "1").file("owner", "1").symlink("link", "a").directory("d")
    other = LayerMaker().file("mode", "1", mode=0o755).file("owner", "1", uid=7).symlink("link", "b")
    other.directory("d", mode=0o700)
    comparison = compare(measured(tmp_path / "b", [("x", one)]), measured(tmp_path / "a", [("x", other)]))
    assert {each.path: each.kind for each in comparison.files or ()} == dict.fromkeys(
        ["mode", "owner", "link", "d"], "metadata only"
    )


def test_package_change_has_both_versions(comparison: Comparison) -> None:
    (change,) = comparison.packages
    assert (change.name, change.kind, change.before_version, change.after_version) == ("web", "grown", "1.0", "1.1")
    assert change.after_bytes - change.before_bytes == 20


def test_package_of_the_same_size_changed_unless_it_only_moved(tmp_path: Path) -> None:
    before = measured(tmp_path / "b", [("x", distribution("web", "1", "aaa"))])
    changed = compare(before, measured(tmp_path / "a", [("x", distribution("web", "1", "bbb"))]))
    assert [(each.name, each.kind) for each in changed.packages] == [("web", "changed")]
    record = "web.py,,\n"
    moved = LayerMaker().file("usr/lib/python3.13/site-packages/web-1.dist-info/RECORD", record)
    moved.file("usr/lib/python3.13/site-packages/web.py", "aaa")
    assert compare(before, measured(tmp_path / "m", [("x", moved)])).packages == ()


def test_transfer_bytes_are_the_blobs_that_a_node_lacks(comparison: Comparison, tmp_path: Path) -> None:
    after = measured(tmp_path / "again", after_layers(), compression="gzip")
    assert comparison.transfer_bytes == sum(layer.blob_bytes for layer in after.layers[2:])
    assert [each.fetch_bytes for each in comparison.layers] == [
        0,
        0,
        *(layer.blob_bytes for layer in after.layers[2:]),
        0,
    ]


def test_equal_new_layers_are_fetched_once(tmp_path: Path) -> None:
    twice = [("x", LayerMaker().file("n", "1")), ("y", LayerMaker().file("n", "1"))]
    after = measured(tmp_path / "a", twice)
    comparison = compare(measured(tmp_path / "b", [("z", base())]), after)
    assert comparison.transfer_bytes == after.layers[0].blob_bytes


def test_measurement_without_files_is_compared(tmp_path: Path) -> None:
    long = measured(tmp_path / "b", before_layers())
    before = long.without_files()
    assert compare(before, long).packages == ()
    comparison = compare(before, measured(tmp_path / "a", after_layers()))
    assert comparison.files is None
    assert [layer.kind for layer in comparison.layers][:2] == ["same", "same"]


def test_label_gives_the_number_of_base_layers(tmp_path: Path) -> None:
    def image(folder: Path, version: str) -> Measurement:
        layers = [("ADD one", LayerMaker().file("one", version)), ("ADD two", LayerMaker().file("two", version * 2))]
        made = measured(folder, [*layers, ("COPY app", LayerMaker().file("app", "a"))])
        return replace(made, image=replace(made.image, labels={BASE_LAYERS_LABEL: "2"}))

    before, after = image(tmp_path / "b", "1"), image(tmp_path / "a", "2")

    assert [each.cause for each in compare(before, after).layers] == ["base", "base", None]
    assert [each.cause for each in compare(before, after, base_layers=1).layers] == ["base", "input", None]


@pytest.mark.parametrize(("label", "base_layers"), [("nonsense", 1), ("", 1), ("99", 2), ("0", 0)])
def test_wrong_label_means_one_base_layer_and_never_too_many(tmp_path: Path, label: str, base_layers: int) -> None:
    def image(folder: Path, version: str) -> Measurement:
        layers = [("ADD one", LayerMaker().file("one", version)), ("ADD two", LayerMaker().file("two", version))]
        made = measured(folder, layers)
        return replace(made, image=replace(made.image, labels={BASE_LAYERS_LABEL: label}))

    comparison = compare(image(tmp_path / "b", "1"), image(tmp_path / "a", "2"))

    assert [each.cause for each in comparison.layers] == ["base"] * base_layers + ["input"] * (2 - base_layers)
