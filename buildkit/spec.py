"""Reads docker/images.toml: the image, the layers of its environment, its targets, budgets and staging."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path  # noqa: TC003  # msgspec reads the annotations of ImageSpec at run time
from typing import Final, Literal

import msgspec

from buildkit.errors import UsageError

__all__ = ["ImageSpec", "LayerSpec", "Staging", "StagingBudget", "Target", "load"]

SCHEMA_VERSION: Final = 2
PYTHONS: Final = ("3.12", "3.13", "3.14")


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of images.toml; an unknown key is an error."""


class LayerSpec(_Table, frozen=True):
    """One layer of the environment.

    Attributes:
        name: the layer's name; its lock file and its Dockerfile stage have the same name.
        reason: why it is a separate layer, and how often it changes.
        distributions: distributions that go into this layer.
        extra: an extra of pyproject.toml; its distributions that no layer names go into this layer too. "" stands for
            the project's own dependencies, None for no extra.
    """

    name: str
    reason: str
    distributions: tuple[str, ...] = ()
    extra: str | None = None


class Target(_Table, frozen=True):
    """One image that can be built.

    Attributes:
        name: the name on the command line.
        dockerfile: the path of the Dockerfile, relative to the project.
        stage: the stage of the Dockerfile to build.
        disk_bytes: disk space that a cold build needs in the engine's folder, measured or estimated.
        layers: the names of the environment's layers in the image, in order; empty if it has no such layers.
        arguments: build arguments in addition to those of every build; `{site_packages}` stands for the folder into
            which the Python of the base image installs.
        cuda_targets: compute capabilities that it must run on; empty for those of the table `[image]`.
        has_application: whether it contains the service; the database and the proxy do not.
        user: the numeric ID of the user that the container runs as.
        compression: the compression of the layers in the engine. Uncompressed layers are exported and unpacked fastest;
            zstd is for images that are pushed to a registry.
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
    """The limits of staging in one window: one load of a release, or one interval of `watch`.

    Attributes:
        p95_seconds: 95th percentile of the response time of any route.
        p95_growth_ratio: that percentile, divided by the same percentile of the previous release.
        p95_noise_seconds: a smaller increase of the percentile is ignored.
        error_fraction: the fraction of responses with a 5xx status.
        retried_fraction: the fraction of requests that had to be retried.
        memory_bytes: the memory of one replica.
        restarts: the restarts of all replicas together in an hour.
        minutes: how long `watch` tolerates an exceeded budget.
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
    """Settings of releases.

    Attributes:
        name: the name of the stack.
        registry: the registry to push to, as host[:port][/path]; "" if it is given on the command line.
        keep_releases: number of releases to keep for rollback.
        update_seconds: the longest time for a rolling update or a first start.
        load_seconds: duration of the load for the metrics of the baseline and the new release.
        load_workers: number of concurrent requests of that load.
    """

    name: str = "truthgraph"
    registry: str = ""
    keep_releases: int = 3
    update_seconds: float = 600.0
    load_seconds: float = 20.0
    load_workers: int = 4
    budget: StagingBudget = StagingBudget()


class _Image(_Table, frozen=True):
    """The table `[image]`: the settings that all targets share."""

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
    """The whole file."""

    schema_version: int
    image: _Image
    layers: tuple[LayerSpec, ...]
    targets: tuple[Target, ...]
    excluded: dict[str, str] = {}
    budgets: dict[str, dict[str, object]] = {}
    staging: Staging = Staging()


class ImageSpec(_Image, frozen=True):
    """All of docker/images.toml, checked; the first attributes are those of the table `[image]`.

    Attributes:
        name: the repository of the images in the engine.
        python: the version of Python, for example "3.13".
        base: the reference of the Python base image.
        venv: the folder of the environment in the image.
        app: the folder of the service in the image.
        model: the embedding model in the image.
        cuda_targets: compute capabilities that the image must run on, for example "sm_90".
        project: the folder that contains `docker/`, absolute.
        excluded: distributions that are locked but left out of every image, each with the reason.
        budgets: limits by target; `budget.evaluate` knows the keys.
        staging: settings and limits of releases.
    """

    project: Path
    layers: tuple[LayerSpec, ...]
    targets: tuple[Target, ...]
    excluded: dict[str, str]
    budgets: dict[str, dict[str, object]]
    staging: Staging

    @property
    def lock_folder(self) -> Path:
        """The folder of the lock files."""
        return self.project / "docker" / "lock"

    def target(self, name: str) -> Target:
        """Returns the target *name*.

        Raises:
            UsageError: docker/images.toml has no such target.
        """
        for target in self.targets:
            if target.name == name:
                return target
        raise UsageError("target", name, f"expected one of {', '.join(target.name for target in self.targets)}")


def load(project: Path, *, base: str | None = None, python: str | None = None) -> ImageSpec:
    """Reads `docker/images.toml` in *project*; *base* and *python* replace its base image and Python version.

    Raises:
        UsageError: the file is missing or not TOML, a key is unknown, missing or of the wrong type, a value is out of
            range, a name of a layer or target is invalid or used twice, or a target names an unknown layer.
    """
    path = project / "docker" / "images.toml"
    try:
        file = msgspec.convert(tomllib.loads(path.read_text()), type=_File)
    except FileNotFoundError:
        fix = "has no docker/images.toml; run from the folder of the project, or name it with --project"
        raise UsageError("project", str(project), fix) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(str(path), str(error), "not valid TOML") from error
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at ")
        raise UsageError(f"{path.name} {where.strip('`') or '$'}", message, "see the comments in the file") from error
    if file.schema_version != SCHEMA_VERSION:
        raise UsageError("schema_version", file.schema_version, f"this program reads version {SCHEMA_VERSION}")
    spec = ImageSpec(
        project=project.resolve(),
        layers=file.layers,
        targets=file.targets,
        excluded=file.excluded,
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
                raise UsageError(f"{kind}.name", name, "is used twice")
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
