"""Benchmarks with the real builder, in a managed daemon that runs next to the present engine."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
from rich.console import Console

from buildkit import spec as specs
from buildkit.build.display import BuildDisplay
from buildkit.engine.daemon import ManagedDaemon
from buildkit.errors import DiskTooFull, EngineUnavailable
from buildkit.timing import builder as builders
from buildkit.timing.plan import BenchmarkPlan
from buildkit.timing.run import time_builds
from tests.support.projects import PROJECT, images_toml, make_project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from buildkit.timing.builder import BenchmarkBuilder
    from buildkit.timing.record import Timings

Runner: TypeAlias = "Callable[..., list[Timings]]"
NAME = "truthgraph-test-timing"
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
def own(docker: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchmarkBuilder]:
    """The builder of a managed daemon. It never changes the firewall or docker0, and is removed at the end."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("dockerd", "iptables-save", "ip"))):
        pytest.skip("only root can start an engine, with dockerd, iptables and iproute2")
    run = Path(tempfile.mkdtemp(prefix="tgt", dir="/run"))  # the path of a socket has at most 107 characters
    managed = ManagedDaemon(tmp_path_factory.mktemp("engine"), run, "tgtest0")
    docker0 = Path("/sys/class/net/docker0").exists()
    with builders.own_builder(print, keep_downloads=False, daemon=managed) as builder:
        show = ["ip", "-brief", "address", "show", "tgtest0"]
        address = subprocess.run(show, capture_output=True, text=True, check=True).stdout.split()[2]
        assert not mentioned_in_firewall("tgtest0", address)
        yield builder
    assert not mentioned_in_firewall("tgtest0", address)
    assert Path("/sys/class/net/docker0").exists() == docker0
    assert not managed.state.exists()
    assert not managed.run.exists()
    run.with_name(f"{run.name}.lock").unlink()
    assert not Path("/sys/class/net/tgtest0").exists()
    assert subprocess.run([*docker, "info"], capture_output=True, check=False).returncode == 0


def mentioned_in_firewall(*words: str) -> list[str]:
    saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    return [line for line in saved.splitlines() if any(word in line for word in words)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = make_project(tmp_path / "project", images_toml(NAME, "small", "other"), DOCKERFILE)
    (folder / "service").mkdir()
    (folder / "service" / "app.py").write_text("VALUE = 1\n")
    return folder


@pytest.fixture
def user_builder(own: BenchmarkBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchmarkBuilder:
    """The same engine as a builder of the user, by the name of a docker context."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "client"))
    command = ["docker", "context", "create", "mine", "--docker", f"host={own.engine.host}"]
    subprocess.run(command, capture_output=True, check=True)
    return builders.user_builder(own.engine, "mine")


@pytest.fixture
def run(project: Path, own: BenchmarkBuilder, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Runs a plan; returns the timings that were saved after each build, and the result last."""
    monkeypatch.setattr(builders, "_QUIET_SECONDS", 0.2)  # small images are deleted at once

    def call(plan: BenchmarkPlan, builder: BenchmarkBuilder = own) -> list[Timings]:
        saved: list[Timings] = []
        result = time_builds(
            plan,
            builder,
            spec=specs.load(project),
            environment={},
            base_origin="auto",
            cache=PROJECT / "build" / "cache",
            show=lambda events, title: BuildDisplay(Console(file=io.StringIO()), events, title=title),
            log=print,
            save=saved.append,
        )
        return [*saved, result]

    return call


def plan(**changed: object) -> BenchmarkPlan:
    values: dict[str, object] = {
        "target": "small",
        "against": None,
        "scenarios": ("cold", "no-op", "code", "base"),
        "runs": 1,
        "dependency": "tqdm",
    }
    return BenchmarkPlan(**(values | changed))  # type: ignore[arg-type] # the fields are those of BenchmarkPlan


def test_second_benchmark_leaves_the_running_one_alone(own: BenchmarkBuilder) -> None:
    assert own.daemon is not None
    logged: list[str] = []

    with (
        pytest.raises(EngineUnavailable, match="another benchmark"),
        builders.own_builder(print, keep_downloads=False, daemon=own.daemon),
    ):
        pytest.fail("the engine is taken")
    builders.remove_own_builder(logged.append, purge=True, daemon=own.daemon)

    assert logged == ["a benchmark is running; its engine is left alone"]
    assert own.written_bytes()


def test_each_scenario_changes_what_it_names(run: Runner, project: Path) -> None:
    *saved, result = run(plan())

    builds = {build.scenario: build for build in result.builds}
    assert list(builds) == ["cold-empty", "cold", "no-op", "code", "base"]  # the first one filled the downloads
    assert [len(each.builds) for each in saved] == [1, 2, 3, 4, 5]
    steps = {
        scenario: next(phase for phase in build.phases if phase.name == "steps") for scenario, build in builds.items()
    }
    assert steps["cold"].cached == 0
    assert steps["no-op"].cached == steps["no-op"].steps > 0
    assert 0 < steps["code"].cached < steps["code"].steps
    assert builds["no-op"].transfer_bytes == 0
    assert 0 < (builds["code"].transfer_bytes or 0) < 5_000_000 < (builds["cold"].transfer_bytes or 0)
    assert builds["no-op"].digest == builds["cold"].digest != builds["code"].digest
    # A node has no byte of a new base image; this one has about 100 MB.
    assert (builds["base"].transfer_bytes or 0) > (builds["cold"].transfer_bytes or 0) * 0.8
    assert (builds["cold"].written_bytes or 0) >= 5_000_000
    assert {stage.stage for stage in builds["cold"].stages} == {"maker", "runtime"}
    assert all(phase.seconds <= builds["cold"].seconds for phase in builds["cold"].phases)
    assert (project / "service/app.py").read_text() == "VALUE = 1\n"


def test_targets_take_turns_and_leave_no_layers(run: Runner, own: BenchmarkBuilder) -> None:
    result = run(plan(against="other", scenarios=("cold", "no-op"), runs=2))[-1]

    assert {build.target for build in result.builds if build.scenario == "cold-empty"} <= {
        "small"
    }  # the other target shares the downloads
    order = [(build.target, build.run) for build in result.builds if build.scenario == "no-op"]
    assert order == [("small", 1), ("other", 1), ("small", 2), ("other", 2)]
    assert set(result.seconds_ratio("small")) >= {"cold", "no-op"}
    host = ["docker", "--host", own.engine.host]
    images = subprocess.run([*host, "images", "-q", "truthgraph-test-timing"], capture_output=True, check=True).stdout
    assert images == b""
    for kind, is_left in (("regular", False), ("exec.cachemount", True)):
        command = [*host, "buildx", "du", "--filter", f"type={kind}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert ("ID" in found) == is_left, kind


def test_change_without_room_is_skipped_and_the_rest_is_timed(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = iter([9 * 10**9, 2 * 10**9, 9 * 10**9, 2 * 10**9])  # before and after each full build: 7 GB each

    def free(_builder: BenchmarkBuilder) -> int:
        return next(rooms, 10**9)  # afterwards: room for the application only

    monkeypatch.setattr(builders.BenchmarkBuilder, "free_bytes", free)
    monkeypatch.setattr(
        builders.BenchmarkBuilder, "_wait_for_deletion", lambda _builder: None
    )  # it reads the free space too

    result = run(plan(scenarios=("no-op", "base")))[-1]

    changed = [build.scenario for build in result.builds if build.scenario not in {"cold", "cold-empty"}]
    assert changed == ["no-op"]
    assert [(each.target, each.scenario, each.run) for each in result.skipped] == [("small", "base", 1)]
    assert "1.0 GB are free" in result.skipped[0].reason


def test_change_that_does_not_build_is_skipped(run: Runner, project: Path) -> None:
    dockerfile = project / "docker/Dockerfile"
    dockerfile.write_text(f"{DOCKERFILE}RUN if grep TIMED_RUN /app/service/app.py; then exit 3; fi\n")

    result = run(plan(scenarios=("code", "no-op")))[-1]

    assert [build.scenario for build in result.builds if build.scenario not in {"cold", "cold-empty"}] == ["no-op"]
    assert [(each.target, each.scenario) for each in result.skipped] == [("small", "code")]
    assert result.skipped[0].reason == "runtime: RUN if grep TIMED_RUN /app/service/app.py; then exit 3; fi"


def test_builder_of_the_user_is_cleared_and_filled(
    run: Runner, user_builder: BenchmarkBuilder, own: BenchmarkBuilder
) -> None:
    reachable = replace(user_builder, network="host")  # this engine has no network for RUN steps

    result = run(plan(scenarios=("no-op",)), reachable)[-1]

    assert user_builder.engine.host == own.engine.host
    assert [build.scenario for build in result.builds] == ["cold", "no-op"]  # its downloads are unknown
    assert result.builds[0].written_bytes is None
    assert result.builds[0].transfer_bytes
    assert "the builder mine" in result.builder


def test_full_build_without_room_is_an_error(run: Runner, project: Path) -> None:
    (project / "docker/images.toml").write_text(images_toml(NAME, "small", disk_bytes=900_000_000_000_000))

    with pytest.raises(DiskTooFull):
        run(plan())
