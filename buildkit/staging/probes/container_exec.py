"""What is asked of the service from inside its own containers: keys, schema, metrics, a release without traffic.

From outside there is no way to a single replica, and secrets are where the service has them. What goes in goes over
standard input, never among the arguments, which every process of the machine can read.
"""

from __future__ import annotations

import json
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from buildkit.errors import CommandFailed, ReleaseFailed
from buildkit.staging.probes import metrics
from buildkit.staging.probes.smoke_tests import SmokeTestReport

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from buildkit.staging.probes.metrics import Scrape
    from buildkit.staging.stack.orchestrator import Orchestrator

__all__ = ["Key", "SchemaPlan", "check_inside", "key_for_checks", "plan", "scrape"]

_SCRAPE: Final = """
import json, socket, sys, urllib.request
found = {}
for address in sorted({entry[4][0] for entry in socket.getaddrinfo("api", 8000, socket.AF_INET, socket.SOCK_STREAM)}):
    try:
        with urllib.request.urlopen(f"http://{address}:8000/metrics", timeout=5) as answer:
            found[address] = answer.read().decode()
    except OSError as error:
        print(f"{address}: {error}", file=sys.stderr)
json.dump(found, sys.stdout)
"""
_FORGET: Final = """
import asyncio, sys
from service.database import Database
from service.settings import Settings
async def forget(tenant):
    database = Database(Settings.from_environment().database_url, connections=1, timeout_seconds=30.0)
    await database.open()
    async with database.transaction() as connection:
        for table in ("claims", "evidence", "api_keys"):
            await connection.execute(f"DELETE FROM {table} WHERE tenant_id = $1", tenant)
    await database.close()
asyncio.run(forget(sys.stdin.read().strip()))
"""
_MODULES: Final = ("client", "fixtures", "load", "smoke_tests")
_RUN: Final = """
import json, sys, types
given = json.load(sys.stdin)
for name in ("buildkit", "buildkit.staging", "buildkit.staging.probes"):
    sys.modules[name] = types.ModuleType(name)
for name, source in given["modules"].items():
    module = sys.modules[f"buildkit.staging.probes.{name}"] = types.ModuleType(f"buildkit.staging.probes.{name}")
    exec(compile(source, name, "exec"), module.__dict__)
print(sys.modules["buildkit.staging.probes.smoke_tests"].main(json.dumps(given["configuration"])))
"""
_TOKENS_PER_MINUTE: Final = 1_000_000_000
"""More than any load of ours takes: rate limits are the suite's business, not the load's."""


@dataclass(frozen=True, slots=True)
class Key:
    """An API key that lives as long as a release's checks, with a tenant of its own."""

    name: str
    tenant: str
    secret: str


class SchemaPlan(msgspec.Struct, frozen=True):
    """As `python -m service migrate --plan` prints it."""

    current: str | None
    target: str
    direction: str
    revisions: tuple[str, ...]
    is_compatible: bool
    data_loss: tuple[str, ...]


@contextmanager
def key_for_checks(stack: Orchestrator, part: str = "api") -> Iterator[Key]:
    """A key with a tenant of its own, made in a container of *part*.

    Afterwards the key and all that was stored under it are removed, unless no replica is left to do it: then the key
    is one that nobody knows any more.
    """
    name = f"checks-{uuid.uuid4().hex[:12]}"
    command = ("python", "-m", "service", "keys", "add", name, "--scope", "write", "--tenant", name)
    made = stack.execute(stack.container(part), *command, "--tokens-per-minute", str(_TOKENS_PER_MINUTE))
    try:
        yield Key(name, name, made.strip())
    finally:
        with suppress(CommandFailed):
            stack.execute(stack.container(), "python", "-c", _FORGET, given=name)


def plan(stack: Orchestrator, container: str, target: str = "head") -> SchemaPlan:
    """What a migration by the code in *container* would do to the database.

    Raises:
        ReleaseFailed: that code knows no way.
    """
    try:
        said = stack.execute(container, "python", "-m", "service", "migrate", "--plan", "--to", target)
    except CommandFailed as error:
        raise ReleaseFailed(error.log_tail.splitlines()[-1] if error.log_tail else str(error)) from error
    return msgspec.json.decode(said, type=SchemaPlan)


def scrape(stack: Orchestrator) -> tuple[Scrape, ...]:
    """The metrics of every replica, asked for over the stack's own network by one of them.

    Raises:
        CommandFailed: no replica runs on this engine, or none answered.
    """
    found: Mapping[str, str] = json.loads(stack.execute(stack.container(), "python", "-c", _SCRAPE, seconds=60))
    if not found:
        raise CommandFailed(["docker", "exec"], 1, "no replica told its metrics")
    now = time.monotonic()
    return tuple(metrics.parse(text, replica=replica, at_seconds=now) for replica, text in found.items())


def check_inside(stack: Orchestrator, container: str, key: Key, vectors: Mapping[str, list[float]]) -> SmokeTestReport:
    """Runs the suite in *container* against the service there, where no proxy sends anything."""
    here = Path(__file__).parent
    given = {
        "modules": {name: (here / f"{name}.py").read_text() for name in _MODULES},
        "configuration": {"base": "http://127.0.0.1:8000", "key": key.secret, "vectors": vectors},
    }
    said = stack.execute(container, "python", "-c", _RUN, given=json.dumps(given), seconds=300)
    return msgspec.json.decode(said, type=SmokeTestReport)
