"""Drives the stack under test: runs the toolkit's commands, puts load on it, writes the table of measured faults."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit.staging.probes import container_exec
from buildkit.staging.probes.client import Client
from buildkit.staging.probes.load import Load, LoadReport
from buildkit.staging.release import records
from buildkit.text import format_bytes
from tests.buildkit.staging.variants import revision_of
from tests.support.polling import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from buildkit.staging.stack.stack import Stack

__all__ = [
    "ALLOWED",
    "ENVIRONMENT",
    "NAME",
    "ROOT",
    "StagingUnderTest",
    "release_name",
    "tolerant_project",
    "write_table",
]

ROOT = Path(__file__).parents[3]
NAME, PORT, REGISTRY_PORT = "tgfault", 18090, 5057
ENVIRONMENT = {
    "TRUTHGRAPH_PUBLISHED_PORT": str(PORT),
    "TRUTHGRAPH_ENTAILMENT_MODEL": "tiny-nli",
    "TRUTHGRAPH_API_MEMORY": "3g",
    "TRUTHGRAPH_START_SECONDS": "90",
    "TRUTHGRAPH_MONITOR_SECONDS": "5",
}
ALLOWED = {
    "rolling update": 0.02,
    "rolling update with a migration": 0.02,
    "rollback with its schema": 0.02,
    "kill -9 of a replica": 0.05,
    "kill -9 of PostgreSQL": 0.5,
    "kill -9 of the proxy": 0.5,
    "kill -9 of the engine, started again": 0.5,
    "disk full on the database's volume": 1.0,
    "release that answers wrong": 0.02,
    "release that crashes": 0.02,
    "release that is never ready": 0.02,
    "release whose migration fails": 0.02,
    "release whose migration breaks the code before": 0.02,
    "registry gone in the middle of a push": 0.02,
}
"""Fault -> the fraction of requests that may be retried. While the database or the only proxy is away every request is
retried; the rest of the load decides the fraction."""
_COMMAND_SECONDS = 900
_ANSWER_SECONDS = 300
_SETTLED_SECONDS = 300


@dataclass
class StagingUnderTest:
    """The stack, its releases, and the measured faults so far.

    Attributes:
        docker: the docker command with its options.
        project: folder that the commands take as the project.
        state: folder of releases.json.
        variants: variant -> folder with its build and verification records.
        rows: fault, report of the load, and outcome, for the table.
    """

    docker: Sequence[str]
    project: Path
    state: Path
    variants: Mapping[str, Path]
    stack: Stack
    rows: list[tuple[str, LoadReport, str]] = field(default_factory=list)

    def start(self, *words: str, variant: str = "") -> subprocess.Popen[str]:
        """Starts a command of the toolkit as a user would; `stage` takes the records of *variant*."""
        command = [sys.executable, "-m", "buildkit", *words, "--name", NAME, "--state", str(self.state)]
        command += ["--registry-port", str(REGISTRY_PORT), "--project", str(self.project)]
        if variant:
            folder = self.variants[variant]
            command += ["--local", "--build", str(folder / "image.json"), "--verify", str(folder / "verify.json")]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, expect: int = 0, variant: str = "") -> str:
        """Runs a command to its end and returns its output; its exit code must be *expect*."""
        running = self.start(*words, variant=variant)
        output, _ = running.communicate(timeout=_COMMAND_SECONDS)
        assert running.returncode == expect, output
        return output

    def release(self, *variants: str) -> None:
        """Releases the variants one after the other, unless the last of them is serving already.

        Tests call this first, so that each can run alone and in any order.
        """
        if self.serving() == release_name(variants[-1]):
            return
        if self.serving() == release_name("migrating"):  # only a rollback brings its schema back
            self.run("rollback")
        for variant in variants:
            if self.serving() != release_name(variant):
                self.run("stage", variant=variant)

    def serving(self) -> str:
        """Returns the name of the serving release."""
        found = records.load(self.state).serving
        assert found is not None
        return found.name

    def pid(self, service: str) -> int:
        """Returns the process of the service's container."""
        container = self.stack.container(service)
        return int(self.stack.docker("inspect", "--format", "{{.State.Pid}}", container))

    def sql(self, statement: str) -> str:
        """Runs a statement as PostgreSQL's superuser and returns its output."""
        command = ("psql", "--username=postgres", "--no-psqlrc", "--tuples-only", "--no-align", "--dbname=truthgraph")
        return self.stack.execute(self.stack.container("database"), *command, stdin=f"{statement};\n").strip()

    def rows_hash(self) -> str:
        """Returns number and hash of each table's rows."""
        return self.stack.execute(self.stack.container("database"), "rows")

    def running_images(self) -> set[str]:
        """Returns the images of the running replicas of the API."""
        return {replica.image for replica in self.stack.replicas("api") if replica.is_running}

    def wait_until_running(self, service: str = "api") -> None:
        """Waits until all replicas of the service run."""
        self.stack.wait_for_rollout(service, seconds=_SETTLED_SECONDS)

    @contextlib.contextmanager
    def load(self, fault: str, outcome: str = "") -> Iterator[Load]:
        """Runs load around a fault; afterwards nothing may be wrong or lost, and the table has one more row."""
        with container_exec.temporary_key(self.stack) as key:
            load = Load(
                lambda: Client(f"http://127.0.0.1:{PORT}", key.secret, retry_seconds=180.0),
                workers=4,
                has_tasks=True,
                pause_seconds=0.05,
            )
            load.prepare()
            with load:
                wait_for_responses(load, 60)
                yield load
                wait_for_responses(load, 60)
            report = load.report()
        self.rows.append((fault, report, outcome))
        assert report.problems == (), report
        assert report.tasks_completed == report.tasks, report
        assert report.retried_fraction <= ALLOWED[fault], report


def wait_for_responses(load: Load, number: int) -> None:
    """Waits for *number* more responses."""
    target = load.responses + number
    until(lambda: load.responses >= target, f"{number} more responses", seconds=_ANSWER_SECONDS)


def release_name(variant: str) -> str:
    """Returns the name of a variant's release: version and the first digits of its revision."""
    return f"0.1.0-{revision_of(variant)[:12]}"


def tolerant_project(folder: Path) -> Path:
    """Makes a project with large budgets for time: the tests are about loss, and the machine may be busy."""
    for name in ("build", "buildkit", "checks", "migrations", "service", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docker", folder / "docker")
    images = folder / "docker" / "images.toml"
    text, count = re.subn(r"(?m)^(p95_seconds|p95_noise_seconds) = \S+", r"\1 = 29.0", images.read_text())
    assert count == 2
    images.write_text(text)
    return folder


def write_table(staging: StagingUnderTest, path: Path) -> None:
    """Writes the measured faults, and the times of the release steps, as Markdown."""
    machine = (
        f"Generated by `pytest -m staging` on {datetime.now(tz=UTC):%Y-%m-%d}: {os.cpu_count()} cores, "
        f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB, no GPU, {platform.system()} "
        f"{platform.release()}, Docker {staging.stack.engine.version}, Python {platform.python_version()}; "
        "2 replicas, 1 proxy, 1 PostgreSQL on one machine.\n"
    )
    explanation = (
        "The load embeds, searches, stores claims and requests their verification, with 4 threads, and compares each "
        "response with the first one. The entailment model is tiny and has random weights. *Retried*: requests that "
        "needed more than one attempt. *Gap*: the longest time without any response. *Lost*: acknowledged claims that "
        "are missing, tasks that do not complete, requests that time out.\n"
    )
    lines = [
        "# Staging under load\n",
        machine,
        explanation,
        "| fault | requests | retried | of all | gap, s | claims | tasks | wrong | lost | outcome |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for fault, report, outcome in staging.rows:
        lost = report.claims_lost + report.tasks_lost + report.timed_out
        lines.append(
            f"| {fault} | {report.requests:,} | {report.retried} | {report.retried_fraction:.1%} "
            f"| {report.longest_gap_seconds:.1f} | {report.claims} | {report.tasks} | {report.wrong} | {lost} "
            f"| {outcome} |"
        )
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([*lines, "", *_step_lines(records.load(staging.state))]) + "\n")


def _step_lines(history: records.Releases) -> list[str]:
    """Returns tables of the steps of the first release and of the last one that sent something."""
    served = [each for each in history.releases if each.outcome != "failed" and each.bytes_sent is not None]
    chosen = [served[0], *[each for each in served[1:] if each.bytes_sent][-1:]]
    lines = ["Seconds that the steps of a release took, and their results:", ""]
    for release in chosen:
        lines += [f"| {release.name} | s | |", "| --- | ---: | --- |"]
        lines += [f"| {step.name} | {step.seconds:.1f} | {step.detail} |" for step in release.steps]
        lines += [f"| sent | | {format_bytes(release.bytes_sent or 0)} |", ""]
    return lines
