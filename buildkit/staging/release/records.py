"""Reads and writes releases.json, the history of releases, and holds its lock."""

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
from msgspec import structs

from buildkit import jsonfile
from buildkit.errors import Busy, UsageError
from buildkit.staging.probes.metrics import TrafficMetrics  # noqa: TC001 - msgspec reads the annotations at run time

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Migrations",
    "Release",
    "ReleaseOutcome",
    "Releases",
    "StepOutcome",
    "StepRecord",
    "current_user",
    "delete_state",
    "load",
    "locked",
    "new_release",
    "removable",
    "save",
    "state_folder",
    "timestamp",
]

SCHEMA_VERSION: Final = 2
_FILE: Final = "releases.json"
_LOCK: Final = "lock"
ReleaseOutcome: TypeAlias = Literal["serving", "replaced", "rolled back", "failed", "interrupted"]
StepOutcome: TypeAlias = Literal["done", "failed", "interrupted", "undone", "undo failed"]
_SERVED: Final = frozenset({"serving", "replaced", "rolled back"})


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one step or of its undo. `detail` is one line of text."""

    name: str
    outcome: StepOutcome
    seconds: float
    detail: str = ""


class Migrations(msgspec.Struct, frozen=True, kw_only=True):
    """The schema's revision before and after the release; None before the first."""

    before: str | None
    after: str | None


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One release or rollback, successful or not.

    Attributes:
        name: version and git revision; also the image's tag in the registry.
        image: repository with digest, as the stack runs it.
        digest: of the verified image.
        version: of the project, from pyproject.toml.
        revision: the git commit.
        released_by: user and machine.
        started: RFC 3339, UTC.
        outcome: `serving` while it serves, otherwise how it ended.
        failed_step: the step that stopped it; "" if none did.
        reason: why that step failed; for a rollback, the problems that were found afterwards.
        bytes_sent: blobs that the registry did not have yet.
        migrations: the schema before and after.
        counts: figures of the smoke test and of the load, by name.
        metrics: of the step `measure`, under its load.
        steps: the outcomes of the steps and undos, in order.
        sidecars: the other images of the stack, by service.
        settings: the stack file's variables that it runs with, without secrets.
    """

    name: str
    image: str
    digest: str
    version: str
    revision: str
    released_by: str
    started: str
    outcome: ReleaseOutcome
    failed_step: str = ""
    reason: str = ""
    bytes_sent: int | None = None
    migrations: Migrations | None = None
    counts: dict[str, float] = {}
    metrics: TrafficMetrics | None = None
    steps: tuple[StepRecord, ...] = ()
    sidecars: dict[str, str] = {}
    settings: dict[str, str] = {}


class Releases(msgspec.Struct, frozen=True, kw_only=True):
    """The history, oldest release first."""

    schema_version: int = SCHEMA_VERSION
    releases: tuple[Release, ...] = ()

    @property
    def serving(self) -> Release | None:
        """The release that serves."""
        return next((release for release in reversed(self.releases) if release.outcome == "serving"), None)

    def find(self, name: str) -> Release:
        """Returns the newest release with this name or digest that has served.

        Raises:
            UsageError: there is none.
        """
        served = [release for release in self.releases if release.outcome in _SERVED]
        for release in reversed(served):
            if name in {release.name, release.digest}:
                return release
        names = ", ".join(dict.fromkeys(release.name for release in served)) or "there is none"
        raise UsageError("release", name, f"expected a release that has served: {names}")

    def previous(self) -> Release | None:
        """Returns the release that a rollback without a name returns to: the newest other one that was replaced."""
        serving = self.serving
        for release in reversed(self.releases):
            if release.outcome == "replaced" and (serving is None or release.digest != serving.digest):
                return release
        return None

    def with_release(self, release: Release) -> Releases:
        """Returns the history with *release* at its end; if it serves, the one before becomes `replaced`."""
        others = self.releases
        if release.outcome == "serving":
            others = self.with_outcome_of_serving("replaced")
        return structs.replace(self, releases=(*others, release))

    def with_outcome_of_serving(self, outcome: ReleaseOutcome) -> tuple[Release, ...]:
        """Returns the releases, with *outcome* for the serving one."""
        return tuple(
            structs.replace(each, outcome=outcome) if each.outcome == "serving" else each for each in self.releases
        )


def new_release() -> Release:
    """Returns the record of a release that has just started."""
    return Release(
        name="",
        image="",
        digest="",
        version="",
        revision="",
        released_by=current_user(),
        started=timestamp(),
        outcome="interrupted",
    )


def removable(history: Releases, keep: int) -> tuple[Release, ...]:
    """Returns releases whose images may be removed: those that failed, and those beyond the newest *keep* that served.

    The serving release and the one that a rollback returns to always stay, and so does every digest that they share
    with other releases.
    """
    served: list[str] = []
    for release in reversed(history.releases):
        if release.outcome in _SERVED and release.digest not in served:
            served.append(release.digest)
    needed = set(served[:keep])
    needed |= {release.digest for release in (history.serving, history.previous()) if release is not None}
    found = {each.image: each for each in history.releases if each.digest not in needed and each.image}
    return tuple(found.values())


def state_folder(state: Path | None, home: Path) -> Path:
    """Returns the folder of staging's state: *state* if given, else in /var/lib for root, else below *home*."""
    if state is not None:
        return state
    if os.geteuid() == 0:
        return Path("/var/lib/truthgraph-staging")
    return home / ".local" / "state" / "truthgraph-staging"


def load(folder: Path) -> Releases:
    """Reads releases.json in *folder*; without the file, the history is empty.

    Raises:
        InvalidFile: it is not a history of releases, or has another schema version.
    """
    path = folder / _FILE
    if not path.exists():
        return Releases()
    return jsonfile.load(
        path,
        Releases,
        version=SCHEMA_VERSION,
        what="a history of releases",
        fix="run `nox -s stage-down`, move the file away, and stage again",
    )


def save(folder: Path, releases: Releases) -> None:
    """Replaces releases.json in *folder* as a whole."""
    jsonfile.save(releases, folder / _FILE, indent=1)


def delete_state(folder: Path) -> None:
    """Removes *folder* with the secrets and the history in it."""
    shutil.rmtree(folder)


@contextlib.contextmanager
def locked(folder: Path, purpose: str) -> Iterator[None]:
    """Holds the lock of *folder* for *purpose*. The kernel releases it even if this process is killed.

    Raises:
        Busy: another process holds it; the error names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Busy("staging", file.read().strip() or "a process that has just started") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} ({purpose}, by {current_user()}, since {timestamp()})\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def current_user() -> str:
    """Returns user and machine, as user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def timestamp() -> str:
    """Returns the time as RFC 3339, UTC, to the second."""
    return datetime.now(tz=UTC).isoformat(timespec="seconds")
