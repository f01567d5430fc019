"""Saves values as JSON and loads them again; every file carries the version of its schema."""

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from buildkit.errors import BuildkitError

__all__ = ["InvalidFile", "load", "save", "schema_of"]

_T = TypeVar("_T")


@dataclass
class InvalidFile(BuildkitError):
    """The file at *path* does not hold the expected value; *fix* says how to write a valid one."""

    path: Path
    reason: str
    fix: str = "write it again with this version"

    exit_code = 2

    def __str__(self) -> str:
        return f"cannot read {self.path}: {self.reason}; {self.fix}"


def save(value: object, path: Path, *, indent: int | None = None) -> None:
    """Writes *value* as JSON: makes the folders, and replaces an existing file only once the new one is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    encoded = msgspec.json.encode(value)
    with part.open("wb") as file:
        file.write((encoded if indent is None else msgspec.json.format(encoded, indent=indent)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load(path: Path, kind: type[_T], *, version: int, what: str, fix: str = "write it again with this version") -> _T:
    """Reads a value that `save` wrote.

    Args:
        path: the file.
        kind: the struct or dataclass to decode; it has a field `schema_version`.
        version: the schema version that this program reads.
        what: a noun for the value, for the error message: "a measurement".
        fix: the advice in the error message: "run `nox -s build-image` again".

    Raises:
        InvalidFile: the file is missing or incomplete, has another schema version, or holds another kind of value.
    """
    try:
        content = path.read_bytes()
        found = msgspec.json.decode(content, type=_Versioned).schema_version
        if found != version:
            raise InvalidFile(path, f"schema version {found}, but this program reads version {version}", fix)
        return msgspec.json.decode(content, type=kind)
    except OSError as error:
        raise InvalidFile(path, error.strerror or str(error), fix) from error
    except msgspec.DecodeError as error:
        raise InvalidFile(path, f"not {what} ({error})", fix) from error


def schema_of(kind: type, title: str) -> dict[str, object]:
    """Returns the JSON Schema (2020-12) of *kind*; the text does not depend on the version of Python."""
    described: dict[str, object] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **msgspec.json.schema(kind),
    }
    for definition in described.get("$defs", {}).values():  # type: ignore[attr-defined] # a mapping, by the standard
        if "description" in definition:  # which Python 3.13 dedents, and earlier versions do not
            definition["description"] = inspect.cleandoc(definition["description"])
    return described


class _Versioned(msgspec.Struct):
    schema_version: int
