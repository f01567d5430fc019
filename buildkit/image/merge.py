"""Merges layers into the file system that a container sees, and lists the stored files that no container sees.

The rules are those of the OCI image specification 1.1, layer.md. In cases that it leaves open, the result is that of
containerd's overlay snapshotter (archive/tar.go); the tests compare the two. Each layer is unpacked into a separate
directory, so a name below a symbolic link follows the link if the same layer made it, and replaces it by a directory if
a lower layer did. Whiteouts hide only the files of lower layers.

There is one difference. In the lowest layer a whiteout has no meaning, and no builder writes one. containerd removes
the files that precede it in the same archive, against the specification; here it hides nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import msgspec

from buildkit.image.errors import CorruptLayer, UnsafePath
from buildkit.image.layer_tar import LayerContents, LayerEntry

__all__ = ["Cause", "MergedFileSystem", "Node", "StoredFile", "Waste", "merge"]

Cause = Literal["overwritten", "deleted", "metadata only"]

_LINK_HOPS: Final = 255  # as in containerd's continuity, fs/path.go


class StoredFile(msgspec.Struct, eq=False, gc=False):
    """The content of one regular file in one layer; `names` counts the visible paths that lead to it."""

    layer: int
    entry: LayerEntry
    names: int = 0


@dataclass(frozen=True, slots=True)
class Waste:
    """A file that a layer stores and no container sees.

    Attributes:
        path: in the merged file system.
        wasted_bytes: its size.
        cause: "metadata only" if the same content was stored again, perhaps with another owner, mode or time.
        stored_by: the position of the layer that stores it.
        caused_by: the position of the layer that replaced or deleted it.
    """

    path: str
    wasted_bytes: int
    cause: Cause
    stored_by: int
    caused_by: int


class Node(msgspec.Struct, eq=False, gc=False):
    """A name in the merged file system; `file` is set for regular files, `children` for directories.

    `entry` is None for a directory that no layer has an entry for.
    """

    layer: int
    entry: LayerEntry | None = None
    file: StoredFile | None = None
    children: "dict[str, Node] | None" = None


@dataclass(slots=True, eq=False)
class MergedFileSystem:
    """The merged file system. `stored` has every regular file of every layer, hidden ones too."""

    root: Node = field(default_factory=lambda: Node(layer=0, children={}))
    stored: list[StoredFile] = field(default_factory=list)
    waste: list[Waste] = field(default_factory=list)

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Yields every name below the root in order, directories before their contents."""
        stack: list[tuple[str, Node]] = [("", self.root)]
        while stack:
            path, node = stack.pop()
            if path:
                yield path, node
            if node.children:
                prefix = f"{path}/" if path else ""
                stack.extend((prefix + name, node.children[name]) for name in sorted(node.children, reverse=True))

    def real_path(self, path: str) -> str | None:
        """Returns *path* with all symbolic links followed, the last part too; None if it leads nowhere."""
        parts, node, hops = _parts(path), self.root, 0
        real: list[str] = []
        while parts:
            name = parts.pop(0)
            if name == "..":
                real = real[:-1]
                node = self._at(real)
                continue
            child = (node.children or {}).get(name)
            if child is None:
                return None
            if child.entry is not None and child.entry.kind == "symlink":
                hops += 1
                if hops > _LINK_HOPS:
                    return None
                parts = _parts(child.entry.link) + parts
                if child.entry.link.startswith("/"):
                    real, node = [], self.root
                continue
            real.append(name)
            node = child
        return "/".join(real)

    def _at(self, parts: Sequence[str]) -> Node:
        node = self.root
        for part in parts:
            node = (node.children or {})[part]
        return node


def merge(layers: Sequence[LayerContents]) -> MergedFileSystem:
    """Applies *layers*, the lowest first.

    Raises:
        CorruptLayer: a hard link without target, or a file in the place of a directory.
        UnsafePath: a cycle of symbolic links on the way to an entry.
    """
    file_system = MergedFileSystem()
    for position, layer in enumerate(layers):
        _LayerApplier(file_system, position).apply(layer)
    return file_system


class _LayerApplier:
    """Applies one layer to the file system."""

    def __init__(self, file_system: MergedFileSystem, layer: int) -> None:
        self._fs = file_system
        self._layer = layer
        self._hidden: dict[str, tuple[int, StoredFile]] = {}  # files hidden by whiteouts: index in `waste`, content
        self._is_hiding = False
        self._last: tuple[str, Node] | None = None  # the folder of the last entry: archives list files by folder

    def apply(self, layer: LayerContents) -> None:
        """Applies all whiteouts first, since they never hide files of their own layer; then adds the entries."""
        self._is_hiding = True
        for entry in layer.entries:
            if entry.kind not in {"whiteout", "opaque"}:
                continue
            folder, _, name = entry.path.rpartition("/")
            parent = self._find(folder)
            if parent is not None and parent.children is not None:
                names = [name.removeprefix(".wh.")] if entry.kind == "whiteout" else list(parent.children)
                for each in names:
                    self._remove(parent.children, each, folder)
        self._is_hiding = False
        for entry in layer.entries:
            if entry.path and entry.kind not in {"whiteout", "opaque"}:
                self._add(entry)
            elif entry.kind in {"whiteout", "opaque"}:
                self._parent(entry.path)

    def _find(self, path: str) -> Node | None:
        node: Node | None = self._fs.root
        for part in _parts(path):
            if node is None or node.children is None:
                return None
            node = node.children.get(part)
        return node

    def _add(self, entry: LayerEntry) -> None:
        parent, path = self._parent(entry.path)
        name = path.rpartition("/")[2]
        if not name or parent.children is None:
            return
        old = parent.children.get(name)
        if entry.kind == "directory" and old is not None and old.children is not None:
            old.layer, old.entry = self._layer, entry
            return
        if entry.kind == "hardlink":
            new = self._linked(entry)
        elif entry.kind == "file":
            stored = StoredFile(self._layer, entry, names=1)
            self._fs.stored.append(stored)
            new = Node(self._layer, entry, file=stored)
            self._correct_cause(path, stored)
        else:
            new = Node(self._layer, entry, children={} if entry.kind == "directory" else None)
        if old is not None:
            self._drop(old, path, new.file)
        parent.children[name] = new

    def _linked(self, entry: LayerEntry) -> Node:
        """Makes a hard link: another name for a file of this layer or, as some builders write it, of a lower one."""
        folder, _, name = entry.link.rpartition("/")
        parent = self._find(self._resolved(folder))
        target = None if parent is None else (parent.children or {}).get(name)
        if target is None or target.children is not None:
            raise CorruptLayer(f"a hard link to {entry.link!r}, which is not a file", path=entry.path)
        if target.file is not None:
            target.file.names += 1
        return Node(self._layer, target.entry, file=target.file)

    def _resolved(self, folder: str) -> str:
        """Returns *folder* after following the symbolic links that this layer made."""
        parts, real, hops = _parts(folder), list[str](), 0
        while parts:
            name = parts.pop(0)
            if name == "..":
                real = real[:-1]
                continue
            node = self._find("/".join([*real, name]))
            entry = None if node is None or node.layer != self._layer else node.entry
            if entry is not None and entry.kind == "symlink":
                hops = _next_hop(hops, folder)
                parts = _parts(entry.link) + parts
                real = [] if entry.link.startswith("/") else real
            else:
                real.append(name)
        return "/".join(real)

    def _parent(self, path: str) -> tuple[Node, str]:
        """Returns the directory of *path*, made if it is missing, and *path* with links followed."""
        folder, _, name = path.rpartition("/")
        if self._last is not None and self._last[0] == folder:
            return self._last[1], path
        node, parts, real, hops = self._fs.root, folder.split("/") if folder else [], list[str](), 0
        is_straight = True
        while parts:
            part = parts.pop(0)
            if part == "..":
                real = real[:-1]
                node = self._fs.root
                for each in real:
                    node = (node.children or {})[each]
                continue
            children = node.children
            if children is None:
                raise CorruptLayer("it is below a file", path=path)
            child = children.get(part)
            if child is not None and child.children is None and child.layer == self._layer:
                if child.entry is None or child.entry.kind != "symlink":
                    raise CorruptLayer("it is below a file of the same layer", path=path)
                hops = _next_hop(hops, path)
                is_straight = False
                parts = _parts(child.entry.link) + parts
                if child.entry.link.startswith("/"):
                    node, real = self._fs.root, []
                continue
            real.append(part)
            if child is None or child.children is None:
                made = Node(self._layer, children={})
                if child is not None:
                    self._drop(child, "/".join(real), None)
                children[part] = child = made
            node = child
        if is_straight:
            self._last = (folder, node)
        return node, path if is_straight else "/".join([*real, name])

    def _remove(self, siblings: dict[str, Node], name: str, folder: str) -> None:
        """Hides a name of a lower layer."""
        child = siblings.pop(name, None)
        if child is not None:
            self._drop(child, f"{folder}/{name}" if folder else name, None, is_deleted=True)

    def _drop(self, node: Node, path: str, successor: StoredFile | None, *, is_deleted: bool = False) -> None:
        """Removes a name and everything below it; content that loses its last name is waste."""
        self._last = None
        stack = [(path, node, is_deleted)]
        while stack:
            removed_path, each, is_deleted = stack.pop()
            stack.extend((f"{removed_path}/{name}", child, True) for name, child in (each.children or {}).items())
            stored = each.file
            if stored is None:
                continue
            stored.names -= 1
            if stored.names == 0 and stored.entry.size_bytes:
                if self._is_hiding:
                    self._hidden[removed_path] = (len(self._fs.waste), stored)
                cause: Cause = "deleted" if is_deleted else _replaced(stored, successor)
                self._fs.waste.append(Waste(removed_path, stored.entry.size_bytes, cause, stored.layer, self._layer))

    def _correct_cause(self, path: str, successor: StoredFile) -> None:
        """Corrects "deleted" to the cause of a replacement if the layer also writes the path that its whiteout hid."""
        hidden = self._hidden.pop(path, None)
        if hidden is not None:
            place, stored = hidden
            self._fs.waste[place] = replace(self._fs.waste[place], cause=_replaced(stored, successor))


def _replaced(stored: StoredFile, successor: StoredFile | None) -> Cause:
    is_same = successor is not None and successor.entry.sha256 == stored.entry.sha256
    return "metadata only" if is_same else "overwritten"


def _next_hop(hops: int, path: str) -> int:
    if hops >= _LINK_HOPS:
        raise UnsafePath("a cycle of symbolic links", path=path)
    return hops + 1


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]
