"""Reads damaged archives and documents of any form: each is refused by a typed error, or has no effect."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildkit.errors import BuildkitError
from buildkit.image.analyze import analyze
from buildkit.image.errors import ImageError, LayerError
from buildkit.image.read import read_image
from tests.support.example_image import LAYERS, example_image
from tests.support.images import LayerMaker, blob_name, digest, docker_files, oci_files, write_folder

ARCHIVES: dict[str, dict[str, bytes]] = {
    "oci": oci_files(example_image("gzip"), attested=True),
    "docker": docker_files(example_image()),
}
KEYS = ["digest", "size", "mediaType", "layers", "config", "rootfs", "diff_ids", "history", "annotations", "platform"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_archive_is_refused_or_unchanged(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Truncated anywhere, or with bytes changed anywhere."""
    maker = LayerMaker()
    for name, content in ARCHIVES[data.draw(st.sampled_from(sorted(ARCHIVES)))].items():
        maker.file(name, content)
    archive = bytearray(maker.tar())
    if data.draw(st.booleans()):
        del archive[data.draw(st.integers(0, len(archive))) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if archive:
            archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(archive)
    try:
        image = read_image(str(path))
    except BuildkitError as error:
        refusal = error
    else:
        analyze(image)
        assert {layer.diff_id for layer in image.layers} <= {digest(layer) for layer in LAYERS}
        return
    assert refusal.exit_code == 3


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """One value of a valid document is replaced by any other; the digests that depend on it are corrected."""
    made = example_image()
    which = data.draw(st.sampled_from(["index.json", "manifest", "config"]))
    config = mutated(made.config, data) if which == "config" else made.config
    manifest = json.loads(made.manifest)
    manifest["config"] |= {"digest": digest(config), "size": len(config)}
    raw = json.dumps(manifest).encode()
    raw = mutated(raw, data) if which == "manifest" else raw
    blobs = {**made.blobs, blob_name(config): config, blob_name(raw): raw}
    files = oci_files(replace(made, config=config, manifest=raw, blobs=blobs))
    if which == "index.json":
        files["index.json"] = mutated(files["index.json"], data)
    path = write_folder(files, tmp_path_factory.mktemp("layout"))
    try:
        image = read_image(str(path))
    except (ImageError, LayerError) as error:
        refusal = str(error)
    else:
        assert {layer.diff_id for layer in image.layers} <= {digest(layer) for layer in LAYERS}
        assert analyze(image).totals.layers == len(image.layers)
        return
    assert refusal.startswith(str(path))


def mutated(document: bytes, data: st.DataObject) -> bytes:
    """Replaces one value somewhere in a document."""
    root: Any = json.loads(document)
    node = root
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            node[key] = data.draw(JSON)
            return json.dumps(root).encode()
        node = node[key]
