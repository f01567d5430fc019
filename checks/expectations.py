"""Defines the expectations of an image: a JSON file that `python -m buildkit verify` writes and the checks read.

The file has only the name and the SHA-256 of each build secret. The checks receive the values in the environment
variable `BUILD_SECRETS_VARIABLE`; nothing writes them to a file.
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
    "BUILD_SECRETS_VARIABLE",
    "SCHEMA_VERSION",
    "Expectations",
    "SecretFingerprint",
    "SizeLimits",
    "UnknownExpectations",
]

SCHEMA_VERSION = 2
BUILD_SECRETS_VARIABLE = "TRUTHGRAPH_CHECKS_BUILD_SECRETS"


class UnknownExpectations(Exception):
    """The checks cannot read the expectations at `path`; `reason` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"cannot read the expectations in {path}: {reason}; run `python -m buildkit verify` to write them"
        )
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeLimits:
    """Limits of an image in bytes and layers; None means no limit.

    Attributes:
        unpacked_bytes: regular files, summed over all layers.
        largest_layer_bytes: regular files of one layer.
        layers: the number of layers.
        wasted_bytes: files of earlier layers that a later one deletes or replaces, outside `base_paths`.
    """

    unpacked_bytes: int | None = None
    largest_layer_bytes: int | None = None
    layers: int | None = None
    wasted_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SecretFingerprint:
    """The name and SHA-256 of a build secret: shows whether the checks search for the value that the build used."""

    name: str
    sha256: str

    @classmethod
    def of(cls, values: Mapping[str, str]) -> tuple[SecretFingerprint, ...]:
        """Returns the fingerprints of *values* (name -> secret), sorted by name."""
        return tuple(cls(name, hashlib.sha256(value.encode()).hexdigest()) for name, value in sorted(values.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectations:
    """The expectations of the image of one target.

    Attributes:
        has_application: whether the image has the service.
        has_models: whether it has torch, transformers, sentence-transformers and the embedding model.
        is_cuda: whether its torch is a CUDA build.
        virtual_environment: the folder of the virtual environment; None if distributions are installed system-wide.
        locked: distribution -> version, of all distributions that may be installed.
        development_only: distribution -> its modules, of all distributions that must be absent.
        cuda_targets: compute capabilities that torch must have code for, such as `sm_90`.
        uncompiled: prefixes of paths in site-packages, such as `torch/`. Below them, only modules that a run imports
            need bytecode.
        provided_libraries: sonames that the host's driver provides.
        unstripped_folders: patterns of folder names; shared objects in these folders may have symbols.
        labels: name -> value; None allows every value except an empty one.
        cache: the only folder that the service may write to.
        base_paths: prefixes of paths that each installation of a system package changes (package database, user
            database). Several layers may have them.
        certificates_sha256: SHA-256 of the DER form of each certificate among the build secrets.
        build_secrets: the build secrets that no layer may contain.
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
    build_secrets: tuple[SecretFingerprint, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def save(self, path: Path) -> None:
        """Writes the expectations to *path*, and makes its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Expectations:
        """Reads expectations that `save` wrote.

        Raises:
            UnknownExpectations: the file cannot be read, is of another version, or has an unknown or missing key.
        """
        try:
            raw = msgspec.json.decode(path.read_bytes())
            version = raw.get("schema_version") if isinstance(raw, dict) else None
            if version != SCHEMA_VERSION:
                raise UnknownExpectations(path, f"schema_version is {version}, expected {SCHEMA_VERSION}")
            unknown = sorted(set(raw) - set(cls.__dataclass_fields__))
            if unknown:
                raise UnknownExpectations(path, f"unknown keys: {', '.join(unknown)}")
            return msgspec.convert(raw, cls)
        except (OSError, msgspec.MsgspecError) as error:
            raise UnknownExpectations(path, str(error)) from error
