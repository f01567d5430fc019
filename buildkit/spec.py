"""What shall be built: docker/images.toml read into frozen values."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path  # noqa: TC003  # msgspec reads the annotations of ImageSpec at run time
from typing import Literal

import msgspec

from buildkit.errors import UsageError

__all__ = ["ImageSpec", "LayerSpec", "Staging", "StagingBudget", "Target", "load"]

SCHEMA_VERSION = 1
PYTHONS = ("3.12", "3.13", "3.14")


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of images.toml: an unknown key is refused, never passed over."""


class LayerSpec(_Table, frozen=True):
    """One layer of the environment.

    Attributes:
        name: also the name of its lock file and of its stage.
        why: how often it changes and why it is apart.
        distributions: those that it takes by name.
        extra: the extra whose remaining distributions it takes: "" for the project's own dependencies, None for none.
    """

    name: str
    why: str
    distributions: tuple[str, ...] = ()
    extra: str | None = None


class Target(_Table, frozen=True):
    """One image that can be built.

    Attributes:
        name: as `build-image` takes it.
        dockerfile: relative to the project.
        stage: the Dockerfile's stage.
        disk_bytes: room that a cold build takes in the engine's folder (measured).
        layers: names of the environment's layers in it, in order; empty where the Dockerfile has its own.
        arguments: build arguments beside those that every build gets; `{site_packages}` is where the base's own Python
            installs to.
        cuda_targets: compute capabilities that it must run on, where not all of the image's.
        has_application: it carries the service; what stands beside it in the stack does not.
        user: number that it runs as.
        compression: of its layers in the engine; uncompressed is exported and unpacked fastest, a registry gets zstd.
    """

    name: str
    dockerfile: str
    stage: str
    disk_bytes: int
    layers: tuple[str, ...] = ()
    arguments: dict[str, str] = {}
    cuda_targets: tuple[str, ...] = ()
    has_application: bool = True
    user: str = "1000"
    compression: Literal["uncompressed", "gzip", "zstd"] = "uncompressed"


class StagingBudget(_Table, frozen=True):
    """What staging may do wrong, per window: one load of a release, or one poll of a watch.

    Attributes:
        p95_seconds: of any route.
        p95_growth_ratio: p95 over that of the release before.
        p95_noise_seconds: a growth of less than this counts as none.
        error_fraction: answers 5xx of all answers.
        retried_fraction: requests that had to be sent again, of all.
        memory_bytes: of one replica.
        restarts: of all replicas together, in an hour.
        minutes: how long a watch lets the budget be broken.
    """

    p95_seconds: float = 2.0
    p95_growth_ratio: float = 3.0
    p95_noise_seconds: float = 0.5
    error_fraction: float = 0.0
    retried_fraction: float = 0.02
    memory_bytes: int = 6_000_000_000
    restarts: int = 0
    minutes: float = 5.0


class Staging(_Table, frozen=True):
    """How releases are made.

    Attributes:
        name: of the stack.
        registry: host[:port][/path] to push to.
        keep_releases: how many are kept for rollback.
        update_seconds: how long a rolling update or a first start may take.
        load_seconds: how long the load lasts whose metrics are compared.
        load_workers: how many requests at a time it sends.
    """

    name: str = "truthgraph"
    registry: str = ""
    keep_releases: int = 3
    update_seconds: float = 600.0
    load_seconds: float = 20.0
    load_workers: int = 4
    budget: StagingBudget = StagingBudget()


class _Image(_Table, frozen=True):
    name: str
    title: str
    description: str
    licenses: str
    python: str
    base: str
    venv: str
    app: str
    model: str
    cuda_targets: tuple[str, ...]


class _File(_Table, frozen=True):
    schema_version: int
    image: _Image
    layers: tuple[LayerSpec, ...]
    targets: tuple[Target, ...]
    left_out: dict[str, str] = {}
    budgets: dict[str, dict[str, object]] = {}
    staging: Staging = Staging()


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All of docker/images.toml, checked.

    Attributes:
        project: the folder that holds `docker/`, absolute.
        cuda_targets: compute capabilities that the image must run on, as `sm_90`.
        left_out: distributions that are locked and in no image, each with the reason.
        budgets: limits per target, judged by `budget.evaluate`, which knows the keys.
        staging: how releases are made, and what they are judged by.
    """

    project: Path
    name: str
    title: str
    description: str
    licenses: str
    python: str
    base: str
    venv: str
    app: str
    model: str
    cuda_targets: tuple[str, ...]
    layers: tuple[LayerSpec, ...]
    targets: tuple[Target, ...]
    left_out: dict[str, str]
    budgets: dict[str, dict[str, object]]
    staging: Staging

    @property
    def lock_folder(self) -> Path:
        """Where the lock files of the layers lie."""
        return self.project / "docker" / "lock"

    def target(self, name: str) -> Target:
        """The target called *name*.

        Raises:
            UsageError: there is none.
        """
        for target in self.targets:
            if target.name == name:
                return target
        raise UsageError("target", name, f"expected one of {', '.join(target.name for target in self.targets)}")


def load(project: Path, *, base: str | None = None, python: str | None = None) -> ImageSpec:
    """Reads `docker/images.toml` below *project*; *base* and *python* replace what it says.

    Raises:
        UsageError: the file is missing or not TOML; a key is unknown, missing or of the wrong type; a value is out of
            range; a layer or target name is not usable or used twice; a target names an unknown layer.
    """
    path = project / "docker" / "images.toml"
    try:
        file = msgspec.convert(tomllib.loads(path.read_text()), type=_File)
    except FileNotFoundError:
        raise UsageError("project", str(project), "has no docker/images.toml; run from the project's folder") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(str(path), str(error), "not valid TOML") from error
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at ")
        raise UsageError(f"{path.name} {where.strip('`') or '$'}", message, "see the comments in the file") from error
    if file.schema_version != SCHEMA_VERSION:
        raise UsageError("schema_version", file.schema_version, f"this harness reads {SCHEMA_VERSION}")
    spec = ImageSpec(
        project=project.resolve(),
        layers=file.layers,
        targets=file.targets,
        left_out=file.left_out,
        budgets=file.budgets,
        staging=file.staging,
        **{
            **msgspec.structs.asdict(file.image),
            **({"base": base} if base else {}),
            **({"python": python} if python else {}),
        },
    )
    _check(spec)
    return spec


def _check(spec: ImageSpec) -> None:
    if spec.python not in PYTHONS:
        raise UsageError("image.python", spec.python, f"expected one of {', '.join(PYTHONS)}")
    for kind, names in (("layers", [layer.name for layer in spec.layers]), ("targets", [t.name for t in spec.targets])):
        for name in names:
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
                raise UsageError(f"{kind}.name", name, "expected lower-case letters, digits and hyphens")
            if names.count(name) > 1:
                raise UsageError(f"{kind}.name", name, "stands twice")
    known = {layer.name for layer in spec.layers}
    for target in spec.targets:
        for name in target.layers:
            if name not in known:
                raise UsageError(f"targets.{target.name}.layers", name, f"expected one of {', '.join(sorted(known))}")
    for name in spec.budgets:
        spec.target(name)
    _check_staging(spec.staging)


def _check_staging(staging: Staging) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", staging.name):
        raise UsageError("staging.name", staging.name, "expected lower-case letters, digits, hyphens, underscores")
    for field in ("keep_releases", "update_seconds", "load_seconds", "load_workers"):
        if getattr(staging, field) <= 0:
            raise UsageError(f"staging.{field}", getattr(staging, field), "must be positive")
    for field in StagingBudget.__struct_fields__:
        if getattr(staging.budget, field) < 0:
            raise UsageError(f"staging.budget.{field}", getattr(staging.budget, field), "must not be negative")
