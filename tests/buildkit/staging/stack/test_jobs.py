from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from buildkit.errors import StackFailed
from tests.support.swarm_tasks import show_tasks, task

if TYPE_CHECKING:
    from buildkit.staging.stack.stack import Stack
    from tests.support.fake_engine import FakeEngine


def test_job_runs_again_from_another_image(engine: FakeEngine, stack: Stack) -> None:
    show_tasks(engine, [task("old", "complete")], [task("old", "complete"), task("new", "complete")])

    stack.run_job("migrate", "api@sha256:b", seconds=5, command="migrate --to 0002")

    [update] = engine.called("service update")
    assert update.endswith("--force --with-registry-auth --image api@sha256:b --args migrate --to 0002 s_migrate")


def test_job_progress_is_logged_once_for_each_change(engine: FakeEngine, stack: Stack) -> None:
    lines: list[str] = []
    show_tasks(engine, [], [task("a", "running")], [task("a", "running")], [task("a", "complete")])

    replace(stack, log=lines.append).run_job("migrate", "image", seconds=5)

    assert lines == ["migrate running, attempt 1"]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("Traceback\nasyncpg.UndefinedTableError: no table\n[SQL: ALTER]\n", "asyncpg.UndefinedTableError: no table"),
        ("out of room\n", "out of room"),
        ("", "exit 1"),
    ],
)
def test_job_that_fails_twice_names_its_error(engine: FakeEngine, stack: Stack, log: str, reason: str) -> None:
    show_tasks(engine, [], [task("a", "failed", error="exit 1"), task("b", "failed", error="exit 1")])
    engine.answers["logs"] = log

    with pytest.raises(StackFailed, match=f"^migrate failed: {reason}$"):
        stack.run_job("migrate", "image", seconds=5)


def test_job_without_end_fails_in_time(engine: FakeEngine, stack: Stack) -> None:
    show_tasks(engine, [], [task("a", "failed"), task("b", "running")])

    with pytest.raises(StackFailed, match=r"migrate did not end within 0 s, after 1 failure$"):
        stack.run_job("migrate", "image", seconds=0.02)


def test_first_job_may_fail_as_often_as_the_stack_file_allows(engine: FakeEngine, stack: Stack) -> None:
    spec = {"TaskTemplate": {"RestartPolicy": {"MaxAttempts": 2}}}
    engine.answers["service inspect s_migrate"] = json.dumps([{"Spec": spec}])
    show_tasks(engine, [task("a", "failed"), task("b", "failed")], [task("c", "complete")])

    stack.wait_for_job("migrate", seconds=5)
