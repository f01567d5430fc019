"""Whose cache is emptied: which records go, which builder is taken, and which address ranges are."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from buildkit.engine.client import Engine
from buildkit.engine.daemon import ManagedDaemon
from buildkit.errors import CommandFailed, EngineUnavailable, UsageError
from buildkit.timing import builder

if TYPE_CHECKING:
    from pathlib import Path

ENGINE = Engine("unix:///nowhere.sock", "26.1.5", None)


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in for docker was told, one line a call."""
    program = tmp_path / "docker"
    log = tmp_path / "said"
    program.write_text(
        f'#!/bin/sh\necho "$*" >>{log}\n'
        'case "$*" in "buildx inspect mine"*) printf "Name: mine\\nDriver:        docker-container\\n";;\n'
        '"buildx inspect"*) echo "no builder" >&2; exit 1;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return log


def kinds(log: Path) -> set[str]:
    return {line.partition("type=")[2] for line in log.read_text().splitlines()}


def test_warm_downloads_stay_when_the_layers_go(said: Path) -> None:
    builder.CacheScope(ENGINE, "", "", None).empty(downloads=False)

    assert kinds(said) == {"regular", "source.local", "internal", "frontend"}


def test_everything_goes_where_downloads_are_to_be_empty(said: Path) -> None:
    builder.CacheScope(ENGINE, "", "", None).empty(downloads=True)

    assert kinds(said) == {"regular", "source.local", "internal", "frontend", "exec.cachemount"}


def test_a_kept_engine_knows_its_downloads_until_they_are_emptied(tmp_path: Path, said: Path) -> None:
    private = ManagedDaemon(tmp_path, tmp_path, "x0")
    builder.CacheScope(ENGINE, "host", "", private).remember("api abc")

    later = builder.CacheScope(ENGINE, "host", "", private)

    assert later.downloaded() == {"api abc"}
    later.empty(downloads=True)
    assert later.downloaded() == set()
    assert said.exists()


def test_of_a_users_builder_nothing_is_known_and_no_process_is_watched() -> None:
    users = builder.CacheScope(ENGINE, "", "", None)

    users.remember("api abc")

    assert users.downloaded() == set()
    assert users.written_bytes() is None


@pytest.mark.parametrize(("name", "why"), [("absent", "no builder"), ("mine", "docker-container")])
def test_a_builder_that_cannot_be_used_is_refused_with_the_reason(said: Path, name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        builder.named(ENGINE, name)
    assert said.exists()


def test_routes_are_read_from_the_kernels_table() -> None:
    table = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    )

    assert list(builder._routes(table)) == [ipaddress.IPv4Network("172.17.0.0/16")]


def test_a_range_that_is_routed_is_passed_over_and_none_left_is_said() -> None:
    first, second, *_ = builder._RANGES

    assert builder._free_range([]) == first
    assert builder._free_range([first.supernet(new_prefix=16)]) == second
    with pytest.raises(EngineUnavailable, match="address range"):
        builder._free_range([ipaddress.IPv4Network("10.0.0.0/8")])


def test_an_engine_that_is_gone_has_written_nothing_that_can_be_seen(tmp_path: Path) -> None:
    assert builder.CacheScope(ENGINE, "host", "", ManagedDaemon(tmp_path, tmp_path, "x0")).written_bytes() is None


def test_a_machine_without_dockerd_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with (
        pytest.raises(EngineUnavailable, match="dockerd is not installed"),
        builder.own(lambda _: None, keep=False, private=ManagedDaemon(tmp_path, tmp_path, "x0")),
    ):
        pytest.fail("there is no engine to be had")


def test_failures_of_the_engine_are_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\necho nothing was pruned >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    with pytest.raises(CommandFailed, match="nothing was pruned"):
        builder.CacheScope(ENGINE, "", "", None).empty(downloads=False)


def test_what_was_forgotten_is_awaited_until_it_is_deleted(
    said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector that frees 5 MB a look, ten times, and then nothing."""
    looks = iter([*range(0, 50_000_000, 5_000_000), *[50_000_000] * 100])
    seen: list[int] = []

    def usage(_: Path) -> SimpleNamespace:
        seen.append(next(looks))
        return SimpleNamespace(free=seen[-1])

    monkeypatch.setattr("buildkit.timing.builder.shutil.disk_usage", usage)
    monkeypatch.setattr(builder, "_QUIET_SECONDS", 0.05)

    builder.CacheScope(replace(ENGINE, root=tmp_path), "", "", None).empty(downloads=False)

    assert seen.count(50_000_000) > 5
    assert said.read_text()
