"""Makes layers and images from a few lines: well-formed ones as builders write them, and malformed ones."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import zstandard

from buildkit.image.analyze import analyze
from buildkit.image.layer_stream import Limits
from buildkit.image.layer_tar import LayerContents, read_layer
from buildkit.image.model import Measurement
from buildkit.image.read import ReadOptions, read_image

Compression = Literal["none", "gzip", "zstd"]
Form = Literal["folder", "archive"]


@dataclass
class LayerMaker:
    """Collects the entries of one layer; each method adds an entry and returns the maker."""

    format: int = tarfile.PAX_FORMAT
    _entries: list[tuple[tarfile.TarInfo, bytes]] = field(default_factory=list)

    def add(self, path: str, kind: bytes, content: bytes = b"", **fields: object) -> "LayerMaker":
        info = tarfile.TarInfo(path)
        info.type, info.size, info.mode = kind, len(content), 0o644
        for name, value in fields.items():
            setattr(info, name, value)
        self._entries.append((info, content))
        return self

    def file(self, path: str, content: bytes | str = b"", **fields: object) -> "LayerMaker":
        data = content.encode() if isinstance(content, str) else content
        return self.add(path, tarfile.REGTYPE, data, **fields)

    def directory(self, path: str, **fields: object) -> "LayerMaker":
        return self.add(path, tarfile.DIRTYPE, b"", **{"mode": 0o755, **fields})

    def symlink(self, path: str, target: str) -> "LayerMaker":
        return self.add(path, tarfile.SYMTYPE, linkname=target, mode=0o777)

    def hardlink(self, path: str, target: str) -> "LayerMaker":
        return self.add(path, tarfile.LNKTYPE, linkname=target)

    def whiteout(self, path: str) -> "LayerMaker":
        folder, _, name = path.rpartition("/")
        return self.file(f"{folder}/.wh.{name}" if folder else f".wh.{name}")

    def opaque(self, folder: str) -> "LayerMaker":
        return self.file(f"{folder}/.wh..wh..opq")

    def tar(self) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=self.format) as archive:
            for info, content in self._entries:
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def compress(tar: bytes, compression: Compression) -> bytes:
    match compression:
        case "gzip":
            return gzip.compress(tar, mtime=0)
        case "zstd":
            return zstandard.ZstdCompressor().compress(tar)
        case "none":
            return tar


def read_blob(
    blob: bytes, *, limits: Limits | None = None, captures: Callable[[str], bool] = lambda _path: False
) -> LayerContents:
    """Reads a layer, which is called "x" in error messages."""
    return read_layer(io.BytesIO(blob), name="x", captures=captures, limits=limits)


def raw_header(name: bytes, kind: bytes, size: bytes, *, link: bytes = b"", magic: bytes = b"ustar\x0000") -> bytes:
    """Returns a header block with these fields, right or wrong, and a correct checksum."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124 : 124 + len(size)] = size
    block[136:148], block[156:157] = b"00000000000\0", kind
    block[157 : 157 + len(link)] = link
    block[257 : 257 + len(magic)] = magic
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@dataclass(frozen=True)
class MadeImage:
    """An image as blobs by name, to write as a folder or an archive."""

    blobs: Mapping[str, bytes]
    layers: Sequence[bytes]
    config: bytes
    manifest: bytes


def make_image(
    layers: Sequence[bytes],
    *,
    compression: Compression = "none",
    instructions: Sequence[str] | None = None,
    platform: tuple[str, str] = ("linux", "amd64"),
    run: Mapping[str, object] | None = None,
) -> MadeImage:
    stored = [compress(layer, compression) for layer in layers]
    history: list[dict[str, object]] = [{"created_by": "ENV A=B", "empty_layer": True}]
    history += [{"created_by": text} for text in instructions or [f"RUN step {n}" for n in range(len(layers))]]
    config = json.dumps(
        {
            "os": platform[0],
            "architecture": platform[1],
            "config": run or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
            "history": history,
        }
    ).encode()
    media_type = "application/vnd.oci.image.layer.v1.tar" + ("" if compression == "none" else f"+{compression}")
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor(blob, media_type) for blob in stored],
        }
    ).encode()
    return MadeImage({blob_name(blob): blob for blob in [*stored, config, manifest]}, stored, config, manifest)


def blob_name(content: bytes) -> str:
    return "blobs/" + digest(content).replace(":", "/")


def descriptor(content: bytes, media_type: str, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(content), "size": len(content), **more}


def oci_files(image: MadeImage, *, tag: str = "example:1", attested: bool = False) -> dict[str, bytes]:
    """Returns the files of an OCI layout; *attested* adds an index with an attestation manifest, as BuildKit does."""
    root = descriptor(image.manifest, "application/vnd.oci.image.manifest.v1+json")
    files = dict(image.blobs)
    if attested:
        root["platform"] = {"os": "linux", "architecture": "amd64"}
        statement = b'{"predicateType": "https://slsa.dev/provenance/v0.2"}'
        attestation = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": descriptor(b"{}", "application/vnd.oci.image.config.v1+json"),
                "layers": [descriptor(statement, "application/vnd.in-toto+json")],
            }
        ).encode()
        unknown = descriptor(
            attestation,
            "application/vnd.oci.image.manifest.v1+json",
            platform={"os": "unknown", "architecture": "unknown"},
            annotations={"vnd.docker.reference.type": "attestation-manifest"},
        )
        index = json.dumps({"schemaVersion": 2, "manifests": [root, unknown]}).encode()
        root = descriptor(index, "application/vnd.oci.image.index.v1+json")
        files |= {blob_name(each): each for each in (statement, attestation, index, b"{}")}
    root["annotations"] = {
        "io.containerd.image.name": tag,
        "org.opencontainers.image.ref.name": tag.rsplit(":", maxsplit=1)[-1],
    }
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [root]}).encode()
    return files


def docker_files(image: MadeImage, *, tag: str = "example:1") -> dict[str, bytes]:
    """Returns the files of `docker image save` before 25.0, layers first as it wrote them."""
    names = [f"{number:064x}/layer.tar" for number in range(len(image.layers))]
    config_name = f"{digest(image.config).removeprefix('sha256:')}.json"
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": names}]
    return {
        **dict(zip(names, image.layers, strict=True)),
        config_name: image.config,
        "manifest.json": json.dumps(manifest).encode(),
    }


def write_folder(files: Mapping[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_archive(files: Mapping[str, bytes], path: Path) -> Path:
    maker = LayerMaker()
    for name, content in files.items():
        maker.file(name, content)
    path.write_bytes(maker.tar())
    return path


def measure_layers(
    folder: Path,
    *layers: LayerMaker,
    instructions: Sequence[str] | None = None,
    compression: Compression = "none",
    run: Mapping[str, object] | None = None,
    form: Form = "folder",
    cache: Path | None = None,
) -> Measurement:
    """Measures an image of *layers*, the lowest first, which it writes below *folder* as an OCI layout."""
    made = make_image([layer.tar() for layer in layers], compression=compression, instructions=instructions, run=run)
    path = write_layout(oci_files(made), folder / "image", form)
    return analyze(read_image(str(path), ReadOptions(cache=cache)))


def write_layout(files: Mapping[str, bytes], path: Path, form: Form) -> Path:
    """Writes the files of an image as a folder or as a tar archive."""
    return write_folder(files, path) if form == "folder" else write_archive(files, path.with_suffix(".tar"))
