"""What was released: releases.json, its lock, and which releases may go.

The file is written beside itself and renamed, so that a reader finds the old text or the new one, and whoever is
killed leaves the old one.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import shutil
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from buildkit import jsonfile
from buildkit.errors import Busy, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Migrations",
    "Release",
    "Releases",
    "StepRecord",
    "TrafficMetrics",
    "expendable",
    "folder_of",
    "forget",
    "load",
    "locked",
    "now",
    "save",
    "who",
]

SCHEMA_VERSION: Final = 1
_FILE: Final = "releases.json"
_LOCK: Final = "lock"
SmokeTestReport: TypeAlias = Literal["serving", "replaced", "rolled back", "failed", "interrupted"]


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How one step went. `detail` is a line for people."""

    name: str
    outcome: Literal["done", "failed", "interrupted", "undone"]
    seconds: float
    detail: str = ""


class Migrations(msgspec.Struct, frozen=True, kw_only=True):
    """The schema's revision before and after the release; None before the first."""

    before: str | None
    after: str | None


class TrafficMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What the replicas' own metrics say about one span of time.

    Attributes:
        seconds: how long it was.
        requests: answered, probes left out.
        error_fraction: answers 5xx of all.
        p95_seconds: by route, interpolated within the histogram's buckets as Prometheus does.
    """

    seconds: float
    requests: int
    error_fraction: float
    p95_seconds: dict[str, float]


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One release, whatever became of it.

    Attributes:
        name: version and git revision; also the image's tag in the registry.
        image: repository with digest, as the stack runs it.
        digest: the one that was verified.
        who: user and machine.
        started: RFC 3339, UTC.
        outcome: what became of it; `replaced` and `rolled back` once served.
        failed_step: where it stopped.
        bytes_sent: blobs that the registry did not have yet.
        integration: what the suite counted.
        metrics: of the load that followed.
        parts: the images beside it in the stack, by part.
        settings: the stack file's variables that it ran with; secrets are none of them.
    """

    name: str
    image: str
    digest: str
    version: str
    revision: str
    who: str
    started: str
    outcome: SmokeTestReport
    failed_step: str = ""
    reason: str = ""
    bytes_sent: int | None = None
    migrations: Migrations | None = None
    integration: dict[str, float] = {}
    metrics: TrafficMetrics | None = None
    steps: tuple[StepRecord, ...] = ()
    parts: dict[str, str] = {}
    settings: dict[str, str] = {}


class Releases(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known, oldest first."""

    schema_version: int = SCHEMA_VERSION
    releases: tuple[Release, ...] = ()

    @property
    def serving(self) -> Release | None:
        """The release that serves."""
        return next((release for release in reversed(self.releases) if release.outcome == "serving"), None)

    def called(self, name: str) -> Release:
        """The newest release called *name* that can serve.

        Raises:
            UsageError: there is none.
        """
        kept = [release for release in self.releases if release.outcome in {"serving", "replaced", "rolled back"}]
        for release in reversed(kept):
            if name in {release.name, release.digest}:
                return release
        names = ", ".join(dict.fromkeys(release.name for release in kept)) or "none was kept"
        raise UsageError("release", name, f"expected one that served and is kept: {names}")

    def before_serving(self) -> Release | None:
        """The release that a rollback without a name goes to: the newest other one that was replaced."""
        serving = self.serving
        for release in reversed(self.releases):
            if release.outcome == "replaced" and (serving is None or release.digest != serving.digest):
                return release
        return None

    def with_release(self, release: Release) -> Releases:
        """These and *release*; where it serves, the one that served is `replaced`."""
        others = self.releases
        if release.outcome == "serving":
            others = self.retired("replaced")
        return msgspec.structs.replace(self, releases=(*others, release))

    def retired(self, outcome: SmokeTestReport) -> tuple[Release, ...]:
        """The releases, the serving one marked by *outcome*."""
        return tuple(
            msgspec.structs.replace(each, outcome=outcome) if each.outcome == "serving" else each
            for each in self.releases
        )


def expendable(releases: Releases, keep: int) -> tuple[Release, ...]:
    """Releases whose images may go: beyond the newest *keep* that served, never the serving one nor the last good one.

    A digest that any kept release names is kept, whatever older releases named it too. Failed releases go at once.
    """
    served: list[str] = []
    for release in reversed(releases.releases):
        if release.outcome in {"serving", "replaced", "rolled back"} and release.digest not in served:
            served.append(release.digest)
    kept = set(served[:keep])
    last_good = releases.before_serving()
    kept |= {release.digest for release in (releases.serving, last_good) if release is not None}
    gone: dict[str, Release] = {}
    for release in releases.releases:
        if release.digest not in kept and release.image:
            gone[release.image] = release
    return tuple(gone.values())


def folder_of(state: Path | None, environment_home: Path) -> Path:
    """Where staging's records lie: *state*, or a folder of the machine, since the stack is the machine's too."""
    if state is not None:
        return state
    if os.geteuid() == 0:
        return Path("/var/lib/truthgraph-staging")
    return environment_home / ".local" / "state" / "truthgraph-staging"


def load(folder: Path) -> Releases:
    """Reads the file below *folder*; no file is no release.

    Raises:
        UsageError: it is not one of ours, or of another schema version.
    """
    path = folder / _FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Releases()
    try:
        releases = msgspec.json.decode(content, type=Releases)
    except msgspec.MsgspecError as error:
        raise UsageError(str(path), str(error), "not a record of releases; move it away to start a new one") from error
    if releases.schema_version != SCHEMA_VERSION:
        raise UsageError(f"{path}: schema_version", releases.schema_version, f"this harness reads {SCHEMA_VERSION}")
    return releases


def save(folder: Path, releases: Releases) -> None:
    """Replaces the file below *folder*."""
    jsonfile.save(releases, folder / _FILE, indent=1)


def forget(folder: Path) -> None:
    """Removes *folder* with all that is in it: secrets and records."""
    shutil.rmtree(folder)


@contextlib.contextmanager
def locked(folder: Path, purpose: str) -> Iterator[None]:
    """Holds the lock of *folder* for *purpose*. The kernel gives it back however this process ends.

    Raises:
        Busy: another process has it; it is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Busy("staging", file.read().strip() or "a process that has just started") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} ({purpose}, by {who()}, since {now()})\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def who() -> str:
    """User and machine, as user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def now() -> str:
    """The time, RFC 3339, UTC, to the second."""
    return datetime.now(tz=UTC).isoformat(timespec="seconds")
