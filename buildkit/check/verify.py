"""Proves one image: writes what is expected of it, runs `checks/` against its digest, and reads the results back.

The checks run in a process of their own, so that neither side imports the other's packages; expectations go there and
results come back as files below the output folder: `expect.json`, `verify.json`, `verify.xml` (JUnit), and
`evidence.json`, what running the image showed (answers and log of the service, vectors, versions).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import msgspec
from rich.table import Table
from rich.text import Text

from buildkit.check.budget import parse_budgets
from buildkit.errors import CommandFailed, UsageError
from buildkit.slim.rules.profiles import uncompiled_packages
from buildkit.text import canonical_name
from checks.expectations import HANDED_IN_VARIABLE, Expectations, SecretFingerprint, SizeLimits
from checks.secrets import certificate_fingerprints
from checks.verdicts import CheckResult, Results

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from buildkit.spec import ImageSpec

__all__ = ["TIERS", "VerifyResult", "expect", "read_lock", "table", "verify"]

TIERS: Final = ("static", "device")
PROJECT: Final = Path(__file__).resolve().parents[2]
PYTEST_USAGE: Final = 2
SHOWN_FINDINGS: Final = 5
STYLES: Final = {
    "pass": "green",
    "fail": "bold red",
    "error": "bold magenta",
    "not verified": "yellow",
    "not applicable": "dim",
}
# Each installation of a Debian package on top of a base image changes these, whatever the order of instructions.
BASE_PATHS: Final = (
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
SYSTEM_PACKAGES: Final = ("curl", "postgresql-client")
OCI: Final = "org.opencontainers.image."
LABELS: Final = ("revision", "source", "version", "created", "licenses", "title", "base.name", "base.digest")
DEVELOPMENT_GROUPS: Final = ("checks", "lint", "tests", "types")
# Distributions whose modules are not called like them.
MODULES: Final = {"pytest": ("pytest", "_pytest"), "pytest-testinfra": ("testinfra",), "mypy": ("mypy", "mypyc")}


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What the checks of one image came to.

    Attributes:
        results: each check's outcome, as `verify.json` holds them.
        required: the tiers that must have been verified.
        json_path: the results as JSON.
        junit_path: the results as JUnit XML.
    """

    results: Results
    required: frozenset[str]
    json_path: Path
    junit_path: Path

    @property
    def findings(self) -> tuple[CheckResult, ...]:
        """The checks that speak against the image: failed, or of a required tier and not verified."""
        return tuple(
            check
            for check in self.results.checks
            if check.outcome == "fail" or (check.outcome == "not verified" and check.tier in self.required)
        )

    @property
    def errors(self) -> tuple[CheckResult, ...]:
        """The checks that could not be made because something broke."""
        return tuple(check for check in self.results.checks if check.outcome == "error")

    @property
    def exit_code(self) -> int:
        """0 fine, 1 findings, 3 where checks broke and none found anything."""
        if self.findings:
            return 1
        return 3 if self.errors or not self.results.checks else 0


def verify(  # noqa: D417 - the others are described where they are made
    image: str,
    expectations: Expectations,
    *,
    output: Path,
    environment: Mapping[str, str],
    engine_host: str | None = None,
    require: Collection[str] = (),
    handed_in: Mapping[str, str] | None = None,
    cache: Path | None = None,
    reuse: Path | None = None,
    progress: IO[str] = sys.stderr,
) -> VerifyResult:
    """Runs every check against *image* and writes its files into *output*.

    Side effects: containers labelled `io.truthgraph.checks`, removed at the end.

    Args:
        image: digest or name; the results hold the digest.
        environment: of the process that runs the checks; the caller's own, usually.
        engine_host: address of the engine, as in DOCKER_HOST; None leaves what *environment* says.
        require: tiers that must be verified, of `TIERS`.
        handed_in: name -> plain value of what the build was given and must not keep; passed on by environment only.
        cache: a folder for what was read of each layer; without it every layer is read every time.
        reuse: an `evidence.json` of an earlier run: what it holds is taken instead of running the image again.
        progress: where the run's own lines go while it lasts.

    Raises:
        UsageError: *require* names no tier, the engine has no such image, or the expectations are not understood.
        CommandFailed: the engine cannot be reached, or the checks broke before the first result.
    """
    for tier in require:
        if tier not in TIERS:
            raise UsageError("require", tier, f"expected one of {', '.join(TIERS)}")
    given = dict(handed_in or {})
    expect_path, json_path, junit_path = (output / name for name in ("expect.json", "verify.json", "verify.xml"))
    json_path.unlink(missing_ok=True)
    replace(expectations, handed_in=SecretFingerprint.of(given)).save(expect_path)
    command = [
        *(sys.executable, "-m", "pytest", "checks", "--quiet", "--no-header", "--no-summary", "--tb=no"),
        *("-p", "no:cacheprovider", "--image", image, "--expect", str(expect_path.resolve())),
        *("--results", str(json_path.resolve()), f"--junit-xml={junit_path.resolve()}"),
        *("--record", str((output / "evidence.json").resolve())),
        *(("--layer-cache", str(cache.resolve())) if cache else ()),
        *(("--reuse", str(reuse.resolve())) if reuse else ()),
    ]
    # The caller's own pytest, if it is one, has options and plugins that the checks do not know.
    inherited = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    own = {HANDED_IN_VARIABLE: json.dumps(given), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if engine_host:
        own["DOCKER_HOST"] = engine_host
    tail: deque[str] = deque(maxlen=40)
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        env={**inherited, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        for line in running.stdout or ():
            progress.write(line)
            progress.flush()
            tail.append(line)
    if not json_path.exists():
        message = "".join(tail).strip()
        if running.returncode == PYTEST_USAGE:
            raise UsageError("image", image, message)
        raise CommandFailed(command, running.returncode, message)
    results = msgspec.json.decode(json_path.read_bytes(), type=Results)
    return VerifyResult(results, frozenset(require), json_path, junit_path)


def expect(
    spec: ImageSpec,
    target: str,
    *,
    labels: Mapping[str, str] | None = None,
    certificates: bytes = b"",
    handed_in: Mapping[str, str] | None = None,
) -> Expectations:
    """What an image of *target* must be, by docker/images.toml, the lock and pyproject.toml.

    *labels* are those that the build set, by full name; without them any value will do. *certificates* are what the
    build was given, in PEM form.
    """
    chosen = spec.target(target)
    # A target without layers of its own has them all installed by its Dockerfile; without the application, none.
    every = tuple(layer.name for layer in spec.layers if layer.name != "dev") if chosen.has_application else ()
    layers = chosen.layers or every
    locked = {
        name: version for layer in layers for name, version in read_lock(spec.lock_folder / f"{layer}.txt").items()
    }
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
        locked=locked,
        development_only={}
        if "dev" in layers
        else {name: modules(name) for name in development(spec) if name not in locked},
        system_packages=SYSTEM_PACKAGES if chosen.has_application else (),
        cuda_targets=chosen.cuda_targets or spec.cuda_targets,
        uncompiled=uncompiled_packages(chosen.arguments.get("SLIM_PROFILE", "full")) if chosen.layers else (),
        base_paths=BASE_PATHS,
        labels={**{OCI + name: None for name in LABELS}, **(labels or {})},
        budgets=SizeLimits(**known),
        certificates_sha256=tuple(certificate_fingerprints(certificates)),
        handed_in=SecretFingerprint.of(handed_in or {}),
    )


def read_lock(path: Path) -> dict[str, str]:
    """Distribution -> version of a lock in pip's format; names as indexes compare them (PEP 503)."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {canonical_name(name): version for name, version in pins}


def development(spec: ImageSpec) -> Iterator[str]:
    """Every distribution that only developers need: the locked dev layer, and pyproject's groups of tools."""
    dev = spec.lock_folder / "dev.txt"
    names = set(read_lock(dev)) if dev.exists() else set()
    groups = tomllib.loads((spec.project / "pyproject.toml").read_text()).get("dependency-groups", {})
    for group in DEVELOPMENT_GROUPS:
        for requirement in groups.get(group, ()):
            if isinstance(requirement, str):
                names.add(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower())
    yield from sorted(names)


def modules(distribution: str) -> tuple[str, ...]:
    """The names under which *distribution* is imported."""
    return MODULES.get(distribution, (distribution.replace("-", "_"),))


def table(result: VerifyResult) -> Table:
    """The results as one table: a group a section, findings and reasons below their check."""
    results = result.results
    counts = {outcome: sum(check.outcome == outcome for check in results.checks) for outcome in STYLES}
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    view = Table(
        title=f"{results.target}: {results.image}",
        caption=f"{summary}; {results.seconds:.1f} s. {result.json_path}, {result.junit_path}",
        title_justify="left",
        caption_justify="left",
        expand=True,
    )
    view.add_column("check", ratio=1)
    view.add_column("result", no_wrap=True)
    view.add_column("s", justify="right", no_wrap=True)
    group = ""
    for check in results.checks:
        if check.group != group:
            group = check.group
            view.add_section()
            view.add_row(Text(group.upper(), style="bold"))
        view.add_row(claim(check), Text(check.outcome.upper(), style=STYLES[check.outcome]), f"{check.seconds:.1f}")
    return view


def claim(check: CheckResult) -> Text:
    """A check's sentence, and under it what speaks against it."""
    text = Text(check.title)
    for line in check.found[:SHOWN_FINDINGS]:
        text.append(f"\n  {line}", style="red")
    if len(check.found) > SHOWN_FINDINGS:
        text.append(f"\n  and {len(check.found) - SHOWN_FINDINGS} more, in the JSON", style="red")
    if check.fix:
        text.append(f"\n  fix: {check.fix}", style="cyan")
    if check.reason:
        text.append(f"\n  {check.reason.strip().splitlines()[-1]}", style="dim")
    return text
