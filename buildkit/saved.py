"""Values that are saved as JSON and loaded again, each with the version of its schema."""

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from buildkit.errors import BuildkitError

__all__ = ["SavedUnreadable", "load", "save", "schema_of"]

_T = TypeVar("_T")


@dataclass
class SavedUnreadable(BuildkitError):
    """*path* holds nothing that this version can read."""

    path: Path
    reason: str

    exit_code = 2

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; give a file that this program wrote, or have it write this one again"


def save(value: object, path: Path, *, indent: int | None = None) -> None:
    """Write as JSON; folders are made, a file is replaced whole, and only by what is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    encoded = msgspec.json.encode(value)
    with part.open("wb") as file:
        file.write((encoded if indent is None else msgspec.json.format(encoded, indent=indent)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load(path: Path, kind: type[_T], *, version: int, what: str) -> _T:
    """Read what `save` wrote of a *kind* that carries `schema_version`; *what* names it: "a measurement".

    Raises:
        SavedUnreadable: it is anything else, or of another version.
    """
    try:
        content = path.read_bytes()
        found = msgspec.json.decode(content, type=_Versioned).schema_version
        if found != version:
            raise SavedUnreadable(path, f"schema version {found}, this program reads {version}")
        return msgspec.json.decode(content, type=kind)
    except OSError as error:
        raise SavedUnreadable(path, error.strerror or str(error)) from error
    except msgspec.DecodeError as error:
        raise SavedUnreadable(path, f"not {what} ({error})") from error


def schema_of(kind: type, title: str) -> dict[str, object]:
    """Return the JSON Schema (2020-12) of *kind*; the same text on every Python (3.13 dedents docstrings itself)."""
    described: dict[str, object] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **msgspec.json.schema(kind),
    }
    for definition in described.get("$defs", {}).values():  # type: ignore[attr-defined] # a mapping, by the standard
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"])
    return described


class _Versioned(msgspec.Struct):
    schema_version: int
