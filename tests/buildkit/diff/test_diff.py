"""Two images: what changed, why, and what a node must fetch."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import msgspec
import pytest

from buildkit.diff import diff as compare_module
from buildkit.diff.diff import BASE_LAYERS_LABEL, Comparison, compare, schema
from buildkit.image.model import Measurement
from tests.support.images import Compression, LayerMaker, measure_layers

SITE = "opt/venv/lib/python3.13/site-packages"
SCHEMA = Path(compare_module.__file__).with_name("comparison.schema.json")


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


def test_identical_images_have_no_difference(tmp_path: Path) -> None:
    before, after = measured(tmp_path / "b", before_layers()), measured(tmp_path / "a", before_layers())
    comparison = compare(before, after)
    assert comparison.is_empty
    assert (comparison.packages, comparison.files, comparison.removed, comparison.transfer_bytes) == ((), (), (), 0)
    assert {layer.kind for layer in comparison.layers} == {"same"}
    assert all(figure.before == figure.after for figure in comparison.figures)


def test_layers_are_paired_by_content_then_by_instruction(comparison: Comparison) -> None:
    assert [(each.kind, each.cause, each.before, each.after) for each in comparison.layers] == [
        ("same", None, 0, 0),
        ("same", None, 1, 1),
        ("added", None, None, 2),
        ("grown", "input", 2, 3),
        ("shrunk", "input", 3, 4),
        ("removed", None, 4, None),
    ]
    assert not comparison.is_empty


def test_a_layer_says_why_it_changed(tmp_path: Path) -> None:
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


def test_files_say_how_they_changed(comparison: Comparison) -> None:
    files = {each.path: (each.kind, each.before_bytes, each.after_bytes) for each in comparison.files or ()}
    assert files["app/a.py"] == ("grown", 1, 2)
    assert files["app/same"] == ("changed", 4, 4)
    assert files["app/gone"] == ("removed", 3, 0)
    assert files["app/new"] == ("added", 0, 1)
    assert f"{SITE}/nvidia/lib.so" not in files
    assert "etc/os" not in files


def test_a_change_of_mode_owner_or_target_is_seen(tmp_path: Path) -> None:
    one = LayerMaker().file("mode", "1").file("owner", "1").symlink("link", "a").directory("d")
    other = LayerMaker().file("mode", "1", mode=0o755).file("owner", "1", uid=7).symlink("link", "b")
    other.directory("d", mode=0o700)
    comparison = compare(measured(tmp_path / "b", [("x", one)]), measured(tmp_path / "a", [("x", other)]))
    assert {each.path: each.kind for each in comparison.files or ()} == dict.fromkeys(
        ["mode", "owner", "link", "d"], "metadata only"
    )


def test_packages_show_their_versions(comparison: Comparison) -> None:
    (change,) = comparison.packages
    assert (change.name, change.kind, change.before_version, change.after_version) == ("web", "grown", "1.0", "1.1")
    assert change.after_bytes - change.before_bytes == 20


def test_a_package_of_the_same_size_and_other_content_changed_and_a_moved_one_did_not(tmp_path: Path) -> None:
    before = measured(tmp_path / "b", [("x", distribution("web", "1", "aaa"))])
    changed = compare(before, measured(tmp_path / "a", [("x", distribution("web", "1", "bbb"))]))
    assert [(each.name, each.kind) for each in changed.packages] == [("web", "changed")]
    record = "web.py,,\n"
    moved = LayerMaker().file("usr/lib/python3.13/site-packages/web-1.dist-info/RECORD", record)
    moved.file("usr/lib/python3.13/site-packages/web.py", "aaa")
    assert compare(before, measured(tmp_path / "m", [("x", moved)])).packages == ()


def test_a_node_fetches_the_blobs_that_it_lacks(comparison: Comparison, tmp_path: Path) -> None:
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


def test_layers_of_other_instructions_are_not_paired(tmp_path: Path) -> None:
    before = [("ADD base", base()), ("COPY pyproject.toml ./", LayerMaker().file("pyproject.toml", "1"))]
    after = [("ADD base", base()), ("RUN apt-get install curl", LayerMaker().file("usr/bin/curl", "22"))]
    comparison = compare(measured(tmp_path / "b", before), measured(tmp_path / "a", after))
    assert [(each.kind, each.before, each.after) for each in comparison.layers] == [
        ("same", 0, 0),
        ("removed", 1, None),
        ("added", None, 1),
    ]


def test_an_environment_that_moved_is_compared_file_by_file(tmp_path: Path) -> None:
    old, new = "usr/local/lib/python3.12/dist-packages", SITE
    lower, upper = LayerMaker(), LayerMaker()
    for maker, site, library in ((lower, old, "s" * 900), (upper, new, "s" * 400)):
        maker.file(f"{site}/web-1.dist-info/RECORD", "web.py,,\nweb.so,,\ngone.py,,\n")
        maker.file(f"{site}/web.py", "same").file(f"{site}/web.so", library)
    lower.file(f"{old}/gone.py", "1" * 30).file("opt/model", "m" * 50).file("opt/model2", "n" * 50)
    upper.file("srv/model", "m" * 50)
    comparison = compare(measured(tmp_path / "b", [("x", lower)]), measured(tmp_path / "a", [("x", upper)]))
    files = {each.path: (each.kind, each.moved_from) for each in comparison.files or () if each.after_bytes}
    assert files[f"{new}/web.py"] == ("moved", f"{old}/web.py")
    assert files[f"{new}/web.so"] == ("shrunk", f"{old}/web.so")
    assert files["srv/model"] == ("moved", "opt/model")
    removed = {each.name: each.removed_bytes for each in comparison.removed}
    assert removed == {"symbols and other parts of shared objects": 500, "parts of web (python)": 30, "opt": 50}


def test_removed_components_are_named_with_their_reason(comparison: Comparison) -> None:
    removed = {each.name: (each.reason, each.removed_bytes, each.files) for each in comparison.removed}
    assert removed["root/.cache/uv"] == ("package manager", 900, 1)
    assert removed["app"] == ("not needed", 3, 1)


def test_removed_packages_are_named_whole(tmp_path: Path) -> None:
    status = "".join(
        f"Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n"
        for name in ("gcc-14", "curl")
    )
    lower = LayerMaker().file("var/lib/dpkg/status", status)
    lower.file("var/lib/dpkg/info/gcc-14.list", "/usr/bin/gcc\n/usr/lib/cc1\n").file("usr/bin/gcc", "g" * 70)
    lower.file("usr/lib/cc1", "g" * 30).file("var/lib/dpkg/info/curl.list", "/usr/bin/curl\n").file("usr/bin/curl", "c")
    lower.file("usr/lib/liba.so", "s" * 50).file("moved/from", "q" * 20)
    upper = LayerMaker().file("usr/bin/curl", "c").file("usr/lib/liba.so", "s" * 10).file("moved/to/from", "q" * 20)
    comparison = compare(measured(tmp_path / "b", [("x", lower)]), measured(tmp_path / "a", [("x", upper)]))
    removed = {each.name: (each.reason, each.removed_bytes, each.files) for each in comparison.removed}
    assert removed["gcc-14 (debian)"] == ("build tool", 100, 2)
    assert removed["symbols and other parts of shared objects"] == ("not needed to run", 40, 1)
    assert "moved" not in removed


def test_short_forms_are_compared_without_files(tmp_path: Path) -> None:
    long = measured(tmp_path / "b", before_layers())
    before = long.without_files()
    assert compare(before, long).packages == ()
    comparison = compare(before, measured(tmp_path / "a", after_layers()))
    assert comparison.files is None
    assert [layer.kind for layer in comparison.layers][:2] == ["same", "same"]


def test_a_comparison_fits_the_published_schema(comparison: Comparison) -> None:
    assert json.loads(SCHEMA.read_text()) == schema()
    jsonschema.Draft202012Validator(schema()).validate(json.loads(msgspec.json.encode(comparison)))


def test_figures_are_found_by_name(comparison: Comparison) -> None:
    figure = comparison.figure("layers")
    assert (figure.before, figure.after) == (5, 5)


def test_the_images_own_label_says_how_many_layers_are_the_bases(tmp_path: Path) -> None:
    def image(folder: Path, version: str) -> Measurement:
        layers = [("ADD one", LayerMaker().file("one", version)), ("ADD two", LayerMaker().file("two", version * 2))]
        made = measured(folder, [*layers, ("COPY app", LayerMaker().file("app", "a"))])
        return replace(made, image=replace(made.image, labels={BASE_LAYERS_LABEL: "2"}))

    before, after = image(tmp_path / "b", "1"), image(tmp_path / "a", "2")

    assert [each.cause for each in compare(before, after).layers] == ["base", "base", None]
    assert [each.cause for each in compare(before, after, base_layers=1).layers] == ["base", "input", None]


@pytest.mark.parametrize(("label", "layers"), [("nonsense", 1), ("", 1), ("99", 1), ("0", 0)])
def test_a_label_that_cannot_be_true_is_not_believed(label: str, layers: int, tmp_path: Path) -> None:
    made = measured(tmp_path, [("ADD one", LayerMaker().file("one", "1"))])
    labelled = replace(made, image=replace(made.image, labels={BASE_LAYERS_LABEL: label}))

    assert compare_module._base_layers(labelled) == layers
