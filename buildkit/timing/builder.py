"""Provides the builder of a benchmark, which clears its cache; never the builder of the user's other builds.

By default it is a managed daemon that runs next to all other engines and is removed afterwards. It gets its own network
bridge, to which nothing is connected: RUN steps use the network of the machine, so dockerd makes no firewall rule.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from buildkit.engine.client import connect
from buildkit.engine.daemon import ManagedDaemon, start, stop
from buildkit.errors import CommandFailed, EngineUnavailable, UsageError
from buildkit.image.read import ReadOptions, layer_blobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from buildkit.engine.client import Engine

__all__ = ["BENCHMARK_DAEMON", "BenchmarkBuilder", "own_builder", "remove_own_builder", "user_builder"]

BENCHMARK_DAEMON: Final = ManagedDaemon(
    Path("/var/lib/truthgraph-engine-timing"), Path("/run/truthgraph-engine-timing"), "tgtiming0"
)
_DOWNLOADS: Final = "exec.cachemount"
_LAYERS: Final = ("regular", "source.local", "internal", "frontend")
"""Kinds of records in BuildKit's cache (client/diskusage.go) other than cache mounts, `_DOWNLOADS`."""
_DOWNLOADED: Final = "downloaded"
_PRUNE_SECONDS: Final = 600.0
_DELETION_SECONDS: Final = 120.0
_QUIET_SECONDS, _QUIET_BYTES = 5.0, 10_000_000
"""Deletion has ended if free space changes by fewer bytes for so many seconds: guesses, above an idle disk's noise."""


@dataclass(frozen=True, slots=True)
class BenchmarkBuilder:
    """A builder with a cache that a benchmark may clear, and the engine that stores its images.

    Attributes:
        engine: stores the images.
        network: the network of RUN steps that need a package index; "" for the default.
        description: a description of the builder for the report.
        daemon: the managed daemon: its cache holds nothing else, and its writes can be counted. None for a builder of
            the user.
    """

    engine: Engine
    network: Literal["", "host"]
    description: str
    daemon: ManagedDaemon | None

    @property
    def _downloaded_file(self) -> Path | None:
        return self.daemon.state / _DOWNLOADED if self.daemon else None

    def clear_cache(self, *, downloads: bool) -> None:
        """Removes the cached results of all steps; with *downloads* the cache mounts too."""
        for kind in (*_LAYERS, *((_DOWNLOADS,) if downloads else ())):
            command = ("buildx", "prune", "--all", "--force", "--filter", f"type={kind}")
            self.engine.docker(*command, seconds=_PRUNE_SECONDS)
        if downloads and self._downloaded_file:
            self._downloaded_file.unlink(missing_ok=True)
        self._wait_for_deletion()

    def _wait_for_deletion(self) -> None:
        """Waits until the engine has deleted the pruned files, for at most two minutes.

        containerd answers first, starts to delete within a second, and may have gigabytes to delete.
        """
        deadline = time.monotonic() + _DELETION_SECONDS
        free_bytes, since = self.free_bytes(), time.monotonic()
        while free_bytes is not None and since + _QUIET_SECONDS > time.monotonic() < deadline:
            time.sleep(_QUIET_SECONDS / 10)
            now = self.free_bytes()
            if now is None or abs(now - free_bytes) > _QUIET_BYTES:
                free_bytes, since = now, time.monotonic()

    def downloaded(self) -> set[str]:
        """Returns the builds with all their downloads in the cache mounts, also those of earlier runs."""
        if self._downloaded_file is None or not self._downloaded_file.exists():
            return set()
        return set(self._downloaded_file.read_text().splitlines())

    def add_downloaded(self, build: str) -> None:
        """Records that the cache mounts hold all downloads of *build*, a target with its lock."""
        if self._downloaded_file:
            self._downloaded_file.write_text("\n".join(sorted(self.downloaded() | {build})))

    def remove_image(self, tag: str) -> None:
        """Removes an image if it exists."""
        with contextlib.suppress(CommandFailed):
            self.engine.docker("image", "rm", "--force", tag, seconds=_PRUNE_SECONDS)

    def blobs(self, digest: str) -> dict[str, int]:
        """Returns the stored bytes of each layer of an image, by digest."""
        return layer_blobs(digest, ReadOptions(engine_host=self.engine.host))

    def free_bytes(self) -> int | None:
        """Returns the free space on the engine's disk; None if it is on another machine."""
        return shutil.disk_usage(self.engine.root).free if self.engine.root else None

    def written_bytes(self) -> int | None:
        """Returns the bytes that the daemon's processes and ended children wrote so far (proc(5), write_bytes)."""
        if self.daemon is None:
            return None
        count = 0
        for pid in (self.daemon.pid_file, self.daemon.run / "exec" / "containerd" / "containerd.pid"):
            try:
                lines = Path(f"/proc/{int(pid.read_text())}/io").read_text().splitlines()
            except (OSError, ValueError):
                return None
            count += next(int(line.partition(":")[2]) for line in lines if line.startswith("write_bytes:"))
        return count


@contextlib.contextmanager
def own_builder(
    log: Callable[[str], None], *, keep_downloads: bool, daemon: ManagedDaemon = BENCHMARK_DAEMON
) -> Iterator[BenchmarkBuilder]:
    """Runs *daemon* inside the block, then removes its data; *keep_downloads* keeps its cache mounts.

    Raises:
        EngineUnavailable: it cannot be started here, or another benchmark uses it; `commands` has the alternatives.
    """
    if shutil.which("dockerd") is None or shutil.which("ip") is None:
        missing = "dockerd" if shutil.which("dockerd") is None else "ip (Debian's iproute2)"
        advice = ["nox -s engine", "nox -s time-image -- --builder NAME"]
        raise EngineUnavailable(daemon.host, f"{missing} is not installed", advice)
    with _locked(daemon) as is_ours:
        if not is_ours:
            raise EngineUnavailable(daemon.host, "another benchmark uses it; wait until it has finished", [])
        try:
            log("starting an engine for the timed builds")
            _make_bridge(daemon.bridge)
            yield BenchmarkBuilder(
                start(daemon, log),
                network="host",
                description="an engine of its own, started for this run, with no cache of any other build",
                daemon=daemon,
            )
        finally:
            _remove(log, daemon, purge=not keep_downloads)


@contextlib.contextmanager
def _locked(daemon: ManagedDaemon) -> Iterator[bool]:
    """Locks *daemon* inside the block; yields False if another process holds the lock. A lock ends with its process."""
    path = daemon.run.with_name(f"{daemon.run.name}.lock")
    try:
        lock = path.open("w")
    except PermissionError as error:
        raise EngineUnavailable(daemon.host, "only root can start one", ["sudo nox -s time-image"]) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def remove_own_builder(log: Callable[[str], None], *, purge: bool, daemon: ManagedDaemon = BENCHMARK_DAEMON) -> None:
    """Removes the *daemon* of a killed benchmark, with *purge* its data too; leaves a running benchmark alone."""
    if not daemon.state.exists() and not _bridge_exists(daemon.bridge):
        return
    with _locked(daemon) as is_ours:
        if is_ours:
            _remove(log, daemon, purge=purge)
        else:
            log("a benchmark is running; its engine is left alone")


def _remove(log: Callable[[str], None], daemon: ManagedDaemon, *, purge: bool) -> None:
    """Stops *daemon* and removes its bridge; *purge* also removes its data."""
    stop(daemon, log, purge=purge)
    if purge:
        shutil.rmtree(daemon.run, ignore_errors=True)
    if _bridge_exists(daemon.bridge):
        subprocess.run(["ip", "link", "delete", daemon.bridge], capture_output=True, check=False)


def user_builder(engine: Engine, name: str) -> BenchmarkBuilder:
    """Returns the user's builder *name*, which is the name of an engine's docker context. Its cache will be cleared.

    Raises:
        UsageError: buildx knows no such builder, or its images do not go to an engine.
    """
    try:
        inspected = engine.docker("buildx", "inspect", name, seconds=60.0)
    except CommandFailed as error:
        raise UsageError("builder", name, f"unknown to buildx ({error.log_tail})") from error
    driver = next((line.split()[-1] for line in inspected.splitlines() if line.startswith("Driver:")), "")
    if driver != "docker":
        fix = f"its driver {driver!r} stores no images in an engine; name an engine's builder (`docker context create`)"
        raise UsageError("builder", name, fix)
    context = json.loads(engine.docker("context", "inspect", name))[0]
    found = connect(str(context["Endpoints"]["docker"].get("Host", "")))
    return BenchmarkBuilder(found, "", f"the builder {name}, emptied for this run", daemon=None)


def _bridge_exists(name: str) -> bool:
    return Path(f"/sys/class/net/{name}").exists()


def _make_bridge(name: str) -> None:
    """Creates the network bridge *name* unless it exists; dockerd gives it an address that no route uses.

    dockerd's setting `"bridge": "none"` would need no bridge, but removes docker0, which other engines need (tried).

    Raises:
        CommandFailed: it cannot be created.
    """
    if _bridge_exists(name):
        return
    for arguments in (("link", "add", name, "type", "bridge"), ("link", "set", name, "up")):
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailed(["ip", *arguments], done.returncode, done.stderr.strip())
