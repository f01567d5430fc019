"""Whose cache a timed build empties and fills: never the one that the user's other builds need.

Without a name it is an engine of its own, started beside all others and thrown away afterwards. It has a bridge of its
own, which nothing is connected to: RUN steps take the machine's network, so no firewall rule is made or needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from buildkit.engine import client, daemon
from buildkit.engine.daemon import ManagedDaemon
from buildkit.errors import CommandFailed, EngineUnavailable, UsageError
from buildkit.image.read import ReadOptions, layer_blobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from buildkit.engine.client import Engine

__all__ = ["TIMING", "CacheScope", "named", "own", "remove_own"]

TIMING: Final = ManagedDaemon(
    Path("/var/lib/truthgraph-engine-timing"), Path("/run/truthgraph-engine-timing"), "tgtiming0"
)
_RANGES: Final = tuple(ipaddress.IPv4Network(f"10.{second}.77.0/29") for second in (213, 199, 187, 171, 155, 139))
_DOWNLOADS: Final = "exec.cachemount"
_LAYERS: Final = ("regular", "source.local", "internal", "frontend")
"""Kinds of records in BuildKit's cache (client/diskusage.go); cache mounts are the one besides, `_DOWNLOADS`."""
_DOWNLOADED: Final = "downloaded"
_PRUNE_SECONDS: Final = 600.0
_COLLECTION_SECONDS: Final = 120.0
_QUIET_SECONDS, _QUIET_BYTES = 5.0, 10_000_000
"""Storage that has changed by less for so long is no longer being freed: guesses, above an idle machine's noise."""


@dataclass(frozen=True, slots=True)
class CacheScope:
    """An engine whose builder's cache may be emptied.

    Attributes:
        engine: where the images go.
        network: what RUN steps need to reach a package index.
        description: in words, for the report.
        private: where the engine lives if it is ours alone: nobody else's cache is in it, and what its processes write
            can be seen; None for the user's.
    """

    engine: Engine
    network: Literal["", "host"]
    description: str
    private: ManagedDaemon | None

    @property
    def _downloaded(self) -> Path | None:
        return self.private.state / _DOWNLOADED if self.private else None

    def empty(self, *, downloads: bool) -> None:
        """Forget the result of every step, with *downloads* the cache mounts too."""
        for kind in (*_LAYERS, *((_DOWNLOADS,) if downloads else ())):
            command = ("buildx", "prune", "--all", "--force", "--filter", f"type={kind}")
            self.engine.docker(*command, seconds=_PRUNE_SECONDS)
        if downloads and self._downloaded:
            self._downloaded.unlink(missing_ok=True)
        self._await_collection()

    def _await_collection(self) -> None:
        """Wait until the engine has deleted what it forgot, two minutes at most.

        containerd does that behind its answer, gigabytes of it, and starts within a second.
        """
        deadline = time.monotonic() + _COLLECTION_SECONDS
        free_bytes, since = self.free_bytes(), time.monotonic()
        while free_bytes is not None and since + _QUIET_SECONDS > time.monotonic() < deadline:
            time.sleep(_QUIET_SECONDS / 10)
            now = self.free_bytes()
            if now is None or abs(now - free_bytes) > _QUIET_BYTES:
                free_bytes, since = now, time.monotonic()

    def downloaded(self) -> set[str]:
        """Return what `remember` was told since the cache mounts were empty, by a kept engine's earlier runs too."""
        if self._downloaded is None or not self._downloaded.exists():
            return set()
        return set(self._downloaded.read_text().splitlines())

    def remember(self, build: str) -> None:
        """Note that the cache mounts hold all that *build*, a target with its lock, needs."""
        if self._downloaded:
            self._downloaded.write_text("\n".join(sorted(self.downloaded() | {build})))

    def remove_image(self, tag: str) -> None:
        """Remove an image; one that is not there is fine."""
        with contextlib.suppress(CommandFailed):
            self.engine.docker("image", "rm", "--force", tag, seconds=_PRUNE_SECONDS)

    def blobs(self, digest: str) -> dict[str, int]:
        """Return digest and bytes of each layer of an image as the engine stores it."""
        return layer_blobs(digest, ReadOptions(engine_host=self.engine.host))

    def free_bytes(self) -> int | None:
        """Return the room where the engine stores, None for another machine's."""
        return shutil.disk_usage(self.engine.root).free if self.engine.root else None

    def written_bytes(self) -> int | None:
        """Return what the private engine's processes and their ended children wrote so far (proc(5), write_bytes)."""
        if self.private is None:
            return None
        count = 0
        for pid in (self.private.pid_file, self.private.run / "exec" / "containerd" / "containerd.pid"):
            try:
                lines = Path(f"/proc/{int(pid.read_text())}/io").read_text().splitlines()
            except (OSError, ValueError):
                return None
            count += next(int(line.partition(":")[2]) for line in lines if line.startswith("write_bytes:"))
        return count


@contextlib.contextmanager
def own(log: Callable[[str], None], *, keep: bool, private: ManagedDaemon = TIMING) -> Iterator[CacheScope]:
    """An engine of its own for the length of the block, removed with all that it stored; *keep* leaves its downloads.

    Raises:
        EngineUnavailable: it cannot be started here, or another run has it; `commands` says what can be done instead.
    """
    if shutil.which("dockerd") is None or shutil.which("ip") is None:
        missing = "dockerd" if shutil.which("dockerd") is None else "ip (Debian's iproute2)"
        advice = ["nox -s engine", "nox -s time-image -- --builder NAME"]
        raise EngineUnavailable(private.host, f"{missing} is not installed", advice)
    with _only_one(private) as is_ours:
        if not is_ours:
            raise EngineUnavailable(private.host, "another run of timed builds has it; wait until that is over", [])
        try:
            log("starting an engine of its own for the timed builds")
            _make_bridge(private.bridge)
            engine = daemon.start(private, log)
            yield CacheScope(
                engine,
                network="host",
                description="an engine of its own, started for this run, with no cache of any other build",
                private=private,
            )
        finally:
            _remove(log, private, purge=not keep)


@contextlib.contextmanager
def _only_one(private: ManagedDaemon) -> Iterator[bool]:
    """Whether no other process has the engine for the length of the block; the kernel forgets those that ended."""
    path = private.run.with_name(f"{private.run.name}.lock")
    try:
        lock = path.open("w")
    except PermissionError as error:
        raise EngineUnavailable(private.host, "only root can start one", ["sudo nox -s time-image"]) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def remove_own(log: Callable[[str], None], *, purge: bool, private: ManagedDaemon = TIMING) -> None:
    """Remove what a killed run left of its engine; one that is at work is left alone. *purge*: what it stored too."""
    if not private.state.exists() and not Path(f"/sys/class/net/{private.bridge}").exists():
        return
    with _only_one(private) as is_ours:
        if is_ours:
            _remove(log, private, purge=purge)
        else:
            log("timed builds are running in an engine of their own, which is left alone")


def _remove(log: Callable[[str], None], private: ManagedDaemon, *, purge: bool) -> None:
    """Stop the engine of an earlier run and remove its bridge; *purge* removes all that it stored."""
    daemon.stop(private, log, purge=purge)
    if purge:
        shutil.rmtree(private.run, ignore_errors=True)
    if Path(f"/sys/class/net/{private.bridge}").exists():
        subprocess.run(["ip", "link", "delete", private.bridge], capture_output=True, check=False)


def named(engine: Engine, builder: str) -> CacheScope:
    """The builder that the user calls *builder*, whose cache is emptied: an engine's own, by the name of its context.

    Raises:
        UsageError: buildx knows no such builder, or it cannot give its images to the engine.
    """
    try:
        inspected = engine.docker("buildx", "inspect", builder, seconds=60.0)
    except CommandFailed as error:
        raise UsageError("builder", builder, f"unknown to buildx ({error.log_tail})") from error
    driver = next((line.split()[-1] for line in inspected.splitlines() if line.startswith("Driver:")), "")
    if driver != "docker":
        fix = f"its driver is {driver!r}, and its images stay with it; name one of an engine (`docker context create`)"
        raise UsageError("builder", builder, fix)
    context = json.loads(engine.docker("context", "inspect", builder))[0]
    found = client.connect(str(context["Endpoints"]["docker"].get("Host", "")))
    return CacheScope(found, "", f"the builder {builder}, emptied for this run", private=None)


def _make_bridge(name: str) -> None:
    """Create the interface *name* with addresses that no route of this machine leads to, unless it is there.

    Raises:
        CommandFailed: it cannot be created.
        EngineUnavailable: every candidate range is in use.
    """
    if Path(f"/sys/class/net/{name}").exists():
        return
    free = _free_range(list(_routes(Path("/proc/net/route").read_text())))
    for arguments in (
        ("link", "add", name, "type", "bridge"),
        ("address", "add", f"{next(free.hosts())}/{free.prefixlen}", "dev", name),
        ("link", "set", name, "up"),
    ):
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailed(["ip", *arguments], done.returncode, done.stderr.strip())


def _free_range(routes: Sequence[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    for candidate in _RANGES:
        if not any(candidate.overlaps(route) for route in routes):
            return candidate
    raise EngineUnavailable("the machine's network", "every candidate address range is routed somewhere", [])


def _routes(table: str) -> Iterator[ipaddress.IPv4Network]:
    """Read the destinations of /proc/net/route without the default: fields 2 and 8, hexadecimal, little-endian."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        target, mask = (int.from_bytes(bytes.fromhex(fields[place]), "little") for place in (1, 7))
        if mask:
            yield ipaddress.IPv4Network((target, mask.bit_count()))
