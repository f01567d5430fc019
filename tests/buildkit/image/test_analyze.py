"""Analyzes images: sizes that add up, waste by cause, counts, duplicates."""

from pathlib import Path

import msgspec

from tests.support.images import LayerMaker, measure_layers

SITE = "usr/local/lib/python3.13/site-packages"


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


def test_waste_has_a_cause_and_an_instruction(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, *example())
    assert [(each.cause, each.stored_by, each.caused_by, each.wasted_bytes, each.files) for each in result.waste] == [
        ("metadata only", 1, 2, 500, 1),
        ("deleted", 0, 2, 50, 1),
        ("overwritten", 0, 2, 4, 1),
    ]
    assert {group.instruction for group in result.waste} == {"RUN step 2"}
    assert result.waste[1].largest[0].path == "root/.local/bin/uv"


def test_files_packages_and_executables_are_counted(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, *[*example(), LayerMaker().hardlink("usr/bin/sh", "usr/bin/bash")])
    assert result.totals.executables == 2, "bash and alembic, without the second name of bash and shared objects"
    assert result.totals.files == 13
    assert result.totals.packages == 1
    assert [layer.packages for layer in result.layers] == [0, 1, 0, 0]
    assert [layer.executables for layer in result.layers] == [2, 1, 0, 0]


def test_hard_link_has_its_size_at_its_first_name(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, LayerMaker().file("z", "12345").hardlink("a", "z"))
    assert [(each.path, each.kind, each.size_bytes, each.link) for each in result.files or ()] == [
        ("a", "file", 5, ""),
        ("z", "hardlink", 0, "a"),
    ]


def test_empty_image_has_efficiency_1(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, LayerMaker())
    assert (result.totals.final_bytes, result.totals.efficiency_fraction) == (0, 1.0)
    assert all(row.fraction == 0 for row in result.tree)


def test_measurement_is_deterministic(tmp_path: Path) -> None:
    first, second = measure_layers(tmp_path, *example()), measure_layers(tmp_path, *example())
    assert msgspec.json.encode(first) == msgspec.json.encode(second)


def test_parts_and_duplicates_are_those_of_the_image(tmp_path: Path) -> None:
    result = measure_layers(tmp_path, *example(), run={"WorkingDir": "/app"})
    sizes = {row.label: row.final_bytes for row in result.tree}
    assert (sizes["application"], sizes["site-packages/nvidia"], sizes["home"]) == (20, 780, 0)
    assert [each.soname for each in result.duplicate_libraries] == ["libcudart.so"]
    assert [each.size_bytes for each in result.duplicates] == [500]
    assert result.totals.duplicate_bytes == 500
    assert [each.name for each in result.packages] == ["torch"]
    assert result.unowned_folders[0].path == ""


def test_image_description_is_that_of_the_image(tmp_path: Path) -> None:
    result = measure_layers(
        tmp_path, *example(), run={"WorkingDir": "/app", "User": "1", "Labels": {"b": "2", "a": "1"}}
    )
    assert (result.image.source, result.image.platform, result.image.user) == ("oci-layout", "linux/amd64", "1")
    assert result.image.labels == {"a": "1", "b": "2"}
    assert result.measured_at is None
