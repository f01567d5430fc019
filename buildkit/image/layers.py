"""Reads the layers of an image, each one once, and verifies digests and sizes against the manifest."""

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from buildkit.image.archive import SMALL_BYTES, Section, archive_entries
from buildkit.image.blobs import BlobStore, MemoryStore, require_sha256
from buildkit.image.errors import CorruptImage, DigestMismatch, LayerTooLarge, MissingBlob
from buildkit.image.gpu_code import find_gpu_code
from buildkit.image.layer_cache import LayerCache
from buildkit.image.layer_stream import ByteSource, Limits, is_compressed
from buildkit.image.layer_tar import LayerContents, read_layer
from buildkit.image.resolve import StoredLayer

__all__ = ["LayerReader"]

_MAGIC_BYTES: Final = 512
# Lists of the files of each package, and the files that name the distribution.
_PACKAGE_LISTS: Final = re.compile(
    r"(?:.*/)?[^/]+\.dist-info/RECORD"
    r"|var/lib/dpkg/status"
    r"|var/lib/dpkg/status\.d/[^/]+"
    r"|var/lib/dpkg/info/[^/]+\.list"
    r"|(?:usr/lib|etc)/os-release"
)


class LayerReader:
    """Reads the layers of one image: from the cache, from a store, or from an archive that comes through a pipe."""

    def __init__(self, image: str, cache_folder: Path | None, limits: Limits) -> None:
        self.image = image
        self.cache = LayerCache(cache_folder)
        self._limits = limits
        self._streamed: dict[str, LayerContents] = {}

    def read_archive(self, stream: ByteSource) -> MemoryStore:
        """Reads every layer of an archive, and returns its small files; `read_all` returns the layers.

        `docker image save` writes the manifest last, so the layers are read before it is known which of them belong to
        the image. Nothing is copied to the disk.

        Raises:
            CorruptImage, LayerError: the archive or a layer is wrong.
        """
        small: dict[str, bytes] = {}
        links: dict[str, str] = {}
        for entry in archive_entries(stream, self.image):
            if entry.link:
                links[entry.name] = entry.link
                continue
            section = Section(stream, entry.size_bytes)
            cached = self.cache.load_blob(f"sha256:{posixpath.basename(entry.name)}")
            if cached is not None:
                self._streamed[entry.name] = cached
            elif _is_layer(section.peek(_MAGIC_BYTES)):
                self._streamed[entry.name] = self._read_blob(section, entry.name)
                self.cache.save(self._streamed[entry.name])
            elif entry.size_bytes <= SMALL_BYTES:
                small[entry.name] = section.take(entry.size_bytes)
            section.skip()
            if section.left_bytes:
                raise CorruptImage(self.image, f"the archive ends inside {entry.name}")
        self._streamed |= {name: self._streamed[link] for name, link in links.items() if link in self._streamed}
        return MemoryStore(small)

    def read_all(self, layers: Sequence[StoredLayer], diff_ids: Sequence[str], store: BlobStore) -> list[LayerContents]:
        """Returns the contents of each layer, the lowest first; *diff_ids* are the digests of their tar archives.

        Raises:
            MissingBlob: a layer is neither in the cache nor in the store.
            DigestMismatch, CorruptImage, LayerError: a layer is not the one that the manifest names, or is wrong.
        """
        contents: dict[str, LayerContents] = {}
        entries = 0
        for layer, diff_id in zip(layers, diff_ids, strict=True):
            if diff_id not in contents:
                contents[diff_id] = self._read_layer(layer, diff_id, store)
            entries += len(contents[diff_id].entries)
            if entries > self._limits.entries:
                raise LayerTooLarge(
                    f"more than {self._limits.entries} entries in its layers; --max-entries raises the limit",
                    layer=self.image,
                )
        return [contents[diff_id] for diff_id in diff_ids]

    def _read_layer(self, layer: StoredLayer, diff_id: str, store: BlobStore) -> LayerContents:
        cached = self.cache.load(require_sha256(diff_id, self.image))
        if cached is not None:
            return cached
        contents = self._streamed.get(layer.name) or self._read_stored(layer, store)
        if layer.digest is not None and contents.blob_digest != layer.digest:
            raise DigestMismatch(self.image, "a layer", wanted=layer.digest, found=contents.blob_digest)
        if layer.blob_bytes is not None and contents.blob_bytes != layer.blob_bytes:
            what = f"layer {layer.digest} has {contents.blob_bytes} bytes, its manifest says {layer.blob_bytes}"
            raise CorruptImage(self.image, what)
        if contents.diff_id != diff_id:
            raise DigestMismatch(self.image, "a layer, unpacked,", wanted=diff_id, found=contents.diff_id)
        return contents

    def _read_stored(self, layer: StoredLayer, store: BlobStore) -> LayerContents:
        source = store.open(layer.name)
        if source is None:
            raise MissingBlob(self.image, f"layer {layer.digest or layer.name} is missing")
        with source:
            contents = self._read_blob(source, layer.digest or layer.name)
        mapped = store.map(layer.name) if contents.compression == "none" else None
        if mapped is not None:
            gpu_code = find_gpu_code(contents.entries, mapped.view, mapped.release_pages)
            contents = msgspec.structs.replace(contents, gpu_code=gpu_code)
        self.cache.save(contents)
        return contents

    def _read_blob(self, source: ByteSource, name: str) -> LayerContents:
        return read_layer(
            source,
            name=f"{self.image}, layer {name}",
            captures=lambda path: _PACKAGE_LISTS.fullmatch(path) is not None,
            limits=self._limits,
        )


def _is_layer(prefix: bytes) -> bool:
    """Returns whether a blob that starts with *prefix* is compressed or a tar archive; an empty one is all zeros."""
    is_empty_tar = len(prefix) == _MAGIC_BYTES and not prefix.strip(b"\0")
    return is_compressed(prefix) or prefix[257:262] == b"ustar" or is_empty_tar
