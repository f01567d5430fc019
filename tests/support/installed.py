"""Installs small packages with a correct RECORD, and reads the tree again."""

from __future__ import annotations

import base64
import csv
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SITE = "lib/python3.13/site-packages"


def digest(content: bytes) -> str:
    """Returns a hash in the notation of RECORD."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def install(root: Path, name: str, files: dict[str, bytes], *, site: str = SITE) -> None:
    """Installs a distribution: `files` by path relative to site-packages."""
    folder = root / site
    rows = []
    info = f"{name}-1.0.dist-info"
    for path, content in {**files, f"{info}/METADATA": f"Name: {name}\nVersion: 1.0\n".encode()}.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        rows.append(f"{path},{digest(content)},{len(content)}\n")
    rows.append(f"{info}/RECORD,,\n")
    (folder / info / "RECORD").write_text("".join(rows))


def untrue_rows(root: Path, *, site: str = SITE) -> list[str]:
    """Returns the rows of RECORD files whose file is missing or has another hash or size."""
    wrong = []
    for record in sorted((root / site).glob("*.dist-info/RECORD")):
        for row in csv.reader(record.read_text().splitlines()):
            path = root / site / row[0]
            content = path.read_bytes() if path.is_file() else None
            if content is None or (row[1] and (row[1], row[2]) != (digest(content), str(len(content)))):
                wrong.append(row[0])
    return wrong


def snapshot(root: Path) -> dict[str, bytes | str]:
    """Returns every file below a folder with its content, or the target of a link."""
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
