"""Runs one-off jobs of the stack, such as the migration, and waits for their end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from buildkit.errors import StackFailed
from buildkit.staging.stack.polling import polls
from buildkit.text import format_count

if TYPE_CHECKING:
    from buildkit.staging.stack.services import Replica, StackServices

__all__ = ["run_job", "wait_for_job"]

_ATTEMPTS: Final = 2
"""Of a job on a running database: a job that fails twice fails again."""
_ERROR: Final = re.compile(r"[\w.]*(Error|Exception)\b")


def run_job(stack: StackServices, job: str, image: str, *, seconds: float, command: str = "") -> None:
    """Runs *job* once more from *image* and waits for its end; *command* replaces the one in the stack file.

    Raises:
        StackFailed: it failed; the reason is the end of its log.
    """
    earlier = {task.task for task in stack.replicas(job, include_ended=True)}
    arguments = ("--args", command) if command else ()
    name = stack.service_name(job)
    stack.docker("service", "update", "--detach", "--force", "--with-registry-auth", "--image", image, *arguments, name)
    _wait(stack, job, earlier, attempts=_ATTEMPTS, seconds=seconds)


def wait_for_job(stack: StackServices, job: str, *, seconds: float) -> None:
    """Waits for the end of the *job* that the first deployment started.

    Raises:
        StackFailed: it failed as often as the stack file allows.
    """
    attempts = 1 + int(stack.inspect(job)["Spec"]["TaskTemplate"]["RestartPolicy"].get("MaxAttempts", 0))
    _wait(stack, job, set(), attempts=attempts, seconds=seconds)


def _wait(stack: StackServices, job: str, earlier: set[str], *, attempts: int, seconds: float) -> None:
    """Waits until one of the job's tasks, except the *earlier* ones, is complete."""
    shown = ""
    failed: list[Replica] = []
    for _ in polls(seconds):
        tasks = [task for task in stack.replicas(job, include_ended=True) if task.task not in earlier]
        if any(task.state == "complete" for task in tasks):
            return
        failed = [task for task in tasks if task.has_failed]
        state = next((task.state for task in tasks if not task.has_failed), "waiting")
        if (line := f"{job} {state}, attempt {len(failed) + 1}") != shown:
            stack.log(shown := line)
        if len(failed) >= attempts:
            raise StackFailed(f"{job} failed: {_reason(stack, job, failed[-1])}")
    reason = f"{job} did not end within {seconds:.0f} s"
    raise StackFailed(reason + (f", after {format_count(len(failed), 'failure')}" if failed else ""))


def _reason(stack: StackServices, job: str, task: Replica) -> str:
    """Returns the error in the task's log: the last line that names an exception, else the last line."""
    lines = stack.log_tail(job, task.task, lines=40).splitlines()
    # A traceback ends with its error. The statements and links after it say less.
    return ([line for line in lines if _ERROR.match(line)] or lines or [task.error])[-1]
