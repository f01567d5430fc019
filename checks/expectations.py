"""What is expected of one image: written as JSON by `python -m buildkit verify`, read by the checks.

The two meet in this file only. A secret that was handed to the build is named here with its SHA-256, its text comes to
the checks by the environment variable `HANDED_IN_VARIABLE` and is written nowhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "HANDED_IN_VARIABLE",
    "SCHEMA_VERSION",
    "Expectations",
    "SecretFingerprint",
    "SizeLimits",
    "UnknownExpectations",
]

SCHEMA_VERSION = 1
HANDED_IN_VARIABLE = "TRUTHGRAPH_CHECKS_HANDED_IN"


class UnknownExpectations(Exception):
    """The file at `path` is not what these checks read; `reason` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeLimits:
    """Limits in bytes and layers; None where there is none.

    Attributes:
        unpacked_bytes: of the sum over layers of their regular files.
        largest_layer_bytes: of one layer's regular files.
        layers: their number.
        wasted_bytes: of files that an earlier layer stores in vain, those below `base_paths` apart.
    """

    unpacked_bytes: int | None = None
    largest_layer_bytes: int | None = None
    layers: int | None = None
    wasted_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SecretFingerprint:
    """A value that the build was given and must not keep, by name; `sha256` tells whether the checks got the same."""

    name: str
    sha256: str

    @classmethod
    def of(cls, values: Mapping[str, str]) -> tuple[SecretFingerprint, ...]:
        """The entries for *values*, by name."""
        return tuple(cls(name, hashlib.sha256(value.encode()).hexdigest()) for name, value in sorted(values.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectations:
    """What an image of one target must be.

    Attributes:
        has_application: it carries the service.
        has_models: it carries torch, transformers, sentence-transformers and the embedding model.
        is_cuda: its torch is a CUDA build.
        virtual_environment: where the distributions lie; None where they lie in the interpreter's own folders.
        locked: distribution -> version, of everything that may be installed.
        development_only: distribution -> modules it brings, of everything that must not be there.
        cuda_targets: compute capabilities that torch must hold code for, as `sm_90`.
        uncompiled: starts of paths in site-packages, such as `torch/`: there, only what a run imports needs bytecode.
        provided_libraries: sonames that the host's driver brings, so the image need not.
        labels: name -> value, or None where any value but an empty one will do.
        cache: the one folder that the service may write to.
        base_paths: folders that hold what the operating system's packages change with each installation (package
            database, user database): they may be stored once more by a later layer.
        certificates_sha256: of the DER form of each certificate handed to the build.
    """

    target: str
    has_application: bool = True
    has_models: bool = True
    is_cuda: bool = True
    virtual_environment: str | None = "/opt/venv"
    application: str = "/app"
    model: str = "/opt/models/all-MiniLM-L6-v2"
    cache: str = "/var/cache/truthgraph"
    user: str = "1000"
    port: int = 8000
    stop_signal: str = "SIGTERM"
    start_seconds: float = 60.0
    stop_seconds: float = 10.0
    locked: dict[str, str] = field(default_factory=dict)
    development_only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    system_packages: tuple[str, ...] = ("curl", "postgresql-client")
    cuda_targets: tuple[str, ...] = ()
    uncompiled: tuple[str, ...] = ()
    provided_libraries: tuple[str, ...] = ("libcuda.so.1", "libnvidia-ml.so.1")
    unstripped_folders: tuple[str, ...] = ("*.libs",)
    labels: dict[str, str | None] = field(default_factory=dict)
    base_paths: tuple[str, ...] = ()
    budgets: SizeLimits = field(default_factory=SizeLimits)
    certificates_sha256: tuple[str, ...] = ()
    handed_in: tuple[SecretFingerprint, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def save(self, path: Path) -> None:
        """Writes the file, making its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Expectations:
        """Reads what `save` wrote.

        Raises:
            UnknownExpectations: the file cannot be read, is of another version, or has an unknown or missing key.
        """
        try:
            raw = msgspec.json.decode(path.read_bytes())
            version = raw.get("schema_version") if isinstance(raw, dict) else None
            if version != SCHEMA_VERSION:
                raise UnknownExpectations(path, f"schema_version is {version}, these checks read {SCHEMA_VERSION}")
            unknown = sorted(set(raw) - set(cls.__dataclass_fields__))
            if unknown:
                raise UnknownExpectations(path, f"unknown keys: {', '.join(unknown)}")
            return msgspec.convert(raw, cls)
        except (OSError, msgspec.MsgspecError) as error:
            raise UnknownExpectations(path, str(error)) from error
