"""Builders of benchmarks: the records that a cleared cache loses, and the choice of the builder."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from buildkit.engine.client import Engine
from buildkit.engine.daemon import ManagedDaemon
from buildkit.errors import CommandFailed, EngineUnavailable, UsageError
from buildkit.timing import builder
from buildkit.timing.builder import BenchmarkBuilder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.docker_stub import DockerStub

ENGINE = Engine("unix:///nowhere.sock", "26.1.5", None)
OF_USER = BenchmarkBuilder(ENGINE, "", "", None)


def pruned(docker_stub: DockerStub) -> set[str]:
    """The kinds of cache records that were pruned."""
    return {call.partition("type=")[2] for call in docker_stub.calls}


def test_cleared_cache_keeps_downloads(docker_stub: DockerStub) -> None:
    docker_stub.answer("buildx prune *")

    OF_USER.clear_cache(downloads=False)

    assert pruned(docker_stub) == {"regular", "source.local", "internal", "frontend"}


def test_cleared_cache_with_downloads_keeps_nothing(docker_stub: DockerStub) -> None:
    docker_stub.answer("buildx prune *")

    OF_USER.clear_cache(downloads=True)

    assert pruned(docker_stub) == {"regular", "source.local", "internal", "frontend", "exec.cachemount"}


def test_failed_prune_is_an_error(docker_stub: DockerStub) -> None:
    docker_stub.answer("buildx prune *", errors="nothing was pruned", exit_code=1)

    with pytest.raises(CommandFailed, match="nothing was pruned"):
        OF_USER.clear_cache(downloads=False)


def test_own_builder_knows_its_downloads_until_they_are_cleared(tmp_path: Path, docker_stub: DockerStub) -> None:
    docker_stub.answer("buildx prune *")
    managed = ManagedDaemon(tmp_path, tmp_path, "x0")
    BenchmarkBuilder(ENGINE, "host", "", managed).add_downloaded("api abc")

    later = BenchmarkBuilder(ENGINE, "host", "", managed)

    assert later.downloaded() == {"api abc"}
    later.clear_cache(downloads=True)
    assert later.downloaded() == set()


def test_builder_of_the_user_records_no_downloads_and_no_writes() -> None:
    OF_USER.add_downloaded("api abc")

    assert OF_USER.downloaded() == set()
    assert OF_USER.written_bytes() is None


def test_stopped_daemon_has_no_written_bytes(tmp_path: Path) -> None:
    assert BenchmarkBuilder(ENGINE, "host", "", ManagedDaemon(tmp_path, tmp_path, "x0")).written_bytes() is None


def test_clear_cache_waits_until_the_space_is_free(
    docker_stub: DockerStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The free space grows ten times by 5 MB and then stays."""
    docker_stub.answer("buildx prune *")
    free = iter([*range(0, 50_000_000, 5_000_000), *[50_000_000] * 100])
    seen: list[int] = []

    def usage(_: Path) -> SimpleNamespace:
        seen.append(next(free))
        return SimpleNamespace(free=seen[-1])

    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr("buildkit.timing.builder.shutil.disk_usage", usage)
    monkeypatch.setattr(builder, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))

    replace(OF_USER, engine=replace(ENGINE, root=tmp_path)).clear_cache(downloads=False)

    assert seen.count(50_000_000) > 5
    assert clock.now < 30


@pytest.mark.parametrize(("name", "reason"), [("absent", "no builder"), ("mine", "docker-container")])
def test_unusable_builder_is_refused_with_the_reason(docker_stub: DockerStub, name: str, reason: str) -> None:
    docker_stub.answer("buildx inspect *", errors="no builder", exit_code=1)
    docker_stub.answer("buildx inspect mine", output="Name: mine\nDriver:        docker-container")

    with pytest.raises(UsageError, match=reason):
        builder.user_builder(ENGINE, name)


def test_machine_without_dockerd_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    managed = ManagedDaemon(tmp_path, tmp_path, "x0")

    with (
        pytest.raises(EngineUnavailable, match="dockerd is not installed"),
        builder.own_builder(lambda _: None, keep_downloads=False, daemon=managed),
    ):
        pytest.fail("the block ran without an engine")
