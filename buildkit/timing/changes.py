"""Makes the change of each scenario in a copy of the project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from buildkit import spec as specs
from buildkit.build.locks import Requirement, parse_requirements, release_below, write_locks
from buildkit.errors import UsageError
from buildkit.text import canonical_name

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.build.base import BaseImage
    from buildkit.engine.client import Engine
    from buildkit.spec import ImageSpec

__all__ = [
    "CODE_FILE",
    "base_tag",
    "change_base",
    "change_code",
    "change_dependency",
    "change_torch",
    "copy_project",
    "earlier_releases",
]

CODE_FILE: Final = "service/app.py"
_PIN: Final = re.compile(r'"torch==(?P<version>[^"\s;]+)"')
_NOT_COPIED: Final = shutil.ignore_patterns(".git", "build", ".venv", ".nox", "__pycache__", ".*_cache", "*.egg-info")
_MARKER: Final = "etc/truthgraph-timing"


def copy_project(project: Path, copy: Path) -> None:
    """Copies the files that git does not ignore; outside a checkout, all files except caches.

    Replaces an older copy. A copy is not a checkout, so its builds have no revision, and their labels are equal.
    """
    shutil.rmtree(copy, ignore_errors=True)
    listed = subprocess.run(
        ["git", "-C", str(project), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode or not listed.stdout:
        shutil.copytree(project, copy, ignore=_NOT_COPIED, symlinks=True)
        return
    for name in filter(None, listed.stdout.split("\0")):
        source, target = project / name, copy / name
        if source.is_file() or source.is_symlink():  # a deleted file may still be in the index
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def change_code(copy: Path, run: int) -> str:
    """Adds a line to the application, a different one in each *run*, and returns the change in words.

    Raises:
        UsageError: the project has no such file.
    """
    path = copy / CODE_FILE
    if not path.is_file():
        raise UsageError("scenario", "code", f"the project has no {CODE_FILE} to change")
    path.write_text(f"{path.read_text()}\nTIMED_RUN = {run}\n")
    return f"one more line in {CODE_FILE}"


def earlier_releases(spec: ImageSpec, name: str, count: int) -> list[Requirement]:
    """Returns the *count* newest releases of the distribution *name* below the locked one, newest first.

    Raises:
        UsageError: it is in no lock file.
        CommandFailed: the index has too few such releases.
    """
    _, requirement = _locked(spec, name)
    found = []
    for _ in range(count):
        requirement = release_below(requirement, spec.python)
        found.append(requirement)
    return found


def change_dependency(spec: ImageSpec, requirement: Requirement) -> str:
    """Locks *requirement* instead of the locked release, and returns the change in words.

    Only the lock changes, as after an upgrade of an indirect dependency.
    """
    path, before = _locked(spec, requirement.name)
    path.write_text(path.read_text().replace(before.text, requirement.text))
    return f"{requirement.name} {before.version} to {requirement.version}"


def _locked(spec: ImageSpec, name: str) -> tuple[Path, Requirement]:
    """Returns the lock file of the distribution *name*, and its requirement."""
    for layer in spec.layers:
        path = spec.lock_folder / f"{layer.name}.txt"
        for requirement in parse_requirements(path.read_text()) if path.exists() else ():
            if requirement.name == canonical_name(name):
                return path, requirement
    raise UsageError("dependency", name, f"in no lock file of {spec.lock_folder}")


def change_torch(copy: Path) -> str:
    """Pins the previous release of torch in pyproject.toml, resolves the lock, and returns the change in words.

    Raises:
        UsageError: pyproject.toml does not pin torch, or a layer names a distribution that this release does not need.
        CommandFailed: the index does not answer, or the dependencies cannot be resolved.
    """
    path = copy / "pyproject.toml"
    text = path.read_text()
    pin = _PIN.search(text)
    if pin is None:
        raise UsageError("scenario", "torch", 'pyproject.toml has no "torch==VERSION" to change')
    spec = specs.load(copy)
    (before,) = earlier_releases(spec, "torch", 1)
    path.write_text(text.replace(pin[0], f'"torch=={before.version}"'))
    changed = write_locks(specs.load(copy), upgrade=False)
    files = ", ".join(sorted(each.name for each in changed if each.suffix == ".txt"))
    return f"torch {pin['version']} to {before.version} (changes {files})"


def base_tag(run: int) -> str:
    """Returns the tag of the changed base image of *run*."""
    return f"truthgraph-timing-base:run{run}"


def change_base(engine: Engine, base: BaseImage, run: int, scratch: Path) -> BaseImage:
    """Makes a base image with the files of *base* and a marker in one new layer, a different one in each *run*.

    A node must fetch all of it, as after most updates of Debian, which change the lowest layer. It has the environment
    variables of *base*, but no other settings: targets set those that they need.
    """
    context = scratch / f"base-{run}"
    context.mkdir(exist_ok=True)
    (context / "marker").write_text(f"{run}\n")
    config = json.loads(engine.docker("image", "inspect", base.local))[0]["Config"]
    variables = (variable.partition("=") for variable in config.get("Env") or ())
    lines = [
        f"FROM {base.local} AS before",
        f"COPY marker /{_MARKER}",  # copied first: without it the next layer would equal the old one
        "FROM scratch",
        "COPY --from=before / /",
        *(f"ENV {name}={_quoted(value)}" for name, _, value in variables),
    ]
    (context / "Dockerfile").write_text("\n".join([*lines, ""]))
    local = base_tag(run)
    engine.docker(
        *("buildx", "build", "--quiet", "--provenance=false"),
        *("--output", f"type=image,name={local},compression=uncompressed"),
        str(context),
        seconds=300.0,
    )
    return replace(base, local=local, layers=1)


def _quoted(value: str) -> str:
    """Returns *value* quoted for a Dockerfile, with `$` escaped."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
