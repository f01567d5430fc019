"""Runs `time`: times builds, reports the medians, and evaluates the budgets of builds."""

from __future__ import annotations

import os
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from buildkit import spec
from buildkit.build import display
from buildkit.check import budget
from buildkit.cli.build import add_base_origin_argument
from buildkit.cli.report import add_output_arguments, budgets_of, finish
from buildkit.console import FOLDER, log, make_console, write
from buildkit.engine import daemon
from buildkit.errors import UsageError
from buildkit.report import render, terminal
from buildkit.timing import builder, record, run
from buildkit.timing.plan import BenchmarkPlan
from buildkit.timing.record import SCENARIOS

if TYPE_CHECKING:
    import argparse

    from buildkit.check.budget import Budgets
    from buildkit.timing.record import Timings

__all__ = ["add_time_arguments", "run_time"]

_TARGET: Final = "api"
_SCENARIOS: Final = "cold,no-op,code,dependency"
_RUNS: Final = 3
_DEPENDENCY: Final = "tqdm"
_NOT_TIMED: Final = 3
"""The exit code if a scenario could not be timed."""


def add_time_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `time`; those that --from excludes have no default, so that `run_time` sees them given."""
    command.add_argument("target", nargs="?", help=f"a target in docker/images.toml (default: {_TARGET})")
    command.add_argument(
        "--against", metavar="TARGET", help="the baseline, built in turn with the target (default: none)"
    )
    command.add_argument(
        "--scenarios", metavar="NAMES", help=f"comma-separated: {', '.join(SCENARIOS)} (default: {_SCENARIOS})"
    )
    command.add_argument("--runs", type=int, metavar="N", help=f"number of builds of each scenario (default: {_RUNS})")
    command.add_argument(
        "--dependency",
        metavar="NAME",
        help=f"the distribution that the dependency scenario changes to another version (default: {_DEPENDENCY})",
    )
    command.add_argument(
        "--builder",
        metavar="CONTEXT",
        help="the docker context of an engine; its build cache is cleared (default: a new engine for this run)",
    )
    command.add_argument("--keep-downloads", action="store_true", help="keep downloaded packages for the next run")
    add_base_origin_argument(command)
    command.add_argument(
        "--from", type=Path, metavar="FILE", dest="from_file", help="report the timings saved in FILE; build nothing"
    )
    add_output_arguments(command)
    command.add_argument("--exit-zero", action="store_true", help="exit 0, not 1, if a budget is exceeded")


def run_time(arguments: argparse.Namespace) -> int:
    """Times builds, or loads saved timings, and prints or writes the report."""
    if arguments.from_file:
        for name in ("target", "against", "scenarios", "runs", "dependency", "builder"):
            if getattr(arguments, name) is not None:
                fix = "leave it out: --from only reports saved timings"
                raise UsageError(f"--from with {name}", getattr(arguments, name), fix)
        timings = record.load(arguments.from_file)
        return _report_timings(arguments, timings, budgets_of(arguments.project, timings.target))
    loaded = spec.load(arguments.project)
    scenarios: Any = (arguments.scenarios or _SCENARIOS).split(",")  # BenchmarkPlan refuses unknown ones
    plan = BenchmarkPlan(
        loaded.target(arguments.target or _TARGET).name,
        loaded.target(arguments.against).name if arguments.against else None,
        tuple(scenarios),
        _RUNS if arguments.runs is None else arguments.runs,
        arguments.dependency or _DEPENDENCY,
    )
    budgets = budgets_of(arguments.project, plan.target)
    console = make_console(stderr=True)
    saved = arguments.project / FOLDER / "timings.json"
    with (
        nullcontext(builder.user_builder(daemon.find(os.environ, daemon.ManagedDaemon()), arguments.builder))
        if arguments.builder
        else builder.own_builder(log, keep_downloads=arguments.keep_downloads)
    ) as chosen:
        timings = run.time_builds(
            plan,
            chosen,
            spec=loaded,
            environment=os.environ,
            base_origin=arguments.base_origin,
            cache=arguments.project / FOLDER / "cache",
            show=lambda events, title: display.BuildDisplay(console, events, title=title),
            log=log,
            save=lambda so_far: record.save(so_far, saved),
        )
    log(f"wrote {saved}")
    return _report_timings(arguments, timings, budgets)


def _report_timings(arguments: argparse.Namespace, timings: Timings, budgets: Budgets) -> int:
    """Writes the report of *timings*; returns 1 if a budget failed, 3 if a scenario could not be timed."""
    of_builds = budgets.of_builds()
    report = None
    if of_builds.limits:
        report = budget.evaluate(
            None,
            of_builds,
            today=datetime.now(tz=UTC).date(),
            transfer_bytes=timings.transfer_bytes(timings.target),
            build_seconds_ratio=timings.seconds_ratio(timings.target),
            image=timings.target,
        )
    tables = []
    if arguments.format == "terminal":
        tables = [terminal.timings_tables(timings)]
    else:
        write(render.render_timings(arguments.format, timings, budgets=report), arguments.output)
    return finish(arguments, tables, report) or (_NOT_TIMED if timings.skipped else 0)
