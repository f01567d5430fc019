"""Walks the file system of the image and prints the facts that the checks need, as JSON.

Runs inside a container of the image, as root with no capability but CAP_DAC_READ_SEARCH, and uses the standard library
of the image's Python only (3.11 or newer). Reads the headers of all ELF files, and the contents of executables, which
are few.

    python3 -I - '{"virtual_environment": "/opt/venv", "application": "/app", "uncompiled": []}' < filesystem.py
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import mmap
import os
import re
import stat
import struct
import sys
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any, BinaryIO

__all__: list[str] = []

DUPLICATE_MINIMUM_BYTES = 65536  # a guess: smaller duplicates (licences, empty modules) do not matter
PROBLEMS_MAXIMUM = 200  # compiling all 13 000 sources, to skip those that cannot be compiled, takes a minute
SIGNATURE_MAXIMUM_BYTES = 512 * 1024 * 1024
PT_DYNAMIC, PT_INTERP, PT_LOAD = 2, 3, 1  # System V ABI, chapter 5, "Program Header"
DT_NEEDED, DT_STRTAB, DT_SONAME, DT_RPATH, DT_RUNPATH, DT_STRSZ = 1, 5, 14, 15, 29, 10  # the same, "Dynamic Section"
ET_EXEC, ET_DYN = 2, 3
FATBIN_MAGIC = 0xBA55ED50  # undocumented by its vendor; layout measured against cuobjdump 13.5 on CUDA 13 libraries
FATBIN_CUBIN = 2
LOADED_DEBUG_SECTION = ".debug_gdb_scripts"  # 34 bytes that rustc marks as loaded; strip keeps it

# Byte strings that identify a tool under any name: only its file contains all of them. Measured with gcc 12 and 14,
# binutils 2.40 and 2.44, make 4.3 and 4.4, uv 0.13.
SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "a part of GCC (driver, cc1, collect2)": (b"COLLECT_GCC_OPTIONS",),
    "the linker ld": (b"LDEMULATION",),
    "the linker gold": (b"../../gold/",),
    "the assembler as": (b"GNU assembler",),
    "make": (b"GNU Make", b"MAKEFILES", b".SHELLFLAGS"),
    "uv": (b"UV_INTERNAL__",),
    "uvx": (b"Could not find the `uv` binary",),
}


class Corrupt(Exception):
    """The file begins like an ELF file but cannot be parsed."""


def read_at(source: BinaryIO, offset: int, size: int) -> bytes:
    """Returns exactly *size* bytes from *offset*; raises Corrupt if the file is too short."""
    source.seek(offset)
    data = source.read(size)
    if len(data) != size:
        raise Corrupt
    return data


def name_at(table: bytes, offset: int) -> str:
    """Returns the NUL-terminated string at *offset*."""
    end = table.find(b"\0", offset)
    if end < 0:
        raise Corrupt
    return table[offset:end].decode("utf-8", "replace")


def cubin_targets(source: BinaryIO, offset: int, size: int) -> list[str]:
    """Returns the GPUs (`sm_NN`) with code in one section of fat binaries."""
    targets: set[str] = set()
    position, end = offset, offset + size
    while position + 16 <= end:
        magic, _version, header_bytes, container_bytes = struct.unpack("<IHHQ", read_at(source, position, 16))
        if magic != FATBIN_MAGIC:
            position += 8
            continue
        entry, stop = position + header_bytes, position + header_bytes + container_bytes
        while entry + 64 <= stop:
            header = read_at(source, entry, 64)
            kind, _flags, entry_bytes, payload_bytes = struct.unpack_from("<HHIQ", header)
            if kind == FATBIN_CUBIN:
                targets.add(f"sm_{struct.unpack_from('<I', header, 28)[0]}")
            if entry_bytes + payload_bytes == 0:
                raise Corrupt
            entry += entry_bytes + payload_bytes
        position = stop
    return sorted(targets)


def dynamic_facts(source: BinaryIO, segments: list[tuple[int, int, int, int]], layout: str) -> dict[str, Any]:
    """Returns needed libraries, soname and search paths from the dynamic segment."""
    loads = [segment for segment in segments if segment[0] == PT_LOAD]
    dynamic = next((segment for segment in segments if segment[0] == PT_DYNAMIC), None)
    if dynamic is None:
        return {}
    word = struct.calcsize(layout)
    raw = read_at(source, dynamic[1], dynamic[3] // (2 * word) * 2 * word)
    values = struct.unpack(f"<{len(raw) // word}{layout[1]}", raw)
    entries = list(zip(values[::2], values[1::2], strict=True))
    found = dict(entries)
    if DT_STRTAB not in found:
        return {}
    address = found[DT_STRTAB]
    home = next((load for load in loads if load[2] <= address < load[2] + load[3]), None)
    if home is None:
        raise Corrupt
    strings = read_at(source, home[1] + address - home[2], found[DT_STRSZ])

    def text(tag: int) -> str | None:
        return name_at(strings, found[tag]) if tag in found else None

    return {
        "needed": [name_at(strings, value) for tag, value in entries if tag == DT_NEEDED],
        "soname": text(DT_SONAME),
        "rpath": text(DT_RPATH),
        "runpath": text(DT_RUNPATH),
    }


def elf_facts(source: BinaryIO) -> dict[str, Any]:
    """Returns kind, symbol sections, GPU targets and dynamic facts of one ELF file.

    Field offsets are those of the System V ABI, chapter 4, "ELF Header" and "Sections", for both word sizes.
    """
    ident = read_at(source, 0, 64)
    wide = ident[4] == 2
    if ident[5] != 1:
        raise Corrupt  # big-endian: no platform that this project builds for
    layout = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    header = struct.unpack_from(layout, ident, 16)
    kind, phoff, shoff, phentsize, phnum, shentsize, shnum, shstrndx = (header[0], header[4], header[5], *header[8:])
    segments = []
    for index in range(phnum):
        raw = read_at(source, phoff + index * phentsize, phentsize)
        if wide:
            p_type, _flags, p_offset, p_vaddr, _paddr, p_filesz = struct.unpack_from("<IIQQQQ", raw)
        else:
            p_type, p_offset, p_vaddr, _paddr, p_filesz = struct.unpack_from("<IIIII", raw)
        segments.append((p_type, p_offset, p_vaddr, p_filesz))
    sections: list[tuple[str, int, int]] = []
    if shoff and shnum:
        table = read_at(source, shoff, shentsize * shnum)
        fields = "<IIQQQQ" if wide else "<IIIIII"
        rows = [struct.unpack_from(fields, table, index * shentsize) for index in range(shnum)]
        names = read_at(source, rows[shstrndx][4], rows[shstrndx][5])
        sections = [(name_at(names, row[0]), row[4], row[5]) for row in rows]
    symbols = [
        name
        for name, _, _ in sections
        if name == ".symtab" or (name.startswith((".debug", ".zdebug")) and name != LOADED_DEBUG_SECTION)
    ]
    symbol_bytes = sum(size for name, _, size in sections if name in symbols)
    fatbins = [(offset, size) for name, offset, size in sections if name == ".nv_fatbin"]
    return {
        "is_executable": kind == ET_EXEC or (kind == ET_DYN and any(row[0] == PT_INTERP for row in segments)),
        "symbol_sections": symbols,
        "symbol_bytes": symbol_bytes,
        "cubin_targets": sorted({t for offset, size in fatbins for t in cubin_targets(source, offset, size)}),
        **dynamic_facts(source, segments, "<Q" if wide else "<I"),
    }


def signature_of(source: BinaryIO, size_bytes: int) -> str | None:
    """Returns the build tool that an executable contains, under any name; None if it is another program."""
    if not 0 < size_bytes <= SIGNATURE_MAXIMUM_BYTES:
        return None
    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as body:
        for tool, marks in SIGNATURES.items():
            if all(body.find(mark) >= 0 for mark in marks):
                return tool
    return None


def walk(root: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str]]:
    """Returns the files below *root* on the same device, the ELF files among them, and the recognized files."""
    device = os.lstat(root).st_dev
    files: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    recognized: dict[str, str] = {}
    seen: set[int] = set()
    pending = [root]
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                is_elsewhere = status.st_dev != device  # a volume counts as an empty folder
                if entry.path == "/.dockerenv" or (is_elsewhere and not stat.S_ISDIR(status.st_mode)):
                    continue
                fact = {"path": entry.path, "mode": stat.S_IMODE(status.st_mode), "uid": status.st_uid}
                fact |= {"gid": status.st_gid, "size_bytes": 0, "kind": "other"}
                files.append(fact)
                if stat.S_ISDIR(status.st_mode):
                    fact["kind"] = "folder"
                    pending += [] if is_elsewhere else [entry.path]
                elif stat.S_ISLNK(status.st_mode):
                    fact |= {"kind": "link", "link_target": os.readlink(entry.path)}
                elif stat.S_ISREG(status.st_mode):
                    fact |= {"kind": "file", "size_bytes": status.st_size}
                    if status.st_mode & 0o111 and has_capabilities(entry.path):
                        fact["has_capabilities"] = True
                    if status.st_ino not in seen:
                        inspect(entry.path, status.st_size, objects, recognized)
                    if status.st_nlink > 1:
                        seen.add(status.st_ino)
    return files, objects, recognized


def has_capabilities(path: str) -> bool:
    """Whether the file has capabilities (capabilities(7), "File capabilities")."""
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def inspect(path: str, size_bytes: int, objects: list[dict[str, Any]], recognized: dict[str, str]) -> None:
    """Adds the file to *objects* if it is ELF, and to *recognized* if its contents show a tool, archive or cache."""
    if size_bytes < 8 or path.endswith((".py", ".pyc")):
        return
    with open(path, "rb") as source:
        magic = source.read(8)
        if magic[:4] == b"\x7fELF":
            try:
                fact = {"path": path, **elf_facts(source)}
            except (Corrupt, struct.error, IndexError, OverflowError):
                fact = {"path": path, "is_corrupt": True}
            objects.append(fact)
            if fact.get("is_executable", True) or ".so" not in os.path.basename(path):
                tool = signature_of(source, size_bytes)
                if tool:
                    recognized[path] = tool
        elif magic == b"!<arch>\n":
            is_package = read_at(source, 8, 13) == b"debian-binary" if size_bytes > 21 else False
            recognized[path] = "a Debian package" if is_package else "a static library"
        elif magic[:4] == b"cc=4":
            recognized[path] = "an entry of pip's HTTP cache"


def library_folders() -> list[str]:
    """Returns the folders that the loader searches by default: those of /etc/ld.so.conf, and the built-in ones."""
    folders: list[str] = []

    def read(pattern: str) -> None:
        directory, _, name = pattern.rpartition("/")
        matcher = re.compile(name.replace(".", r"\.").replace("*", ".*") + r"\Z")
        names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
        for found in (f"{directory}/{candidate}" for candidate in names if matcher.match(candidate)):
            with open(found, encoding="utf-8") as lines:
                for line in (raw.split("#")[0].strip() for raw in lines):
                    if line.startswith("include "):
                        read(os.path.join("/etc", line.split(None, 1)[1]))
                    elif line:
                        folders.append(line)

    read("/etc/ld.so.conf")
    triplets = [f"/usr/lib/{name}" for name in os.listdir("/usr/lib") if name.endswith("-linux-gnu")]
    return [*folders, *triplets, "/lib", "/usr/lib", "/lib64", "/usr/lib64"]


def resolve(objects: list[dict[str, Any]]) -> None:
    """Adds `unresolved` to each object: the needed libraries that the loader would not find (ld.so(8), search order).

    Uses the image's LD_LIBRARY_PATH, and RPATH only if there is no RUNPATH.
    """
    environment = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    system = library_folders()
    known: dict[tuple[str, str], bool] = {}

    def exists(folder: str, name: str) -> bool:
        key = (folder, name)
        if key not in known:
            known[key] = os.path.exists(f"{folder}/{name}")
        return known[key]

    for fact in objects:
        origin = os.path.dirname(os.path.realpath(fact["path"]))
        own = (fact.get("runpath") or fact.get("rpath") or "").split(":")
        folders = [item.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for item in own if item]
        fact["unresolved"] = [
            name
            for name in fact.get("needed", [])
            if not any(exists(folder, name) for folder in [*environment, *folders, *system])
        ]


def duplicates(files: list[dict[str, Any]]) -> list[list[str]]:
    """Returns groups of paths of large files with equal contents; hard links to one file count once."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for fact in files:
        if fact["kind"] == "file" and fact["size_bytes"] >= DUPLICATE_MINIMUM_BYTES:
            by_size[fact["size_bytes"]].append(fact["path"])
    groups: list[list[str]] = []
    for paths in by_size.values():
        if len(paths) > 1:
            by_content: dict[str, dict[int, str]] = defaultdict(dict)
            for path in paths:
                with open(path, "rb") as source:
                    digest = hashlib.file_digest(source, "sha256").hexdigest()
                by_content[digest].setdefault(os.stat(path).st_ino, path)
            groups += [sorted(same.values()) for same in by_content.values() if len(same) > 1]
    return groups


def bytecode_problems(
    files: list[dict[str, Any]], roots: list[str], uncompiled: tuple[str, ...] = ()
) -> dict[str, str]:
    """Returns path -> problem of .py files in *roots*: bytecode missing, of another Python, or older than its source.

    A path that begins with one of *uncompiled* needs no bytecode; existing bytecode must be usable all the same.

    PEP 552 defines the first 16 bytes: magic number, flags, then either modification time and size of the source, or
    its hash. A file that this Python cannot compile (a template, a test of syntax errors) needs no bytecode.
    """
    problems: dict[str, str] = {}
    prefixes = tuple(f"{root}/" for root in roots)
    for fact in files:
        path = fact["path"]
        if fact["kind"] != "file" or not path.endswith(".py") or not path.startswith(prefixes):
            continue
        cache = importlib.util.cache_from_source(path)
        problem = None
        if os.path.exists(cache):
            with open(cache, "rb") as source:
                header = source.read(16)
            if len(header) < 16 or header[:4] != importlib.util.MAGIC_NUMBER:
                problem = "its bytecode is for another Python"
            elif header[4] & 1 == 0:
                modified, size_bytes = struct.unpack_from("<II", header, 8)
                status = os.stat(path)
                if (modified, size_bytes) != (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF):
                    problem = "its bytecode is stale: the source changed after it was compiled"
        elif not path.startswith(uncompiled):
            with open(path, "rb") as source:
                text = source.read()
            try:
                compile(text, path, "exec", dont_inherit=True)
                problem = "it has no bytecode"
            except (SyntaxError, ValueError):
                continue
        if problem:
            problems[path] = problem
        if len(problems) == PROBLEMS_MAXIMUM:
            problems["other files"] = f"not examined after the first {len(problems)} problems"
            break
    return problems


def dpkg_packages() -> dict[str, str]:
    """Returns name -> version of the Debian packages that are installed, completely or partly."""
    packages: dict[str, str] = {}
    try:
        with open("/var/lib/dpkg/status", encoding="utf-8", errors="replace") as database:
            paragraphs = database.read().split("\n\n")
    except OSError:
        return packages
    for paragraph in paragraphs:
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith((" installed", " unpacked", " half-configured", " half-installed")):
            packages[fields["Package"]] = fields.get("Version", "")
    return packages


def distributions(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the installed Python distributions: name, version and metadata folder."""
    found: list[dict[str, Any]] = []
    for fact in files:
        path = PurePosixPath(fact["path"])
        if path.name not in ("METADATA", "PKG-INFO") or path.parent.suffix not in (".dist-info", ".egg-info"):
            continue
        with open(path, encoding="utf-8", errors="replace") as metadata:
            head = metadata.read().split("\n\n", 1)[0]
        fields = dict(re.findall(r"^(Name|Version): (.*)$", head, re.MULTILINE))
        found.append(
            {"name": fields.get("Name", ""), "version": fields.get("Version", ""), "path": str(path.parent)},
        )
    return found


def main() -> None:
    """Prints the facts; the argument has the folders of the virtual environment and of the application."""
    arguments = json.loads(sys.argv[1])
    files, objects, recognized = walk("/")
    resolve(objects)
    sites = sorted(
        fact["path"]
        for fact in files
        if fact["kind"] == "folder" and fact["path"].endswith(("/site-packages", "/dist-packages"))
    )
    environment = arguments["virtual_environment"]
    own = [site for site in sites if "/lib/python3/" not in site]  # Debian's packages compile their own
    roots = [site for site in own if site.startswith(f"{environment}/")] if environment else own
    facts = {
        "python": {"version": sys.version.split()[0], "executable": sys.executable, "prefix": sys.prefix},
        "site_packages": sites,
        "files": files,
        "objects": objects,
        "recognized": recognized,
        "duplicates": duplicates(files),
        "bytecode_problems": bytecode_problems(
            files,
            [*roots, arguments["application"]],
            tuple(f"{root}/{start}" for root in roots for start in arguments["uncompiled"]),
        ),
        "packages": dpkg_packages(),
        "distributions": distributions(files),
    }
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
