"""Builds the expectations of a target from docker/images.toml, the locks and pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Final

from buildkit.build.locks import locked
from buildkit.check.budget import parse_budgets
from buildkit.slim.rules.profiles import uncompiled_packages
from checks.expectations import Expectations, SizeLimits
from checks.secrets import certificate_fingerprints

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from buildkit.spec import ImageSpec

__all__ = ["expectations_of"]

# Installing a Debian package on top of a base image changes these, whatever the order of instructions.
_BASE_PATHS: Final = (
    "/var/lib/dpkg/",
    "/var/lib/apt/",
    "/var/cache/debconf/",
    "/var/cache/ldconfig/",
    "/var/log/",
    "/etc/.pwd.lock",
    "/etc/ld.so.cache",
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/gshadow",
)
_SYSTEM_PACKAGES: Final = ("curl", "postgresql-client")
_LABEL_PREFIX: Final = "org.opencontainers.image."
_LABELS: Final = ("revision", "source", "version", "created", "licenses", "title", "base.name", "base.digest")
_DEVELOPMENT_GROUPS: Final = ("checks", "lint", "tests", "types")
# Distributions whose modules have another name than the distribution.
_MODULES: Final = {"pytest": ("pytest", "_pytest"), "pytest-testinfra": ("testinfra",), "mypy": ("mypy", "mypyc")}


def expectations_of(
    spec: ImageSpec,
    target: str,
    *,
    labels: Mapping[str, str] | None = None,
    certificates: bytes = b"",
) -> Expectations:
    """Returns the expectations that the image of *target* must meet.

    Args:
        spec: the project.
        target: the name of the target.
        labels: the labels that the build set, by full name; without them any value passes.
        certificates: the CA certificates of the build, as PEM.

    Raises:
        UsageError: there is no such target, or its budgets are not valid.
    """
    chosen = spec.target(target)
    # The Dockerfile of a target without layers of its own installs all of them, if it has the application.
    every = tuple(layer.name for layer in spec.layers if layer.name != "dev") if chosen.has_application else ()
    layers = chosen.layers or every
    pins = locked(spec.lock_folder, layers)
    limits = parse_budgets(spec.budgets.get(target, {})).limits
    known = {name: int(limits[name]) for name in SizeLimits.__dataclass_fields__ if name in limits}
    return Expectations(
        target=target,
        has_application=chosen.has_application,
        has_models="models" in layers,
        user=chosen.user,
        virtual_environment=spec.venv if chosen.layers else None,
        application=spec.app,
        model=f"/opt/models/{spec.model}",
        locked=pins,
        development_only={}
        if "dev" in layers
        else {name: _modules(name) for name in _development_distributions(spec) if name not in pins},
        system_packages=_SYSTEM_PACKAGES if chosen.has_application else (),
        cuda_targets=chosen.cuda_targets or spec.cuda_targets,
        uncompiled=uncompiled_packages(chosen.arguments.get("SLIM_PROFILE", "full")) if chosen.layers else (),
        base_paths=_BASE_PATHS,
        labels={**{_LABEL_PREFIX + name: None for name in _LABELS}, **(labels or {})},
        budgets=SizeLimits(**known),
        certificates_sha256=tuple(certificate_fingerprints(certificates)),
    )


def _development_distributions(spec: ImageSpec) -> Iterator[str]:
    """Yields the distributions for developers only: those of the dev lock and of pyproject's groups of tools."""
    names = set(locked(spec.lock_folder, ["dev"])) if (spec.lock_folder / "dev.txt").exists() else set()
    groups = tomllib.loads((spec.project / "pyproject.toml").read_text()).get("dependency-groups", {})
    for group in _DEVELOPMENT_GROUPS:
        for requirement in groups.get(group, ()):
            if isinstance(requirement, str):
                names.add(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower())
    yield from sorted(names)


def _modules(distribution: str) -> tuple[str, ...]:
    """Returns the names under which *distribution* is imported."""
    return _MODULES.get(distribution, (distribution.replace("-", "_"),))
