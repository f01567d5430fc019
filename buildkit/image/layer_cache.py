"""Caches the contents of layers by digest, so that the same layer is never read twice."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from buildkit.image.layer_tar import FORMAT_VERSION, LayerContents

__all__ = ["LayerCache"]

_CACHE_BYTES: Final = 1 << 30  # a layer of 50,000 files takes 8 MB


class LayerCache:
    """Contents of layers by diff ID, and notes about images, in a folder that may be deleted at any time.

    Without a folder it is always empty. Files are replaced atomically; an unreadable one counts as absent. If the
    folder exceeds 1 GiB, the least recently used files are removed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def has(self, diff_id: str) -> bool:
        """Returns whether there is a file for this layer; `load` may still find it unreadable."""
        path = self._path("layer", diff_id)
        return path is not None and path.exists()

    def load(self, diff_id: str) -> LayerContents | None:
        """Returns the layer with this diff ID; None if it is not in the cache or not readable."""
        try:
            contents = msgspec.msgpack.decode(self._read("layer", diff_id), type=LayerContents)
        except msgspec.DecodeError:
            return None
        if contents.format_version != FORMAT_VERSION or contents.diff_id != diff_id:
            return None
        return contents

    def save(self, contents: LayerContents) -> None:
        """Saves a layer, under its diff ID and under the digest of its blob."""
        self._write("layer", contents.diff_id, msgspec.msgpack.encode(contents))
        if contents.blob_digest != contents.diff_id:
            self._write("blob", contents.blob_digest, contents.diff_id.encode())
        self._prune()

    def load_blob(self, digest: str) -> LayerContents | None:
        """Returns the layer with this digest of its blob or tar archive; None as in `load`."""
        return self.load(digest) or self.load(self._read("blob", digest).decode(errors="replace"))

    def load_note(self, kind: str, digest: str) -> bytes:
        """Returns the bytes that `save_note` saved, empty if there are none."""
        return self._read(kind, digest)

    def save_note(self, kind: str, digest: str, content: bytes) -> None:
        """Saves a few bytes of one *kind* about the image with this digest."""
        self._write(kind, digest, content)

    def _path(self, kind: str, digest: str) -> Path | None:
        algorithm, _, value = digest.partition(":")
        if self._folder is None or algorithm != "sha256" or not value.isalnum():
            return None
        return self._folder / f"{kind}-{value}"

    def _read(self, kind: str, digest: str) -> bytes:
        path = self._path(kind, digest)
        try:
            content = b"" if path is None else path.read_bytes()
        except OSError:
            return b""
        if path is not None and content:
            with suppress(OSError):
                os.utime(path)
        return content

    def _write(self, kind: str, digest: str, content: bytes) -> None:
        path = self._path(kind, digest)
        if path is not None:
            part = path.with_name(f".{path.name}.{os.getpid()}")
            part.write_bytes(content)
            part.replace(path)

    def _prune(self) -> None:
        if self._folder is None:
            return
        files = []
        for path in self._folder.iterdir():
            with suppress(OSError):  # another process may remove it first
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        total_bytes = sum(size_bytes for _, size_bytes, _ in files)
        for _, size_bytes, path in sorted(files):
            if total_bytes <= _CACHE_BYTES:
                return
            path.unlink(missing_ok=True)
            total_bytes -= size_bytes
