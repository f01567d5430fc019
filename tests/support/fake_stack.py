"""Fakes a stack, the service in it, and the engine that pushes images, for releases that take no time."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from msgspec import structs

from buildkit import spec
from buildkit.spec import Staging
from buildkit.staging.probes.container_exec import ApiKey, MigrationPlan
from buildkit.staging.probes.load import LoadReport
from buildkit.staging.probes.metrics import Scrape
from buildkit.staging.probes.smoke_tests import SmokeTestReport
from buildkit.staging.release.run import ReleaseContext
from buildkit.staging.stack.services import Replica
from buildkit.staging.stack.sidecars import SIDECARS
from tests.support.fake_engine import FakeEngine
from tests.support.release_records import write_records

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping

    from buildkit.staging.release.probes import BackgroundLoad
    from buildkit.staging.stack.orchestrator import Orchestrator

__all__ = ["REVISIONS", "FakeSite", "FakeStack", "at_start_of", "digest", "interrupt"]

ROOT = Path(__file__).parents[2]
REVISIONS = ("0001", "0002", "0003")
"""Schema revisions, the oldest first."""


def digest(name: str) -> str:
    """Returns a digest made from a short *name*."""
    return f"sha256:{name.encode().hex():0<64}"


def at_start_of(step: str, action: Callable[[], object]) -> Callable[[str], None]:
    """Returns a log that runs *action* when *step* starts."""

    def log(line: str) -> None:
        if line == f"{step}: …":
            action()

    return log


def interrupt() -> NoReturn:
    """Raises KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt


@dataclass
class FakeSite:
    """One fake site for releases.

    Attributes:
        state: folder of releases.json and of the records that a release reads.
        running: service -> image that runs; empty before the first release.
        schema: revision of the database; None before the first release.
        code: image -> revision that its code needs; others need the first.
        is_compatible: whether the older code works on the newer schema.
        data_loss: sentences about the data that a downgrade would lose.
        answers: whether the deployed release answers.
        has_canary: whether the canary runs.
        has_key: whether the API key of the probes exists.
        sidecars: service -> digest of its image.
        faults: operation -> error that it raises once, after it has done its work.
        calls: operations so far, with their subjects.
        lines: progress lines so far.
        wrong: smoke test that fails; "" for none.
        report: the result of every load.
    """

    state: Path
    running: dict[str, str] = field(default_factory=dict)
    schema: str | None = None
    code: dict[str, str] = field(default_factory=dict)
    is_compatible: bool = True
    data_loss: tuple[str, ...] = ()
    answers: bool = True
    has_canary: bool = False
    has_key: bool = False
    sidecars: dict[str, str] = field(default_factory=lambda: {"database": digest("pg"), "proxy": digest("proxy")})
    faults: dict[str, BaseException] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    wrong: str = ""
    report: LoadReport = field(
        default_factory=lambda: LoadReport(
            seconds=1.0,
            requests=100,
            retried=0,
            retries=0,
            timed_out=0,
            wrong=0,
            claims=10,
            claims_lost=0,
            tasks=0,
            tasks_completed=0,
            tasks_lost=0,
            longest_gap_seconds=0.1,
        )
    )
    engine: FakeEngine = field(default_factory=FakeEngine)

    def do(self, operation: str, about: str = "") -> None:
        """Records an operation, and raises its fault if it has one."""
        self.calls.append(f"{operation} {about}".strip())
        if operation in self.faults:
            raise self.faults.pop(operation)

    def context(
        self,
        name: str,
        *,
        log: Callable[[str], None] | None = None,
        allow_downtime: bool = False,
        keep_schema: bool = False,
    ) -> ReleaseContext:
        """Returns the inputs of a release of the image whose digest is made from *name*."""
        build_path, verify_path = write_records(self.state, built=digest(name), revision=f"{name:0<40}")
        self._answer_for_images(name)
        loaded = spec.load(ROOT)
        staging = Staging(load_seconds=0.0, budget=loaded.staging.budget)
        return ReleaseContext(
            spec=structs.replace(loaded, staging=staging),
            engine=self.engine,
            build_path=build_path,
            verify_path=verify_path,
            state=self.state,
            stack=FakeStack(self),
            repository="registry.test/truthgraph-api",
            log=log or self.lines.append,
            sidecar=self.sidecars.__getitem__,
            probes=FakeProbes(self),
            allow_downtime=allow_downtime,
            keep_schema=keep_schema,
        )

    def image(self, name: str) -> str:
        """Returns the reference of the image whose digest is made from *name*, as `push` makes it."""
        return f"registry.test/truthgraph-api@{digest(name)}"

    def plan(self, container: str, target: str) -> MigrationPlan:
        """Returns the way to *target* by the code whose image is *container*."""
        wanted = self.code.get(container, REVISIONS[0]) if target == "head" else target
        order: dict[str | None, int] = {None: -1, **{revision: number for number, revision in enumerate(REVISIONS)}}
        here, there = order[self.schema], order[wanted]
        direction = "up" if here < there else "down" if here > there else "none"
        between = REVISIONS[min(here, there) + 1 : max(here, there) + 1]
        return MigrationPlan(
            current=self.schema,
            target=wanted,
            direction=direction,
            revisions=between,
            is_compatible=self.is_compatible,
            data_loss=self.data_loss if direction == "down" else (),
        )

    def _answer_for_images(self, name: str) -> None:
        """Adds answers of the engine: it has and pushes the image made from *name* and those of the sidecars."""
        pushed = {f"truthgraph-api:1.2.3-{name:0<12}": digest(name)}
        for service, target in SIDECARS.items():
            pushed[f"truthgraph-{target}:{self.sidecars[service][7:19]}"] = self.sidecars[service]
        layers = {"layers": [{"digest": f"sha256:{'1' * 64}", "size": 1000}]}
        self.engine.answers["image inspect"] = digest(name)
        self.engine.answers["buildx imagetools inspect"] = json.dumps(layers)
        for tag, image in pushed.items():
            self.engine.answers[f"push registry.test/{tag}"] = f"{'1' * 12}: Pushed\nt: digest: {image} size: 9"


@dataclass(frozen=True, slots=True)
class FakeStack:
    """An `Orchestrator` that only records its operations."""

    site: FakeSite
    images: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    address: str = "http://stack.test"
    certificate: str | None = None

    def with_release(self, images: Mapping[str, str], settings: Mapping[str, str]) -> FakeStack:
        return replace(self, images=images, settings=settings)

    def exists(self, service: str) -> bool:
        return self.site.has_canary if service == "canary" else service in self.site.running

    def image(self, service: str) -> str:
        return self.site.running[service]

    def replicas(self, service: str, *, include_ended: bool = False) -> tuple[Replica, ...]:
        del include_ended
        return (Replica("t", 1, self.site.running[service], "running", "running", "", "container"),)

    def deploy(self) -> None:
        self.site.running |= self.images
        self.site.do("deploy", self.images["api"][-64:].rstrip("0"))

    def last_update(self, service: str) -> str:
        del service
        return str(len(self.site.calls))

    def wait_for_rollout(
        self, service: str, *, seconds: float, previous_update: str = "", until_digest: str = ""
    ) -> None:
        del seconds, previous_update
        self.site.do(f"wait for {service}")
        assert until_digest in {"", self.site.running[service].partition("@")[2]}

    def run_job(self, job: str, image: str, *, seconds: float, command: str = "") -> None:
        del seconds
        revision = command.rpartition(" ")[2]
        newest = self.site.code.get(image, REVISIONS[0])
        assert {revision, self.site.schema or newest} <= set(REVISIONS[: REVISIONS.index(newest) + 1]), (
            "unknown to this code"
        )
        self.site.schema = revision
        self.site.do(job, revision)

    def wait_for_job(self, job: str, *, seconds: float) -> None:
        del seconds
        self.site.schema = self.site.schema or self.site.code.get(self.images["api"], REVISIONS[0])
        self.site.do(f"wait for {job}")

    def start_canary(self, image: str, *, seconds: float) -> str:
        del seconds
        self.site.has_canary = True
        self.site.do("start canary")
        return image

    def wait_for_canary(self, *, seconds: float) -> None:
        del seconds
        assert self.site.has_canary
        self.site.do("wait for canary")

    def check_canary(self) -> None:
        self.site.do("check canary")

    def stop_canary(self) -> None:
        if self.site.has_canary:
            self.site.has_canary = False
            self.site.do("stop canary")

    def container(self, service: str = "api") -> str:
        return self.images[{"canary": "api"}.get(service, service)]

    def execute(self, container: str, *command: str, stdin: str = "", seconds: float = 0.0) -> str:
        raise NotImplementedError

    def start(self, container: str, *command: str, descriptor: int) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def remove(self) -> None:
        self.site.running.clear()
        self.site.do("remove")


@dataclass(frozen=True, slots=True)
class FakeProbes:
    """`Probes` of a site: every answer is right unless the site says otherwise."""

    site: FakeSite

    def answers(self, stack: Orchestrator) -> bool:
        del stack
        return self.site.answers

    @contextlib.contextmanager
    def api_key(self, stack: Orchestrator, service: str) -> Iterator[ApiKey]:
        del stack
        assert service in self.site.running or (service == "canary" and self.site.has_canary)
        self.site.has_key = True
        try:
            yield ApiKey("key", "secret")
        finally:
            self.site.has_key = False

    def migration_plan(self, stack: Orchestrator, container: str, target: str = "head") -> MigrationPlan:
        del stack
        self.site.do("plan", target)
        return self.site.plan(container, target)

    def scrape(self, stack: Orchestrator) -> tuple[Scrape, ...]:
        del stack
        self.site.do("scrape")
        return (Scrape("replica", float(len(self.site.calls)), {}, {}),)

    def smoke_test(self, stack: Orchestrator, key: ApiKey, vectors: Mapping[str, list[float]]) -> SmokeTestReport:
        del stack, key
        self.site.do("smoke test", "with vectors" if vectors else "")
        return self._report()

    def smoke_test_inside(
        self, stack: Orchestrator, container: str, key: ApiKey, vectors: Mapping[str, list[float]]
    ) -> SmokeTestReport:
        del stack, container, key
        assert self.site.has_canary
        self.site.do("smoke test inside", "with vectors" if vectors else "")
        return self._report()

    def load(self, stack: Orchestrator, key: ApiKey, *, workers: int, pause_seconds: float = 0.0) -> BackgroundLoad:
        del stack, key, workers, pause_seconds
        return FakeLoad(self.site)

    def _report(self) -> SmokeTestReport:
        return SmokeTestReport(checks={"embeds": self.site.wrong}, seconds={"embeds": 0.0}, requests=3)


@dataclass(frozen=True, slots=True)
class FakeLoad:
    """A load that sends nothing and returns the report of the site."""

    site: FakeSite

    def prepare(self) -> None:
        self.site.do("prepare load")

    def vectors(self) -> dict[str, list[float]]:
        return {"text": [1.0]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def report(self) -> LoadReport:
        self.site.do("load report")
        return self.site.report
