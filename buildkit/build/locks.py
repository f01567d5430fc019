"""Locks the distributions of the image, and groups them into layers by size and rate of change.

Each layer has one lock file, `docker/lock/<layer>.txt`, in pip's requirements format with hashes and without index
addresses. `write_locks` writes all of them from pyproject.toml and the `[[layers]]` tables of docker/images.toml. The
digest of these inputs is in `inputs.sha256`, so `check_locks` finds a stale lock without a package index. It is not in
the lock files, because a layer is rebuilt if its lock file changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import packaging.requirements

from buildkit.errors import CommandFailed, UsageError
from buildkit.text import canonical_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from buildkit.spec import ImageSpec, LayerSpec

__all__ = [
    "Requirement",
    "assign",
    "check_locks",
    "input_digest",
    "locked",
    "parse_requirements",
    "release_below",
    "write_locks",
]

_HEADER: Final = "# Written by `nox -s lock` for Python {python}. Do not edit.\n"
_INPUTS: Final = "inputs.sha256"
_PLATFORM: Final = "x86_64-manylinux_2_28"
_TOOLS: Final = ("uv", "model")
"""Dependency groups with lock files of their own: uv itself, and the package of the model's weights."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One locked distribution; `text` holds its lines as uv wrote them, with the hashes."""

    name: str
    version: str
    text: str


def parse_requirements(text: str) -> list[Requirement]:
    """Returns the requirements in *text*, in order, without comments.

    Raises:
        UsageError: a line is not a pinned requirement with a hash.
    """
    found: list[Requirement] = []
    joined = re.sub(r"\\\n\s*", "\\\n    ", text)
    for block in re.split(r"\n(?=\S)", joined):
        lines = [line for line in block.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if not lines:
            continue
        name, version = _parse_pin(lines[0])
        if not version or "--hash=sha256:" not in block:
            raise UsageError("lock line", lines[0], "expected `name==version` with at least one sha256 hash")
        found.append(Requirement(name, version, "\n".join(lines)))
    return found


def _parse_pin(line: str) -> tuple[str, str]:
    """Returns the canonical name and the version of a line `name==version`; the version is "" if the line pins none."""
    try:
        parsed = packaging.requirements.Requirement(line.partition(" --hash")[0].rstrip("\\ "))
    except packaging.requirements.InvalidRequirement:
        return "", ""
    pins = [item.version for item in parsed.specifier if item.operator == "==" and not item.version.endswith("*")]
    return canonical_name(parsed.name), pins[0] if len(pins) == len(parsed.specifier) == 1 else ""


def locked(lock_folder: Path, layer_names: Iterable[str]) -> dict[str, str]:
    """Returns the version of each distribution in the lock files of *layer_names*, by canonical name."""
    return {
        requirement.name: requirement.version
        for name in layer_names
        for requirement in parse_requirements((lock_folder / f"{name}.txt").read_text())
    }


def assign(
    layers: Sequence[LayerSpec],
    closures: Mapping[str, Mapping[str, Requirement]],
    excluded: Iterable[str] = (),
) -> dict[str, list[Requirement]]:
    """Returns the distributions of each layer, by the layer's name; each distribution is in exactly one layer.

    A layer gets the distributions that it names. Any other goes to the layer of the smallest extra that installs it.

    Args:
        layers: the layers of docker/images.toml.
        closures: all distributions that each extra installs; "" stands for the project's own dependencies.
        excluded: distributions that no layer gets.

    Raises:
        UsageError: two layers name a distribution, a named one is not locked, or one belongs to no layer.
    """
    everything = {name: requirement for closure in closures.values() for name, requirement in closure.items()}
    placed: dict[str, list[Requirement]] = {layer.name: [] for layer in layers}
    unlayered = set(map(canonical_name, excluded))
    for name in sorted(unlayered - everything.keys()):
        raise UsageError("excluded", name, "not in the lock; remove it from docker/images.toml")
    home: dict[str, str] = {}
    for layer in layers:
        for name in map(canonical_name, layer.distributions):
            if name in home or name in unlayered:
                where = f"layer {home[name]}" if name in home else "[excluded]"
                raise UsageError(f"layers.{layer.name}", name, f"already in {where}; name it once")
            if name not in everything:
                raise UsageError(f"layers.{layer.name}", name, "not in the lock; remove it from docker/images.toml")
            home[name] = layer.name
    by_extra = sorted((layer for layer in layers if layer.extra is not None), key=lambda layer: layer_rank(layer.extra))
    for name in sorted(everything.keys() - home.keys() - unlayered):
        owner = next((layer for layer in by_extra if name in closures.get(layer.extra or "", {})), None)
        if owner is None:
            raise UsageError("layers", name, "in no layer; name it in docker/images.toml")
        home[name] = owner.name
    for name in sorted(home):
        placed[home[name]].append(everything[name])
    return placed


def layer_rank(extra: str | None) -> int:
    """Returns the sort key that puts smaller environments first: the project's own dependencies, `ml`, `dev`."""
    return ["", "ml", "dev"].index(extra or "")


def input_digest(spec: ImageSpec) -> str:
    """Returns the SHA-256 (hex) of the inputs of the lock: dependencies, groups, layers, Python version, platform."""
    metadata = tomllib.loads((spec.project / "pyproject.toml").read_text())
    inputs = {
        "dependencies": metadata["project"]["dependencies"],
        "extras": metadata["project"]["optional-dependencies"],
        "groups": {name: metadata["dependency-groups"][name] for name in _TOOLS},
        "layers": [[layer.name, layer.extra, list(layer.distributions)] for layer in spec.layers],
        "excluded": sorted(spec.excluded),
        "python": spec.python,
        "platform": _PLATFORM,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def check_locks(spec: ImageSpec) -> None:
    """Checks that every lock file was resolved from the current inputs.

    Raises:
        UsageError: a lock file is missing or stale.
    """
    for name in [*(layer.name for layer in spec.layers), *_TOOLS]:
        path = spec.lock_folder / f"{name}.txt"
        if not path.exists():
            raise UsageError(str(path), "missing", "run `nox -s lock`")
    path = spec.lock_folder / _INPUTS
    if not path.exists() or path.read_text().strip() != input_digest(spec):
        fix = "pyproject.toml or docker/images.toml changed since it was resolved; run `nox -s lock`"
        raise UsageError(str(spec.lock_folder), "stale", fix)


def _compile(project: Path, python: str, *arguments: str) -> dict[str, Requirement]:
    """Returns the distributions that `uv pip compile` resolves *arguments* to, by canonical name."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if uv is None:
        raise UsageError("uv", None, "not installed; run through `nox -s lock`, which installs it")
    command = [uv, "pip", "compile", "--no-progress", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--python-version", python]
    command += ["--no-python-downloads"]  # uv resolves for that Python without running it
    command += ["--python-platform", _PLATFORM, *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, done.stderr[-4000:])
    return {requirement.name: requirement for requirement in parse_requirements(done.stdout)}


def release_below(requirement: Requirement, python: str) -> Requirement:
    """Returns the newest older release of the distribution, with its hashes, from the package index.

    Raises:
        CommandFailed: there is none, or the index does not answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"{requirement.name}<{requirement.version}\n")
        return _compile(Path(scratch), python, str(wanted), "--no-deps")[requirement.name]


def write_locks(spec: ImageSpec, *, upgrade: bool) -> list[Path]:
    """Resolves the dependencies of pyproject.toml, writes one lock file per layer, and returns the files that changed.

    Locked versions stay unless *upgrade* is set or pyproject.toml no longer allows them. uv queries the package index
    with its own settings and environment variables.
    """
    project, python, lock_folder = spec.project, spec.python, spec.lock_folder
    lock_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        preferred = Path(scratch) / "preferred.txt"
        locked_now = "\n".join(path.read_text() for path in sorted(lock_folder.glob("*.txt")))
        preferred.write_text("" if upgrade else locked_now)
        # uv prefers the versions in its output file, and prints the text that it writes to it.
        every_extra = ["--extra", "ml", "--extra", "dev"]
        superset = _compile(project, python, "pyproject.toml", *every_extra, "--output-file", str(preferred))
        pins = Path(scratch) / "pins.txt"
        pins.write_text("".join(f"{item.name}=={item.version}\n" for item in superset.values()))
        within = ["--constraint", str(pins)]
        closures = {
            "": _compile(project, python, "pyproject.toml", *within),
            "ml": _compile(project, python, "pyproject.toml", "--extra", "ml", *within),
            "dev": superset,
        }
        placed = assign(spec.layers, closures, spec.excluded)
        texts = {name: [item.text for item in items] for name, items in placed.items()}
        for group in _TOOLS:
            # --no-deps: the package of the weights requires torch and more, but only its own files are needed.
            items = _compile(project, python, "--group", group, "--no-deps")
            texts[group] = [item.text for item in items.values()]
    files = {f"{name}.txt": _HEADER.format(python=python) + "\n".join(blocks) + "\n" for name, blocks in texts.items()}
    files[_INPUTS] = input_digest(spec) + "\n"
    changed: list[Path] = []
    for name, text in files.items():
        path = lock_folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            changed.append(path)
    for path in lock_folder.glob("*.txt"):
        if path.name not in files:
            path.unlink()
            changed.append(path)
    return changed
