"""Defines the requests of a release to the running service: keys, migration plans, metrics, smoke tests and load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from buildkit.errors import CommandFailed
from buildkit.staging.probes import container_exec, smoke_tests
from buildkit.staging.probes.client import Client, RequestTimedOut
from buildkit.staging.probes.load import Load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from typing import Self

    from buildkit.staging.probes.container_exec import ApiKey, MigrationPlan
    from buildkit.staging.probes.load import LoadReport
    from buildkit.staging.probes.metrics import Scrape
    from buildkit.staging.probes.smoke_tests import SmokeTestReport
    from buildkit.staging.stack.orchestrator import Orchestrator

__all__ = ["BackgroundLoad", "Probes", "ServiceProbes"]

_ANSWER_SECONDS: Final = 20.0
"""Time without an answer after which the serving release counts as broken (a guess: more than a proxy's restart)."""
_OK: Final = 200


class BackgroundLoad(Protocol):
    """Requests in the background, with a check of every answer. They run during a `with` block."""

    def prepare(self) -> None:
        """Records the reference answers."""

    def vectors(self) -> dict[str, list[float]]:
        """Returns the reference vectors by text."""

    def __enter__(self) -> Self:
        """Starts it."""

    def __exit__(self, *_: object) -> None:
        """Stops it."""

    def report(self) -> LoadReport:
        """Reads the stored claims back and returns the figures."""


class Probes(Protocol):
    """The requests of a release to the service of a stack. `ServiceProbes` sends them to a real one."""

    def answers(self, stack: Orchestrator) -> bool:
        """Returns whether a healthy replica runs on this machine and answers through the proxy."""

    def api_key(self, stack: Orchestrator, service: str) -> AbstractContextManager[ApiKey]:
        """Creates an API key with its own tenant in a container of *service*; deletes it with its data at the end."""

    def migration_plan(self, stack: Orchestrator, container: str, target: str = "head") -> MigrationPlan:
        """Returns the migrations that the code in *container* would run to reach *target*; changes nothing."""

    def scrape(self, stack: Orchestrator) -> tuple[Scrape, ...]:
        """Returns the metrics of every replica."""

    def smoke_test(self, stack: Orchestrator, key: ApiKey, vectors: Mapping[str, list[float]]) -> SmokeTestReport:
        """Runs the smoke tests through the proxy; vectors must equal those in *vectors*."""

    def smoke_test_inside(
        self, stack: Orchestrator, container: str, key: ApiKey, vectors: Mapping[str, list[float]]
    ) -> SmokeTestReport:
        """Runs the smoke tests inside *container*, which gets no traffic."""

    def load(self, stack: Orchestrator, key: ApiKey, *, workers: int, pause_seconds: float = 0.0) -> BackgroundLoad:
        """Returns a load with *workers* concurrent requests through the proxy; the caller starts it."""


class ServiceProbes:
    """Probes of a real service, over HTTP and by commands inside its containers."""

    def answers(self, stack: Orchestrator) -> bool:
        """See `Probes`."""
        client = Client(stack.address, ca_file=stack.certificate, retry_seconds=_ANSWER_SECONDS)
        try:
            stack.container("api")
            return client.send("GET", "/livez").status == _OK
        except (CommandFailed, RequestTimedOut):
            return False
        finally:
            client.close()

    def api_key(self, stack: Orchestrator, service: str) -> AbstractContextManager[ApiKey]:
        """See `Probes`."""
        return container_exec.temporary_key(stack, service)

    def migration_plan(self, stack: Orchestrator, container: str, target: str = "head") -> MigrationPlan:
        """See `Probes`."""
        return container_exec.plan_migration(stack, container, target)

    def scrape(self, stack: Orchestrator) -> tuple[Scrape, ...]:
        """See `Probes`."""
        return container_exec.scrape(stack)

    def smoke_test(self, stack: Orchestrator, key: ApiKey, vectors: Mapping[str, list[float]]) -> SmokeTestReport:
        """See `Probes`."""
        client = _client(stack, key)
        try:
            return smoke_tests.run(client, baseline=vectors)
        finally:
            client.close()

    def smoke_test_inside(
        self, stack: Orchestrator, container: str, key: ApiKey, vectors: Mapping[str, list[float]]
    ) -> SmokeTestReport:
        """See `Probes`."""
        with container_exec.canary_client(stack, container, key) as client:
            return smoke_tests.run(client, baseline=vectors)

    def load(self, stack: Orchestrator, key: ApiKey, *, workers: int, pause_seconds: float = 0.0) -> BackgroundLoad:
        """See `Probes`."""
        return Load(lambda: _client(stack, key), workers=workers, pause_seconds=pause_seconds)


def _client(stack: Orchestrator, key: ApiKey) -> Client:
    return Client(stack.address, key.secret, ca_file=stack.certificate)
