"""Reads an image from every source: all give the same image, and name what is wrong with a damaged one."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from buildkit.errors import CommandFailed
from buildkit.image.analyze import analyze
from buildkit.image.errors import CorruptLayer, DigestMismatch, ImageNotFound, MissingBlob, UnsupportedImage
from buildkit.image.read import ReadOptions, layer_blobs, read_image
from tests.support.docker_stub import DockerStub
from tests.support.example_image import LAYERS, assert_is_example, example_image, with_file
from tests.support.images import (
    Compression,
    Form,
    LayerMaker,
    MadeImage,
    blob_name,
    digest,
    docker_files,
    make_image,
    oci_files,
    write_archive,
    write_folder,
    write_layout,
)

INSPECT = "image inspect known"
SAVE = "image save known"


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("attested", [False, True])
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_oci_layout_is_read(tmp_path: Path, compression: Compression, form: Form, *, attested: bool) -> None:
    made = example_image(compression)
    image = read_image(str(write_layout(oci_files(made, attested=attested), tmp_path / "o", form)))
    assert_is_example(image, made)
    assert image.description.manifest_digest == digest(made.manifest)


def test_docker_archive_is_read_with_and_without_oci_files(tmp_path: Path) -> None:
    made = example_image()
    old = read_image(str(write_archive(docker_files(made), tmp_path / "old.tar")))
    assert_is_example(old, made)
    assert old.description.manifest_digest is None
    names = [blob_name(layer) for layer in LAYERS]
    listing = [{"Config": blob_name(made.config), "RepoTags": None, "Layers": names}]
    both = oci_files(made) | {"manifest.json": json.dumps(listing).encode()}
    assert_is_example(read_image(str(write_archive(both, tmp_path / "new.tar"))), made)
    del both["index.json"]
    assert_is_example(read_image(f"docker-archive:{write_archive(both, tmp_path / 'mixed.tar')}"), made)


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_archive_is_read_from_a_pipe(tmp_path: Path, form: str) -> None:
    made = example_image()
    archive = write_archive(oci_files(made) if form == "oci" else docker_files(made), tmp_path / "i.tar")
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cp", archive, tmp_path / "pipe"]):
        assert_is_example(read_image(str(tmp_path / "pipe")), made)


def test_archive_is_read_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = example_image()
    with write_archive(oci_files(made), tmp_path / "i.tar").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert_is_example(read_image("-"), made)


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_image_without_layers_is_read(tmp_path: Path, form: str) -> None:
    """A configuration on `scratch` without files: Go writes its empty lists as null."""
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


def test_image_without_history_has_no_instructions(tmp_path: Path) -> None:
    made = make_image(LAYERS, instructions=["only one"])
    image = read_image(str(write_folder(oci_files(made), tmp_path / "o")))
    assert [layer.instruction for layer in image.layers] == [None, None, None]


@pytest.fixture
def engine(docker_stub: DockerStub, tmp_path: Path) -> DockerStub:
    """A fake engine without images and without a content store."""
    docker_stub.answer("image inspect *", errors="Error: No such image: unknown", exit_code=1)
    docker_stub.answer("info *", output=f"{tmp_path}\n[]")
    return docker_stub


def add_image(engine: DockerStub, made: MadeImage, folder: Path, *, save: str = "cat {}", exit_code: int = 0) -> None:
    """Gives the engine the image `known`; its export has the order of a real one: blobs first, index last."""
    files = oci_files(made, attested=True)
    late = {name: files.pop(name) for name in ("index.json", "oci-layout")}
    archive = write_archive(dict(sorted(files.items())) | late, folder / "saved.tar")
    engine.answer(INSPECT, output=json.dumps([{"Id": digest(made.manifest), "RootFS": {}}]))
    engine.answer(SAVE, script=save.format(archive), exit_code=exit_code)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_engine_image_is_exported_once_and_cached(engine: DockerStub, tmp_path: Path, compression: Compression) -> None:
    made = example_image(compression)
    add_image(engine, made, tmp_path)
    options = ReadOptions(cache=tmp_path / "cache")
    first = read_image("known", options)
    assert_is_example(first, made)
    assert first.description.source == "engine"
    assert read_image("known", options) == first
    assert engine.calls.count(SAVE) == 1
    assert engine.calls[-1] == INSPECT


def test_engine_image_is_read_in_place_from_the_content_store(engine: DockerStub, tmp_path: Path) -> None:
    made = example_image("gzip")
    add_image(engine, made, tmp_path)
    store = tmp_path / "containerd" / "daemon" / "io.containerd.content.v1.content"
    write_folder(made.blobs, store)
    engine.answer("info *", output=f'{tmp_path}\n[["driver-type","io.containerd.snapshotter.v1"]]')
    assert_is_example(read_image("known"), made)
    assert layer_blobs("known") == {digest(blob): len(blob) for blob in made.layers}
    assert SAVE not in engine.calls


def test_incomplete_content_store_falls_back_to_the_export(engine: DockerStub, tmp_path: Path) -> None:
    made = example_image("gzip")
    add_image(engine, made, tmp_path)
    store = tmp_path / "containerd" / "daemon" / "io.containerd.content.v1.content"
    write_folder({name: blob for name, blob in made.blobs.items() if blob != made.layers[0]}, store)
    engine.answer("info *", output=f'{tmp_path}\n[["driver-type","io.containerd.snapshotter.v1"]]')
    assert_is_example(read_image("known"), made)
    assert engine.calls.count(SAVE) == 1


def test_layer_blobs_of_an_exported_image_are_returned(engine: DockerStub, tmp_path: Path) -> None:
    made = example_image("gzip")
    add_image(engine, made, tmp_path)
    assert layer_blobs("known") == {digest(blob): len(blob) for blob in made.layers}


def test_failed_export_is_reported_before_the_truncated_archive(engine: DockerStub, tmp_path: Path) -> None:
    add_image(engine, example_image(), tmp_path, save="echo no space left >&2; head -c 70000 {}", exit_code=1)
    with pytest.raises(CommandFailed, match="no space left"):
        read_image("known")


def test_truncated_export_is_refused(engine: DockerStub, tmp_path: Path) -> None:
    add_image(engine, example_image(), tmp_path, save="head -c 70000 {}")
    with pytest.raises(CorruptLayer, match="ends inside"):
        read_image("known")


@pytest.mark.usefixtures("engine")
def test_unknown_name_is_neither_file_nor_image() -> None:
    with pytest.raises(ImageNotFound, match="neither a file nor an image of the engine"):
        read_image("unknown")


def test_reference_needs_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandFailed, match="not installed"):
        read_image("unknown")


def test_prefix_docker_means_the_engine_even_if_a_file_has_the_name(
    engine: DockerStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = example_image()
    add_image(engine, made, tmp_path)
    monkeypatch.chdir(tmp_path)
    write_folder(oci_files(make_image([LAYERS[0]])), tmp_path / "known")
    assert_is_example(read_image("docker:known"), made)
    assert len(read_image("./known").layers) == 1


def test_layout_of_another_kind_is_refused_with_its_path(tmp_path: Path) -> None:
    files = with_file(example_image(), "index.json", b'{"manifests": []}')
    path = str(write_folder(files, tmp_path / "o"))
    with pytest.raises(UnsupportedImage, match="it has no image manifest") as raised:
        read_image(path)
    assert raised.value.image == path


def test_missing_layer_is_read_from_the_cache(tmp_path: Path) -> None:
    made = example_image("zstd")
    options = ReadOptions(cache=tmp_path / "cache")
    folder = write_folder(oci_files(made), tmp_path / "o")
    first = read_image(str(folder), options)
    for blob in made.layers:
        (folder / blob_name(blob)).unlink()
    assert read_image(str(folder), options) == first
    with pytest.raises(MissingBlob):
        read_image(str(folder))


def test_wrong_layer_does_not_poison_the_cache(tmp_path: Path) -> None:
    made = example_image()
    options = ReadOptions(cache=tmp_path / "cache")
    wrong = with_file(made, blob_name(LAYERS[0]), LAYERS[1])
    with pytest.raises(DigestMismatch):
        read_image(str(write_folder(wrong, tmp_path / "wrong")), options)
    assert_is_example(read_image(str(write_folder(oci_files(made), tmp_path / "o")), options), made)


def test_shared_layer_of_an_archive_is_a_link(tmp_path: Path) -> None:
    """Older engines write a layer that two images share once, and a link to it."""
    files = docker_files(make_image([LAYERS[0], LAYERS[0]]))
    second = f"{1:064x}/layer.tar"
    del files[second]
    maker = LayerMaker().symlink(second, f"../{0:064x}/layer.tar")
    for name, content in files.items():
        maker.file(name, content)
    path = tmp_path / "linked.tar"
    path.write_bytes(maker.tar())
    assert [layer.diff_id for layer in read_image(str(path)).layers] == [digest(LAYERS[0])] * 2
