"""Measurements: every byte once, with its cause; saved, loaded and checked against the published schema."""

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from buildkit.image import model as measurement_module
from buildkit.image.model import load, save, schema
from buildkit.jsonfile import InvalidFile
from tests.support.images import LayerMaker, measure_layers

SITE = "usr/local/lib/python3.13/site-packages"
SCHEMA = Path(measurement_module.__file__).with_name("measurement.schema.json")


def example() -> list[LayerMaker]:
    return [
        LayerMaker()
        .directory("etc")
        .file("etc/passwd", "root")
        .file("usr/bin/bash", "#" * 300, mode=0o755)
        .file("usr/lib/python3/dist-packages/apt.py", "1" * 40)
        .file("usr/local/cuda/lib64/libcudart.so.12.4.127", "c" * 90)
        .symlink("usr/local/cuda/lib64/libcudart.so.12", "libcudart.so.12.4.127")
        .file("root/.local/bin/uv", "u" * 50, mode=0o755),
        LayerMaker()
        .file(f"{SITE}/nvidia/cuda_runtime/lib/libcudart.so.12", "d" * 80)
        .file(f"{SITE}/nvidia/cublas/lib/libcublas-0123abcd.so.12.1.3", "b" * 700, mode=0o755)
        .file(f"{SITE}/torch/lib/libtorch.so", "t" * 500, mode=0o755)
        .file(f"{SITE}/triton/x.py", "r" * 60)
        .file(f"{SITE}/torch-2.13.0.dist-info/RECORD", "torch/lib/libtorch.so,,\ntorch/a.py,,\n")
        .file(f"{SITE}/six.py", "s" * 30)
        .file("usr/local/bin/alembic", "#!", mode=0o755),
        LayerMaker()
        .file("app/service/app.py", "a" * 20)
        .file(f"{SITE}/torch/lib/libtorch.so", "t" * 500, mode=0o755, uid=1000)
        .file("etc/passwd", "root app")
        .whiteout("root"),
    ]


def test_sizes_add_up(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, *example(), compression="gzip")
    totals = result.totals
    assert totals.unpacked_bytes == sum(layer.unpacked_bytes for layer in result.layers)
    assert totals.blob_bytes == sum(layer.blob_bytes for layer in result.layers)
    assert totals.final_bytes == sum(layer.final_bytes for layer in result.layers)
    assert totals.final_bytes == sum(record.size_bytes for record in result.files or ())
    assert totals.final_bytes == sum(row.final_bytes for row in result.tree if row.parent is None)
    assert totals.final_bytes == result.unowned.final_bytes + sum(each.final_bytes for each in result.packages)
    assert totals.wasted_bytes == totals.unpacked_bytes - totals.final_bytes == 500 + 4 + 50
    assert totals.wasted_bytes == sum(group.wasted_bytes for group in result.waste)
    assert totals.wasted_bytes == sum(layer.wasted_bytes for layer in result.layers)
    assert totals.wasted_bytes == sum(layer.caused_waste_bytes for layer in result.layers)
    assert totals.efficiency_fraction == totals.final_bytes / totals.unpacked_bytes
    assert totals.largest_layer_bytes == result.layers[1].unpacked_bytes
    assert [layer.position for layer in result.layers] == [0, 1, 2]
    assert {layer.compression for layer in result.layers} == {"gzip"}


def test_waste_names_its_cause_and_instruction(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, *example())
    assert [(each.cause, each.stored_by, each.caused_by, each.wasted_bytes, each.files) for each in result.waste] == [
        ("metadata only", 1, 2, 500, 1),
        ("deleted", 0, 2, 50, 1),
        ("overwritten", 0, 2, 4, 1),
    ]
    assert {group.instruction for group in result.waste} == {"RUN step 2"}
    assert result.waste[1].largest[0].path == "root/.local/bin/uv"


def test_the_tree_is_that_of_the_report(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, *example(), run={"WorkingDir": "/app"})
    sizes = {row.label: row.final_bytes for row in result.tree}
    record_bytes = len("torch/lib/libtorch.so,,\ntorch/a.py,,\n")
    assert sizes == {
        "site-packages": 80 + 700 + 500 + 60 + record_bytes + 30,
        "site-packages/nvidia": 780,
        "site-packages/torch": 500,
        "site-packages/triton": 60,
        "site-packages/others": record_bytes + 30,
        "bin": 2,
        "application": 20,
        "home": 0,
        "base system": 8 + 300 + 40 + 90,
    }
    assert sum(row.fraction for row in result.tree if row.parent is None) == pytest.approx(1)


def test_cuda_twice_is_found_by_soname_and_bundled_copies_count(tmp_path: Path) -> None:
    (found,) = measure_layers(tmp_path, *example()).duplicate_libraries
    assert (found.soname, found.is_cuda, found.extra_bytes) == ("libcudart.so", True, 80)
    assert [copy.path for copy in found.copies] == [
        "usr/local/cuda/lib64/libcudart.so.12.4.127",
        f"{SITE}/nvidia/cuda_runtime/lib/libcudart.so.12",
    ]
    more = [*example(), LayerMaker().file("opt/cublas/libcublas.so.11", "1" * 9)]
    sonames = [each.soname for each in measure_layers(tmp_path / "more", *more).duplicate_libraries]
    assert sonames == ["libcudart.so", "libcublas.so"]


def test_equal_contents_are_found_across_layers_and_paths(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, *[*example(), LayerMaker().file("copy", "b" * 700).file("copy2", "b" * 700)])
    first, second = result.duplicates
    assert (first.size_bytes, first.copies, first.extra_bytes) == (700, 3, 1400)
    assert [(copy.layer, copy.is_visible) for copy in first.examples] == [(1, True), (3, True), (3, True)]
    assert (second.size_bytes, second.copies) == (500, 2)
    assert [copy.is_visible for copy in second.examples] == [False, True]
    assert result.totals.duplicate_bytes == 1900


def test_counts_of_files_packages_and_executables(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, *[*example(), LayerMaker().hardlink("usr/bin/sh", "usr/bin/bash")])
    assert result.totals.executables == 2, "bash and alembic: neither its second name nor shared objects"
    assert result.totals.files == 13
    assert result.totals.packages == 1
    assert [layer.packages for layer in result.layers] == [0, 1, 0, 0]
    assert [layer.executables for layer in result.layers] == [2, 1, 0, 0]


def test_hard_links_have_their_size_at_their_first_name(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, LayerMaker().file("z", "12345").hardlink("a", "z"))
    assert [(each.path, each.kind, each.size_bytes, each.link) for each in result.files or ()] == [
        ("a", "file", 5, ""),
        ("z", "hardlink", 0, "a"),
    ]


def test_an_empty_image_is_measured(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, LayerMaker())
    assert (result.totals.final_bytes, result.totals.efficiency_fraction) == (0, 1.0)
    assert all(row.fraction == 0 for row in result.tree)


def test_what_is_saved_is_loaded_and_fits_the_published_schema(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, *example())
    path = tmp_path / "deep" / "measurement.json"
    for form in (result, result.without_files()):
        save(form, path)
        assert load(path) == form
        jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(path.read_text()))


def test_the_published_schema_is_the_programs() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert json.loads(SCHEMA.read_text()) == schema()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not a measurement"),
        (b"[]", "not a measurement"),
        (b'{"schema_version": 99}', "schema version 99"),
        (b'{"schema_version": 1}', "schema version 1, but this program reads version 2; measure the image again"),
        (b'{"schema_version": 2}', "not a measurement"),
        (None, "No such file"),
    ],
)
def test_files_that_hold_no_measurement_are_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidFile, match=reason) as raised:
        load(path)
    assert raised.value.exit_code == 2
    assert raised.value.path == path


def test_measuring_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = measure_layers(tmp_path, *example()), measure_layers(tmp_path, *example())
    assert msgspec.json.encode(first) == msgspec.json.encode(second)
