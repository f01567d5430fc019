"""The locked distributions, grouped into image layers by size and rate of change.

A lock file is one layer: ``docker/lock/<layer>.txt`` in pip's requirements format, with hashes and without any index
address. All are written together by `write_locks` from pyproject.toml and the ``[[layers]]`` table. The digest of those
inputs lies beside them in ``inputs.sha256``, so that a stale lock is found without asking an index; not in the files,
since a layer is built again when its file changes.
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
from typing import TYPE_CHECKING

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

_HEADER = "# Written by `nox -s lock` for Python {python}. Do not edit.\n"
_INPUTS = "inputs.sha256"
_NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)")
_PLATFORM = "x86_64-manylinux_2_28"
_NOWHERE = "left_out"
_TOOLS = ("uv", "model")  # dependency groups locked beside the environment: uv itself, the package of the weights


@dataclass(frozen=True, slots=True)
class Requirement:
    """One locked distribution; `text` is its lines as uv wrote them, hashes included."""

    name: str
    version: str
    text: str


def parse_requirements(text: str) -> list[Requirement]:
    """The requirements in *text*, in order; comments are passed over.

    Raises:
        UsageError: a line is no pinned requirement with a hash.
    """
    found: list[Requirement] = []
    joined = re.sub(r"\\\n\s*", "\\\n    ", text)
    for block in re.split(r"\n(?=\S)", joined):
        lines = [line for line in block.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if not lines:
            continue
        match = _NAME.match(lines[0])
        if match is None or "--hash=sha256:" not in block:
            raise UsageError("lock line", lines[0], "expected `name==version` with at least one sha256 hash")
        found.append(Requirement(canonical_name(match[1]), match[2], "\n".join(lines)))
    return found


def locked(lock_folder: Path, layer_names: Iterable[str]) -> dict[str, str]:
    """Name and version of each distribution in the lock files of *layer_names*."""
    return {
        requirement.name: requirement.version
        for name in layer_names
        for requirement in parse_requirements((lock_folder / f"{name}.txt").read_text())
    }


def assign(
    layers: Sequence[LayerSpec],
    closures: Mapping[str, Mapping[str, Requirement]],
    left_out: Iterable[str] = (),
) -> dict[str, list[Requirement]]:
    """Puts each distribution of *closures* into exactly one layer, those of *left_out* into none.

    *closures* maps an extra ("" for the project's own dependencies) to everything it installs. A distribution that a
    layer names goes there; any other goes to the layer of the smallest extra whose closure holds it.

    Raises:
        UsageError: a name stands in two layers, is not locked at all, or has no layer to go to.
    """
    everything = {name: requirement for closure in closures.values() for name, requirement in closure.items()}
    placed: dict[str, list[Requirement]] = {layer.name: [] for layer in layers}
    home: dict[str, str] = {}
    for name in map(canonical_name, left_out):
        if name not in everything:
            raise UsageError("left_out", name, "not in the lock; remove it from docker/images.toml")
        home[name] = _NOWHERE
    for layer in layers:
        for name in map(canonical_name, layer.distributions):
            if name in home:
                raise UsageError(f"layers.{layer.name}", name, f"already in layer {home[name]}; name it once")
            if name not in everything:
                raise UsageError(f"layers.{layer.name}", name, "not in the lock; remove it from docker/images.toml")
            home[name] = layer.name
    by_extra = sorted((layer for layer in layers if layer.extra is not None), key=lambda layer: layer_rank(layer.extra))
    for name in everything:
        if name in home:
            continue
        owner = next((layer for layer in by_extra if name in closures.get(layer.extra or "", {})), None)
        if owner is None:
            raise UsageError("layers", name, "no layer takes it; name it in docker/images.toml")
        home[name] = owner.name
    for name in sorted(name for name, layer in home.items() if layer != _NOWHERE):
        placed[home[name]].append(everything[name])
    return placed


def layer_rank(extra: str | None) -> int:
    """Smaller environments first: the project's own dependencies, then `ml`, then `dev`."""
    return ["", "ml", "dev"].index(extra or "")


def input_digest(spec: ImageSpec) -> str:
    """SHA-256 (hex) of everything that a lock is resolved from: dependencies, groups, layer table, Python, platform."""
    metadata = tomllib.loads((spec.project / "pyproject.toml").read_text())
    inputs = {
        "dependencies": metadata["project"]["dependencies"],
        "extras": metadata["project"]["optional-dependencies"],
        "groups": {name: metadata["dependency-groups"][name] for name in _TOOLS},
        "layers": [[layer.name, layer.extra, list(layer.distributions)] for layer in spec.layers],
        "left_out": sorted(spec.left_out),
        "python": spec.python,
        "platform": _PLATFORM,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def check_locks(spec: ImageSpec) -> None:
    """Passes when every lock file was resolved from today's inputs.

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
    """What `uv pip compile` resolves *arguments* to, by name."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if uv is None:
        raise UsageError("uv", None, "not installed; run through `nox -s lock`, which installs it")
    command = [uv, "pip", "compile", "--no-progress", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--python-version", python]
    command += ["--no-python-downloads"]  # another Python than ours is resolved for, none is run
    command += ["--python-platform", _PLATFORM, *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, done.stderr[-4000:])
    return {requirement.name: requirement for requirement in parse_requirements(done.stdout)}


def release_below(requirement: Requirement, python: str) -> Requirement:
    """The newest release of the same distribution below *requirement*, with its hashes. Asks the package index.

    Raises:
        CommandFailed: there is none, or the index cannot be asked.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"{requirement.name}<{requirement.version}\n")
        return _compile(Path(scratch), python, str(wanted), "--no-deps")[requirement.name]


def write_locks(spec: ImageSpec, *, upgrade: bool) -> list[Path]:
    """Resolves pyproject.toml's dependencies once and writes one lock file per layer; returns the files that changed.

    Versions that are locked already are kept unless *upgrade* is set or pyproject.toml no longer allows them. Asks the
    package index through uv (its own settings and environment variables apply).
    """
    project, python, lock_folder = spec.project, spec.python, spec.lock_folder
    lock_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "kept.txt"
        kept.write_text("" if upgrade else "\n".join(path.read_text() for path in sorted(lock_folder.glob("*.txt"))))
        # uv prefers the versions that already stand in its output file, and prints what it writes there.
        every_extra = ["--extra", "ml", "--extra", "dev"]
        superset = _compile(project, python, "pyproject.toml", *every_extra, "--output-file", str(kept))
        pins = Path(scratch) / "pins.txt"
        pins.write_text("".join(f"{item.name}=={item.version}\n" for item in superset.values()))
        within = ["--constraint", str(pins)]
        closures = {
            "": _compile(project, python, "pyproject.toml", *within),
            "ml": _compile(project, python, "pyproject.toml", "--extra", "ml", *within),
            "dev": superset,
        }
        placed = assign(spec.layers, closures, spec.left_out)
        texts = {name: [item.text for item in items] for name, items in placed.items()}
        for group in _TOOLS:
            # The package of the weights names torch and more; only its own files are wanted.
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
