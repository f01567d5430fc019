"""Images from layouts and archives: every source gives the same image, and what is wrong with one is named."""

import contextlib
import json
import os
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildkit.errors import BuildkitError, CommandFailed
from buildkit.image.analyze import analyze
from buildkit.image.blobs import CorruptImage, ImageError
from buildkit.image.layer_stream import Limits
from buildkit.image.read import (
    AmbiguousImage,
    DigestMismatch,
    Image,
    ImageNotFound,
    UnsupportedImage,
    read_image,
)
from buildkit.image.tar_format import CorruptLayer, LayerTooLarge
from tests.support.images import (
    Compression,
    LayerMaker,
    MadeImage,
    blob_name,
    descriptor,
    digest,
    docker_files,
    make_image,
    oci_files,
    write_archive,
    write_folder,
)

LAYERS = [
    LayerMaker().directory("etc").file("etc/motd", "hello").file("etc/big", bytes(100_000)).tar(),
    LayerMaker().whiteout("etc/motd").file("app/run", "x", mode=0o755).tar(),
    bytes(1024),
]
INSTRUCTIONS = ["/bin/sh -c #(nop) ADD file:1 in / ", "RUN /bin/sh -c rm /etc/motd # buildkit", "WORKDIR /app"]
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def example(compression: Compression = "none") -> MadeImage:
    run = {"WorkingDir": "/app", "User": "1000", "Labels": {"a": "b"}}
    return make_image(LAYERS, compression=compression, instructions=INSTRUCTIONS, run=run)


def check(image: Image, made: MadeImage) -> None:
    assert [layer.diff_id for layer in image.layers] == [digest(layer) for layer in LAYERS]
    assert [layer.blob_bytes for layer in image.layers] == [len(blob) for blob in made.layers]
    assert [layer.blob_digest for layer in image.layers] == [digest(blob) for blob in made.layers]
    assert [layer.instruction for layer in image.layers] == ["ADD file:1 in /", "RUN rm /etc/motd", "WORKDIR /app"]
    assert [layer.contents.unpacked_bytes for layer in image.layers] == [100_005, 1, 0]
    assert (image.platform, image.working_dir, image.user) == ("linux/amd64", "/app", "1000")
    assert image.labels == (("a", "b"),)
    assert image.config_digest == digest(made.config)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("attested", [False, True])
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_oci_layouts_are_read(tmp_path: Path, compression: Compression, form: str, *, attested: bool) -> None:
    made = example(compression)
    files = oci_files(made, attested=attested)
    path = write_folder(files, tmp_path / "o") if form == "folder" else write_archive(files, tmp_path / "o.tar")
    image = read_image(str(path))
    check(image, made)
    assert image.manifest_digest == digest(made.manifest)


def test_docker_archives_are_read_with_and_without_oci_files(tmp_path: Path) -> None:
    made = example()
    check(read_image(str(write_archive(docker_files(made), tmp_path / "old.tar"))), made)
    both = oci_files(made) | {
        "manifest.json": json.dumps(
            [{"Config": blob_name(made.config), "RepoTags": None, "Layers": [blob_name(each) for each in LAYERS]}]
        ).encode()
    }
    check(read_image(str(write_archive(both, tmp_path / "new.tar"))), made)
    del both["index.json"]
    check(read_image(f"docker-archive:{write_archive(both, tmp_path / 'mixed.tar')}"), made)


def test_links_in_an_archive_are_followed(tmp_path: Path) -> None:
    """As older engines write a layer that two images of the archive share."""
    made = make_image([LAYERS[0], LAYERS[0]])
    files = docker_files(made)
    second = f"{1:064x}/layer.tar"
    del files[second]
    maker = LayerMaker().symlink(second, f"../{0:064x}/layer.tar")
    for name, content in files.items():
        maker.file(name, content)
    path = tmp_path / "linked.tar"
    path.write_bytes(maker.tar())
    assert [layer.diff_id for layer in read_image(str(path)).layers] == [digest(LAYERS[0])] * 2


def fake_engine(folder: Path, image: MadeImage, *, failing: str = "") -> list[str]:
    """A `docker` that knows one image and exports it in the order of the engine: blobs first, index last."""
    files = oci_files(image, attested=True)
    late = {name: files.pop(name) for name in ("index.json", "oci-layout")}
    archive = write_archive(dict(sorted(files.items())) | late, folder / "saved.tar")
    program = folder / "docker"
    program.write_text(
        f"""#!/bin/sh
echo "$*" >> {folder}/calls
case "$2" in
inspect) [ "$3" = known ] || {{ echo "Error: No such image: $3" >&2; exit 1; }}
    echo '[{{"Id": "{digest(image.manifest)}", "RootFS": {{}}}}]' ;;
save) {failing or "cat"} {archive} ;;
*) exit 1 ;;
esac
"""
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return [str(program)]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_an_engine_is_asked_for_its_export_and_the_second_time_only_for_the_identity(
    tmp_path: Path, compression: Compression
) -> None:
    made = example(compression)
    docker = fake_engine(tmp_path, made)
    first = read_image("known", docker=docker, cache=tmp_path / "cache")
    check(first, made)
    assert first.source == "engine"
    second = read_image("known", docker=docker, cache=tmp_path / "cache")
    assert second == first
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("save" in call for call in calls) == 1
    assert "inspect" in calls[-1]


def test_layers_of_another_image_are_taken_from_the_cache_while_streaming(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    read_image(str(write_folder(oci_files(make_image(LAYERS[:1], compression="gzip")), tmp_path / "o")), cache=cache)
    made = example("gzip")
    (tmp_path / "e").mkdir()
    check(read_image("known", docker=fake_engine(tmp_path / "e", made), cache=cache), made)


def test_an_engine_that_gives_up_is_named_before_the_archive_that_ends_early(tmp_path: Path) -> None:
    docker = fake_engine(tmp_path, example(), failing="echo no space left >&2; head -c 70000")
    text = (tmp_path / "docker").read_text().replace("saved.tar ;;", "saved.tar; exit 1 ;;")
    (tmp_path / "docker").write_text(text)
    with pytest.raises(CommandFailed, match="no space left"):
        read_image("known", docker=docker)


def test_a_stream_that_ends_early_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptLayer, match="ends inside"):
        read_image("known", docker=fake_engine(tmp_path, example(), failing="head -c 70000"))


def test_neither_file_nor_image_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound, match="neither a file nor an image of the engine"):
        read_image("unknown", docker=fake_engine(tmp_path, example()))


def test_a_machine_without_docker_is_told_so() -> None:
    with pytest.raises(CommandFailed, match="not installed"):
        read_image("unknown", docker=["no-such-docker"])


@pytest.mark.parametrize("damage", [b"", b"\xff\xff\xff", b"\x98\x01"])
def test_a_damaged_cache_is_read_as_an_empty_one(tmp_path: Path, damage: bytes) -> None:
    path = str(write_folder(oci_files(example()), tmp_path / "o"))
    cache = tmp_path / "cache"
    first = read_image(path, cache=cache)
    for file in cache.iterdir():
        file.write_bytes(damage)
    assert read_image(path, cache=cache) == first


def test_cached_layers_are_not_opened_again(tmp_path: Path) -> None:
    made = example("zstd")
    folder = write_folder(oci_files(made), tmp_path / "o")
    first = read_image(str(folder), cache=tmp_path / "cache")
    for blob in made.layers:
        (folder / blob_name(blob)).unlink()
    assert read_image(str(folder), cache=tmp_path / "cache") == first


def index_of(images: Mapping[tuple[str, str], MadeImage]) -> dict[str, bytes]:
    files: dict[str, bytes] = {"oci-layout": b"{}"}
    roots = []
    for (system, architecture), made in images.items():
        files |= made.blobs
        platform = {"os": system, "architecture": architecture}
        roots.append(descriptor(made.manifest, MANIFEST_TYPE, platform=platform))
    files["index.json"] = json.dumps({"manifests": roots}).encode()
    return files


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_an_image_without_layers_is_read_also_where_its_lists_are_null(tmp_path: Path, form: str) -> None:
    """As Go writes lists that were never filled: a configuration on `scratch` without a file."""
    made = make_image([])
    config = made.config.replace(b'"diff_ids": []', b'"diff_ids": null')
    manifest = json.loads(made.manifest) | {"layers": None}
    manifest["config"] |= {"digest": digest(config), "size": len(config)}
    raw = json.dumps(manifest).encode()
    made = replace(made, config=config, manifest=raw, blobs={blob_name(each): each for each in (config, raw)})
    files = oci_files(made) if form == "oci" else docker_files(made)
    files["manifest.json"] = files.get("manifest.json", b"").replace(b'"Layers": []', b'"Layers": null')
    image = read_image(str(write_archive(files, tmp_path / "i.tar")))
    assert image.layers == ()
    assert analyze(image).totals.final_bytes == 0


def test_the_platform_is_chosen_from_an_index(tmp_path: Path) -> None:
    platforms = [("linux", "amd64"), ("linux", "s390x"), ("linux", "ppc64le")]
    images = {each: make_image([LAYERS[place]], platform=each) for place, each in enumerate(platforms)}
    path = str(write_folder(index_of(images), tmp_path / "o"))
    assert read_image(path, platform="linux/s390x").platform == "linux/s390x"
    with pytest.raises(ImageNotFound, match=r"no image for linux/riscv64 in it, only for linux/amd64"):
        read_image(path, platform="linux/riscv64")


def test_platforms_that_are_not_there_do_not_matter(tmp_path: Path) -> None:
    """An engine that pulled one platform keeps the whole index."""
    files = index_of({("linux", each): make_image([LAYERS[0]], platform=("linux", each)) for each in ("amd64", "arm")})
    missing = make_image([LAYERS[0]], platform=("linux", "arm"))
    del files[blob_name(missing.manifest)]
    assert read_image(str(write_folder(files, tmp_path / "o"))).platform == "linux/amd64"


def test_two_images_need_a_tag(tmp_path: Path) -> None:
    one, two = make_image([LAYERS[0]]), make_image([LAYERS[1]])
    files = oci_files(one, tag="a:1") | oci_files(two, tag="b:2")
    roots = [
        json.loads(oci_files(made, tag=tag)["index.json"])["manifests"][0] for made, tag in ((one, "a:1"), (two, "b:2"))
    ]
    files["index.json"] = json.dumps({"manifests": roots}).encode()
    path = str(write_folder(files, tmp_path / "o"))
    with pytest.raises(AmbiguousImage) as raised:
        read_image(path)
    assert len(raised.value.choices) == 2
    assert read_image(path, tag="b:2").manifest_digest == digest(two.manifest)
    with pytest.raises(ImageNotFound):
        read_image(path, tag="c:3")
    listing = json.loads(docker_files(one, tag="a:1")["manifest.json"]) * 2
    archive = docker_files(one) | {"manifest.json": json.dumps(listing).encode()}
    with pytest.raises(AmbiguousImage):
        read_image(str(write_archive(archive, tmp_path / "a.tar")))


def test_without_a_history_there_are_no_instructions(tmp_path: Path) -> None:
    made = make_image(LAYERS, instructions=["only one"])
    image = read_image(str(write_folder(oci_files(made), tmp_path / "o")))
    assert [layer.instruction for layer in image.layers] == [None, None, None]


def damaged(made: MadeImage, name: str, content: bytes | None) -> dict[str, bytes]:
    files = oci_files(made)
    if content is None:
        del files[name]
    else:
        files[name] = content
    return files


def with_manifest(made: MadeImage, **changes: object) -> dict[str, bytes]:
    manifest = json.dumps(json.loads(made.manifest) | changes).encode()
    return oci_files(replace(made, manifest=manifest, blobs={**made.blobs, blob_name(manifest): manifest}))


MADE = example()
LAYER = descriptor(LAYERS[0], "application/vnd.oci.image.layer.v1.tar")
KEYS = ["digest", "size", "mediaType", "layers", "config", "rootfs", "diff_ids", "history", "annotations", "platform"]
WRONG: dict[str, tuple[dict[str, bytes], type[ImageError] | type[CorruptLayer], str]] = {
    "no index": (damaged(MADE, "index.json", None), CorruptImage, "neither index.json"),
    "index no JSON": (damaged(MADE, "index.json", b"{"), CorruptImage, "index.json"),
    "index of lists": (damaged(MADE, "index.json", b'{"manifests": {}}'), CorruptImage, "index.json"),
    "empty index": (damaged(MADE, "index.json", b'{"manifests": []}'), UnsupportedImage, "no image manifest"),
    "no manifest": (damaged(MADE, blob_name(MADE.manifest), None), CorruptImage, "manifest sha256:.* is not in it"),
    "other manifest": (damaged(MADE, blob_name(MADE.manifest), b"{}"), DigestMismatch, "should have digest"),
    "other config": (damaged(MADE, blob_name(MADE.config), b"{}"), DigestMismatch, "should have digest"),
    "no layer": (damaged(MADE, blob_name(LAYERS[0]), None), CorruptImage, "layer sha256:.* is not in it"),
    "other layer": (damaged(MADE, blob_name(LAYERS[0]), LAYERS[1]), DigestMismatch, "should have digest"),
    "cut layer": (damaged(MADE, blob_name(LAYERS[0]), LAYERS[0][:4000]), CorruptLayer, "ends inside a"),
    "layers missing": (with_manifest(MADE, layers=[LAYER]), CorruptImage, "has 1 layers, the configuration 3"),
    "layer of another image": (with_manifest(MADE, layers=[LAYER] * 3), DigestMismatch, "unpacked"),
    "unknown layer type": (
        with_manifest(MADE, layers=[{**LAYER, "mediaType": "application/vnd.oci.image.layer.v1.tar+encrypted"}] * 3),
        UnsupportedImage,
        "encrypted",
    ),
    "another digest": (
        with_manifest(MADE, layers=[{**LAYER, "digest": "sha512:" + "0" * 128}] * 3),
        UnsupportedImage,
        "not SHA-256",
    ),
    "digest that climbs": (
        with_manifest(MADE, layers=[{**LAYER, "digest": "sha256:../../../../etc/passwd"}] * 3),
        UnsupportedImage,
        "not SHA-256",
    ),
    "another size": (
        with_manifest(MADE, layers=[{**LAYER, "size": 7}] * 3),
        CorruptImage,
        "its manifest says 7",
    ),
    "a chart": (
        with_manifest(MADE, config=descriptor(b"{}", "application/vnd.cncf.helm.config.v1+json")),
        UnsupportedImage,
        "not a container image: application/vnd.cncf.helm",
    ),
    "unknown manifest": (
        damaged(MADE, "index.json", json.dumps({"manifests": [descriptor(b"", "text/plain")]}).encode()),
        UnsupportedImage,
        "not a container image: text/plain",
    ),
    "manifest that climbs": (
        damaged(
            MADE,
            "index.json",
            json.dumps({"manifests": [{**descriptor(b"", MANIFEST_TYPE), "digest": "sha256:../../x"}]}).encode(),
        ),
        UnsupportedImage,
        "not SHA-256",
    ),
}


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_an_image_is_named(tmp_path: Path, case: str, form: str) -> None:
    files, error, message = WRONG[case]
    path = write_folder(files, tmp_path / "o") if form == "folder" else write_archive(files, tmp_path / "o.tar")
    with pytest.raises(error, match=message) as raised:
        read_image(str(path), cache=tmp_path / "cache")
    assert str(path) in str(raised.value)
    assert raised.value.exit_code == 3


def test_a_wrong_layer_does_not_poison_the_cache(tmp_path: Path) -> None:
    wrong = damaged(MADE, blob_name(LAYERS[0]), LAYERS[1])
    with pytest.raises(DigestMismatch):
        read_image(str(write_folder(wrong, tmp_path / "wrong")), cache=tmp_path / "cache")
    check(read_image(str(write_folder(oci_files(MADE), tmp_path / "o")), cache=tmp_path / "cache"), MADE)


def test_an_index_within_itself_ends(tmp_path: Path) -> None:
    """Digests cannot be circular, but an index of indexes can be as deep as its author likes."""
    files = oci_files(MADE)
    inner = json.dumps({"manifests": [descriptor(MADE.manifest, MANIFEST_TYPE)]}).encode()
    for _ in range(9):
        files[blob_name(inner)] = inner
        inner = json.dumps({"manifests": [descriptor(inner, "application/vnd.oci.image.index.v1+json")]}).encode()
    files["index.json"] = inner
    with pytest.raises(UnsupportedImage, match="deeper"):
        read_image(str(write_folder(files, tmp_path / "o")))


def test_archives_that_are_none_or_end_early_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(os.urandom(4096))
    with pytest.raises(CorruptImage, match="no image archive"):
        read_image(str(path))
    whole = write_archive(oci_files(MADE), tmp_path / "whole.tar").read_bytes()
    path.write_bytes(whole[:90_000])
    with pytest.raises(CorruptImage, match="the archive ends inside"):
        read_image(str(path))
    path.write_bytes(whole[:100])
    with pytest.raises(CorruptImage, match="ends inside a header"):
        read_image(str(path))
    path.write_bytes(b"")
    with pytest.raises(CorruptImage, match=r"neither index\.json"):
        read_image(str(path))


@pytest.mark.parametrize("place", ["index.json", blob_name(LAYERS[0])])
def test_pipes_and_devices_in_a_layout_are_not_waited_for(tmp_path: Path, place: str) -> None:
    folder = write_folder(oci_files(MADE), tmp_path / "o")
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (folder / place).unlink()
        make(folder / place)
        with pytest.raises(CorruptImage):
            read_image(str(folder))


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_an_archive_is_read_from_a_pipe(tmp_path: Path, form: str) -> None:
    files = oci_files(MADE) if form == "oci" else docker_files(MADE)
    archive = write_archive(files, tmp_path / "i.tar")
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cp", archive, tmp_path / "pipe"]):
        check(read_image(str(tmp_path / "pipe")), MADE)


def test_an_archive_is_read_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with write_archive(oci_files(MADE), tmp_path / "i.tar").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        check(read_image("-"), MADE)


def test_an_unpacked_docker_archive_cannot_reach_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(LAYERS[0])
    files = docker_files(make_image(LAYERS[:1]))
    listing = json.loads(files["manifest.json"])
    listing[0]["Layers"] = ["../secret"]
    files["manifest.json"] = json.dumps(listing).encode()
    with pytest.raises(CorruptImage, match="is not in it"):
        read_image(str(write_folder(files, tmp_path / "o")))


def test_limits_reach_the_layers(tmp_path: Path) -> None:
    with pytest.raises(LayerTooLarge):
        read_image(str(write_folder(oci_files(MADE), tmp_path / "o")), limits=Limits(unpacked_bytes=50_000))
    with pytest.raises(LayerTooLarge, match="entries in its layers"):
        read_image(str(tmp_path / "o"), limits=Limits(entries=4))


WHOLE: dict[str, dict[str, bytes]] = {
    "oci": oci_files(example("gzip"), attested=True),
    "docker": docker_files(example()),
}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_damage_to_an_archive_is_refused_or_without_effect(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut it anywhere or change bytes anywhere: a typed refusal, or an image whose layers are the right ones."""
    maker = LayerMaker()
    for name, content in WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))].items():
        maker.file(name, content)
    archive = bytearray(maker.tar())
    if data.draw(st.booleans()):
        del archive[data.draw(st.integers(0, len(archive))) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if archive:
            archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(archive)
    refusal: BuildkitError | None = None
    try:
        image = read_image(str(path))
    except BuildkitError as error:
        refusal = error
    if refusal is not None:
        assert refusal.exit_code == 3
    else:
        analyze(image)
        assert {layer.diff_id for layer in image.layers} <= {digest(layer) for layer in LAYERS}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_json_in_a_layout_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Part of a valid document is replaced by anything; the digests above it are made right again."""
    made = example()
    which = data.draw(st.sampled_from(["index.json", "manifest", "config"]))
    config = mutated(made.config, data) if which == "config" else made.config
    manifest = json.loads(made.manifest)
    manifest["config"] |= {"digest": digest(config), "size": len(config)}
    raw = json.dumps(manifest).encode()
    raw = mutated(raw, data) if which == "manifest" else raw
    files = oci_files(
        replace(made, config=config, manifest=raw, blobs={**made.blobs, blob_name(config): config, blob_name(raw): raw})
    )
    if which == "index.json":
        files["index.json"] = mutated(files["index.json"], data)
    path = write_folder(files, tmp_path_factory.mktemp("layout"))
    with contextlib.suppress(BuildkitError):
        analyze(read_image(str(path)))


def mutated(document: bytes, data: st.DataObject) -> bytes:
    """Replace one value somewhere in a document."""
    root = json.loads(document)
    node = root
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            node[key] = data.draw(JSON)
            return json.dumps(root).encode()
        node = node[key]
