"""Timed builds with the real builder, in an engine of its own beside the one that is there."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from buildkit import spec as specs
from buildkit.build.display import BuildDisplay
from buildkit.engine.daemon import ManagedDaemon
from buildkit.errors import DiskTooFull, EngineUnavailable, UsageError
from buildkit.timing import builder as scopes
from buildkit.timing.run import BenchmarkPlan, time_builds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from buildkit.timing.builder import CacheScope
    from buildkit.timing.record import Timings

PROJECT = Path(__file__).resolve().parents[3]
IMAGES = """
schema_version = 2
layers = []

[image]
name = "truthgraph-test-timing"
title = "t"
description = "d"
licenses = "Apache-2.0"
python = "3.13"
base = "python:3.13-slim-trixie"
venv = "/opt/venv"
app = "/app"
model = "m"
cuda_targets = []

[[targets]]
name = "small"
dockerfile = "docker/Dockerfile"
stage = "runtime"
disk_bytes = 1000

[[targets]]
name = "other"
dockerfile = "docker/Dockerfile"
stage = "runtime"
disk_bytes = 1000
"""
DOCKERFILE = """
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE} AS python
FROM python AS maker
RUN --mount=type=cache,target=/cache head -c 5000000 /dev/urandom >/made && touch /cache/x
FROM python AS runtime
COPY --from=maker /made /made
COPY service /app/service
"""


@pytest.fixture(scope="module")
def own(docker: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheScope]:
    """An engine of its own, gone at the end; nothing of it was ever in the firewall, and the other engine goes on."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("dockerd", "iptables-save", "ip"))):
        pytest.skip("only root can start an engine, with dockerd, iptables and iproute2")
    run = Path(tempfile.mkdtemp(prefix="tgt", dir="/run"))  # a socket's path has 107 letters at most
    private = ManagedDaemon(tmp_path_factory.mktemp("engine"), run, "tgtest0")
    docker0 = Path("/sys/class/net/docker0").exists()
    with scopes.own(print, keep=False, private=private) as scope:
        show = ["ip", "-brief", "address", "show", "tgtest0"]
        address = subprocess.run(show, capture_output=True, text=True, check=True).stdout.split()[2]
        assert not mentioned_in_firewall("tgtest0", address)
        yield scope
    assert not mentioned_in_firewall("tgtest0", address)
    assert Path("/sys/class/net/docker0").exists() == docker0
    assert not private.state.exists()
    assert not private.run.exists()
    run.with_name(f"{run.name}.lock").unlink()
    assert not Path("/sys/class/net/tgtest0").exists()
    assert subprocess.run([*docker, "info"], capture_output=True, check=False).returncode == 0


def mentioned_in_firewall(*words: str) -> list[str]:
    saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    return [line for line in saved.splitlines() if any(word in line for word in words)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for folder in ("docker/lock", "service"):
        (tmp_path / "project" / folder).mkdir(parents=True)
    (tmp_path / "project/docker/images.toml").write_text(IMAGES)
    (tmp_path / "project/docker/Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "project/service/app.py").write_text("VALUE = 1\n")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def users_builder(own: CacheScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheScope:
    """The same engine as a builder that a user has a name for: a context of docker's client."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "client"))
    command = ["docker", "context", "create", "mine", "--docker", f"host={own.engine.host}"]
    subprocess.run(command, capture_output=True, check=True)
    return scopes.named(own.engine, "mine")


@pytest.fixture
def timed(own: CacheScope, project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[BenchmarkPlan], list[Timings]]:
    """Times a plan; returns what was kept after each build, the whole last."""
    monkeypatch.setattr(scopes, "_QUIET_SECONDS", 0.2)  # these images are small, and nobody reads the seconds

    def call(plan: BenchmarkPlan) -> list[Timings]:
        kept: list[Timings] = []
        whole = time_builds(
            plan,
            own,
            spec=specs.load(project),
            environment={},
            base_origin="auto",
            cache=PROJECT / "build" / "cache",
            show=lambda events, title: BuildDisplay(Console(file=io.StringIO()), events, title=title),
            log=print,
            keep=kept.append,
        )
        return [*kept, whole]

    return call


def plan(**changed: object) -> BenchmarkPlan:
    whole: dict[str, object] = {
        "target": "small",
        "against": None,
        "scenarios": ("cold", "no-op", "code", "base"),
        "runs": 1,
        "dependency": "tqdm",
    }
    return BenchmarkPlan(**(whole | changed))  # type: ignore[arg-type] # the fields are those of BenchmarkPlan


def test_a_second_run_leaves_the_first_ones_engine_alone(own: CacheScope) -> None:
    assert own.private is not None
    said: list[str] = []

    with pytest.raises(EngineUnavailable, match="another run"), scopes.own(print, keep=False, private=own.private):
        pytest.fail("the engine is taken")
    scopes.remove_own(said.append, purge=True, private=own.private)

    assert said == ["timed builds are running in an engine of their own, which is left alone"]
    assert own.written_bytes()


def test_each_scenario_is_what_it_says(timed: Callable[[BenchmarkPlan], list[Timings]], project: Path) -> None:
    *kept, whole = timed(plan())

    builds = {build.scenario: build for build in whole.builds}
    assert list(builds) == ["cold-empty", "cold", "no-op", "code", "base"]  # the first filled the downloads
    assert [len(each.builds) for each in kept] == [1, 2, 3, 4, 5]
    steps = {
        scenario: next(phase for phase in build.phases if phase.name == "steps") for scenario, build in builds.items()
    }
    assert steps["cold"].cached == 0
    assert steps["no-op"].cached == steps["no-op"].steps > 0
    assert 0 < steps["code"].cached < steps["code"].steps
    assert builds["no-op"].transfer_bytes == 0
    assert 0 < (builds["code"].transfer_bytes or 0) < 5_000_000 < (builds["cold"].transfer_bytes or 0)
    assert builds["no-op"].digest == builds["cold"].digest != builds["code"].digest
    # a new base is new to a node, every byte of it: the base that these images are made on has about 100 MB
    assert (builds["base"].transfer_bytes or 0) > (builds["cold"].transfer_bytes or 0) * 0.8
    assert (builds["cold"].written_bytes or 0) >= 5_000_000
    assert {stage.stage for stage in builds["cold"].stages} == {"python", "maker", "runtime"} - {"python"}
    assert all(phase.seconds <= builds["cold"].seconds for phase in builds["cold"].phases)
    assert (project / "service/app.py").read_text() == "VALUE = 1\n"


def test_targets_take_turns_and_leave_no_layer_behind(
    timed: Callable[[BenchmarkPlan], list[Timings]], own: CacheScope
) -> None:
    whole = timed(plan(against="other", scenarios=("cold", "no-op"), runs=2))[-1]

    assert {build.target for build in whole.builds if build.scenario == "cold-empty"} <= {"small"}  # others share it
    order = [(build.target, build.run) for build in whole.builds if build.scenario == "no-op"]
    assert order == [("small", 1), ("other", 1), ("small", 2), ("other", 2)]
    assert set(whole.seconds_ratio("small")) >= {"cold", "no-op"}
    host = ["docker", "--host", own.engine.host]
    images = subprocess.run([*host, "images", "-q", "truthgraph-test-timing"], capture_output=True, check=True).stdout
    assert images == b""
    for kind, is_left in (("regular", False), ("exec.cachemount", True)):
        command = [*host, "buildx", "du", "--filter", f"type={kind}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert ("ID" in found) == is_left, kind


def test_a_change_without_room_is_listed_and_the_rest_is_timed(
    timed: Callable[[BenchmarkPlan], list[Timings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = iter([9 * 10**9, 2 * 10**9, 9 * 10**9, 2 * 10**9])  # before and after each of the full builds: 7 GB each

    def free(_scope: CacheScope) -> int:
        return next(rooms, 10**9)  # later: for the application, not for more

    monkeypatch.setattr(scopes.CacheScope, "free_bytes", free)
    monkeypatch.setattr(scopes.CacheScope, "_await_collection", lambda _scope: None)  # it looks at the room too

    whole = timed(plan(scenarios=("no-op", "base")))[-1]

    changed = [build.scenario for build in whole.builds if build.scenario not in {"cold", "cold-empty"}]
    assert changed == ["no-op"]
    assert [(each.target, each.scenario, each.run) for each in whole.not_run] == [("small", "base", 1)]
    assert "1.0 GB are free" in whole.not_run[0].reason


def test_a_change_that_does_not_build_is_listed_and_the_rest_is_timed(
    timed: Callable[[BenchmarkPlan], list[Timings]], project: Path
) -> None:
    dockerfile = project / "docker/Dockerfile"
    dockerfile.write_text(f"{DOCKERFILE}RUN if grep TIMED_RUN /app/service/app.py; then exit 3; fi\n")

    whole = timed(plan(scenarios=("code", "no-op")))[-1]

    assert [build.scenario for build in whole.builds if build.scenario not in {"cold", "cold-empty"}] == ["no-op"]
    assert [(each.target, each.scenario) for each in whole.not_run] == [("small", "code")]
    assert whole.not_run[0].reason == "runtime: RUN if grep TIMED_RUN /app/service/app.py; then exit 3; fi"


def test_a_builder_that_the_user_named_is_emptied_and_filled(
    users_builder: CacheScope, project: Path, own: CacheScope
) -> None:
    whole = time_builds(
        plan(scenarios=("no-op",)),
        replace(users_builder, network="host"),  # this engine has no network of its own
        spec=specs.load(project),
        environment={},
        base_origin="auto",
        cache=PROJECT / "build" / "cache",
        show=lambda events, title: BuildDisplay(Console(file=io.StringIO()), events, title=title),
        log=print,
        keep=lambda _: None,
    )

    assert users_builder.engine.host == own.engine.host
    assert [build.scenario for build in whole.builds] == ["cold", "no-op"]  # what its downloads held is not known
    assert whole.builds[0].written_bytes is None
    assert whole.builds[0].transfer_bytes
    assert "the builder mine" in whole.cache_scope


def test_no_room_for_a_full_build_is_an_error(timed: Callable[[BenchmarkPlan], list[Timings]], project: Path) -> None:
    path = project / "docker/images.toml"
    path.write_text(IMAGES.replace("disk_bytes = 1000", "disk_bytes = 900_000_000_000_000"))

    with pytest.raises(DiskTooFull):
        timed(plan())


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"runs": 0}, "runs"), ({"against": "small"}, "against"), ({"scenarios": ("warm",)}, "scenario")],
)
def test_a_plan_that_cannot_be_timed_is_refused(changed: dict[str, object], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(**changed)

    assert caught.value.field == field
