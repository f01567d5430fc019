"""`python -m buildkit verify`, `measure`, `compare` and `time`: what an image is, as a report and as a verdict."""

from __future__ import annotations

import os
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from buildkit import spec
from buildkit.build import display
from buildkit.build.record import load_record, record_path
from buildkit.build.secrets import BuildSecrets
from buildkit.check import budget, verify
from buildkit.console import FOLDER, log, make_console, write
from buildkit.diff import diff
from buildkit.engine import daemon
from buildkit.errors import BuildkitError, UsageError
from buildkit.image import history
from buildkit.image.layer_stream import Limits
from buildkit.report import builds, render, terminal
from buildkit.timing import builder, record, run

if TYPE_CHECKING:
    import argparse

    from rich.console import Group

    from buildkit.check.budget import BudgetReport, Budgets
    from buildkit.image.model import Measurement
    from buildkit.report.builds import Timeline
    from buildkit.timing.record import Timings

__all__ = [
    "add_compare_arguments",
    "add_measure_arguments",
    "add_time_arguments",
    "add_verify_arguments",
    "run_compare",
    "run_measure",
    "run_time",
    "run_verify",
]

_SCENARIOS, _RUNS = "cold,no-op,code,dependency", 3
_FORMATS: Final = ("terminal", "json", "markdown", "html", "junit", "sarif")


def run_verify(arguments: argparse.Namespace) -> int:
    """Runs the checks on an image and prints their results."""
    loaded = spec.load(arguments.project)
    folder: Path = arguments.project / FOLDER
    found = daemon.find(os.environ, daemon.ManagedDaemon())
    labels = None
    image: str = arguments.image
    if not image:
        built = load_record(arguments.build or record_path(folder, arguments.target))
        image, labels = built.digest, built.labels
    build_secrets = BuildSecrets.of(os.environ)
    expectations = verify.expect(
        loaded,
        arguments.target,
        labels=labels,
        certificates=build_secrets.certificates.read_bytes() if build_secrets.certificates else b"",
        handed_in=build_secrets.plain_values(),
    )
    result = verify.verify(
        image,
        expectations,
        output=folder,
        environment=os.environ,
        engine_host=found.host or None,
        require=arguments.require,
        cache=folder / "cache" / "layers",
        handed_in=build_secrets.plain_values(),
    )
    if arguments.format == "terminal":
        make_console().print(verify.table(result))
    else:
        write(render.render_checks(arguments.format, result.results, required=arguments.require), arguments.output)
    return 0 if arguments.exit_zero and result.exit_code == 1 else result.exit_code


def run_measure(arguments: argparse.Namespace) -> int:
    """Analyzes an image and prints or writes the report."""
    timelines: list[Timeline] = []
    name, series = arguments.image, arguments.image
    if not name:
        built = load_record(record_path(arguments.project / FOLDER, arguments.target))
        name, series, timelines = built.digest, built.target, [builds.timeline_of(built)]
    log(f"reading {name}")
    measurement = render.load_measurement(name, **_reading(arguments))
    if not arguments.image:
        measurement = measurement.renamed(built.tags[0])
    if arguments.keep:
        log(f"kept {history.append(measurement, _kept(arguments), series=series, measured_at=datetime.now(tz=UTC))}")
    trend = history.load_series(_kept(arguments), series)
    verdict = _judge(arguments, measurement)
    if arguments.format == "terminal":
        tables = [terminal.measurement_tables(measurement)]
    else:
        tables = []
        timelines += _timelines(arguments)
        text = render.render(arguments.format, measurement, verdict=verdict, timelines=timelines, trend=trend)
        write(text, arguments.output)
    return _concluded(arguments, tables, verdict)


def run_compare(arguments: argparse.Namespace) -> int:
    """Compares two images and prints or writes the report."""
    measurements = []
    for name in (arguments.before, arguments.after):
        log(f"reading {name}")
        measurements.append(render.load_measurement(name, **_reading(arguments)))
    before, after = measurements
    comparison = diff.compare(before, after, base_layers=arguments.base_layers)
    verdict = _judge(arguments, after, before)
    called = _called(arguments.before, arguments.after)
    names: dict[str, Any] = {"before": called[0], "after": called[1]}
    if arguments.format == "terminal":
        tables = [terminal.comparison_tables(comparison, **names)]
    else:
        tables = []
        shown: dict[str, Any] = {"comparison": comparison, "verdict": verdict, "timelines": _timelines(arguments)}
        write(render.render(arguments.format, after, **shown, **names), arguments.output)
    return _concluded(arguments, tables, verdict)


def _called(*measurements: str) -> tuple[str, ...]:
    """What a report calls images: as the caller did, saved measurements by their files' names where these differ."""
    names = tuple(name.removesuffix(".json") for name in measurements)
    short = tuple(Path(name).name if name != given else name for name, given in zip(names, measurements, strict=True))
    return short if len(set(short)) == len(short) else names


def run_time(arguments: argparse.Namespace) -> int:
    """Times builds, or loads saved timings, and prints or writes the report."""
    if arguments.saved:
        for name in ("target", "against", "scenarios", "runs", "dependency", "builder"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--saved with {name}", getattr(arguments, name), "the file says what was timed")
        timings = record.load(arguments.saved)
        return _timed(arguments, timings, _budgets_of(arguments.project, timings.target))
    loaded = spec.load(arguments.project)
    scenarios: Any = (arguments.scenarios or _SCENARIOS).split(",")  # BenchmarkPlan refuses unknown ones
    plan = run.BenchmarkPlan(
        loaded.target(arguments.target or "api").name,
        loaded.target(arguments.against).name if arguments.against else None,
        tuple(scenarios),
        _RUNS if arguments.runs is None else arguments.runs,
        arguments.dependency or "tqdm",
    )
    budgets = _budgets_of(arguments.project, plan.target)
    console = make_console(stderr=True)
    saved = arguments.project / FOLDER / "timings.json"
    with (
        nullcontext(builder.named(daemon.find(os.environ, daemon.ManagedDaemon()), arguments.builder))
        if arguments.builder
        else builder.own(log, keep=arguments.keep_downloads)
    ) as cache_scope:
        timings = run.time_builds(
            plan,
            cache_scope,
            spec=loaded,
            environment=os.environ,
            base_origin=arguments.base_origin,
            cache=arguments.project / FOLDER / "cache",
            show=lambda events, title: display.BuildDisplay(console, events, title=title),
            log=log,
            keep=lambda so_far: record.save(so_far, saved),
        )
    log(f"wrote {saved}")
    return _timed(arguments, timings, budgets)


def _timed(arguments: argparse.Namespace, timings: Timings, budgets: Budgets) -> int:
    """Writes the report of *timings*; 1 where a budget is broken, 3 where a scenario could not be timed."""
    limits, verdict = budgets.of_builds(), None
    if limits.limits:
        verdict = budget.evaluate(
            None,
            limits,
            today=datetime.now(tz=UTC).date(),
            transfer_bytes=timings.transfer_bytes(timings.target),
            build_seconds_ratio=timings.seconds_ratio(timings.target),
            image=timings.target,
        )
    tables = []
    if arguments.format == "terminal":
        tables = [builds.timings_tables(timings)]
    else:
        write(render.render_timings(arguments.format, timings, verdict=verdict), arguments.output)
    code = _concluded(arguments, tables, verdict)
    return code or (3 if timings.not_run else 0)


def _reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """How images are read: the cache, the platform, and the engine where one answers (files need none)."""
    docker: tuple[str, ...] = ("docker",)
    try:
        host = daemon.find(os.environ, daemon.ManagedDaemon()).host
    except BuildkitError:
        host = ""
    if host:
        docker = ("docker", "--host", host)
    return {
        "cache": arguments.project / FOLDER / "cache" / "layers",
        "platform": arguments.platform,
        "tag": arguments.tag,
        "limits": _limits(arguments),
        "docker": docker,
    }


def _limits(arguments: argparse.Namespace) -> Limits:
    """How much an image may hold before it is refused: the defaults, or what the caller named."""
    named: dict[str, int] = {}
    if arguments.max_entries is not None:
        named["entries"] = arguments.max_entries
    if arguments.max_layer_bytes is not None:
        named["unpacked_bytes"] = round(budget.parse_size("--max-layer-bytes", arguments.max_layer_bytes))
    return Limits(**named)


def _kept(arguments: argparse.Namespace) -> Path:
    """Where measurements are kept."""
    folder: Path = arguments.kept or arguments.project / FOLDER / "measurements"
    return folder


def _timelines(arguments: argparse.Namespace) -> list[Timeline]:
    """The timed builds that the caller named."""
    return list(builds.timelines_of(record.load(arguments.timings))) if arguments.timings else []


def _budgets_of(project: Path, target: str) -> Budgets:
    """The limits of *target* in docker/images.toml; none where it has no table."""
    loaded = spec.load(project)
    return budget.parse_budgets(loaded.budgets.get(loaded.target(target).name, {}), where=f"budgets.{target}")


def _judge(
    arguments: argparse.Namespace, measurement: Measurement, baseline: Measurement | None = None
) -> BudgetReport | None:
    """The verdict by the target's budgets in docker/images.toml, or by a .dive-ci file; None without either."""
    if arguments.dive_rules:
        budgets = budget.parse_dive_rules(arguments.dive_rules.read_text(), where=str(arguments.dive_rules))
    elif arguments.budgets:
        budgets = _budgets_of(arguments.project, arguments.budgets)
    else:
        return None
    timings = record.load(arguments.timings) if arguments.timings else None
    target = arguments.budgets or (timings.target if timings else "")
    return budget.evaluate(
        measurement,
        budgets,
        today=datetime.now(tz=UTC).date(),
        baseline=baseline,
        transfer_bytes=timings.transfer_bytes(target) if timings else None,
        build_seconds_ratio=timings.seconds_ratio(target) if timings else None,
    )


def _concluded(arguments: argparse.Namespace, tables: list[Group], verdict: BudgetReport | None) -> int:
    """Prints *tables* and the verdict; 1 where a limit is broken, unless the caller wants 0 all the same."""
    console = make_console()
    for table in tables:
        console.print(table)
    if verdict is None:
        return 0
    if tables:
        console.print(terminal.budget_table(verdict))
    return 0 if verdict.is_fine or arguments.exit_zero else 1


# ---- the command line -----------------------------------------------------------------------------------------------


def add_verify_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `verify`."""
    command.add_argument("--image", default="", help="any image in the engine, by digest or name")
    command.add_argument("--target", default="api", help="what the image is expected to be (default: api)")
    command.add_argument("--build", type=Path, help="a build record (default: the target's last, in build/)")
    command.add_argument(
        "--require", action="append", default=[], metavar="TIER", help="static or device: not verified is a finding"
    )
    _output_arguments(command, "terminal", "json", "markdown", "junit", "sarif")
    command.add_argument("--exit-zero", action="store_true", help="exit 0 even with findings")


def add_measure_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `measure`."""
    command.add_argument("image", nargs="?", help="in the engine, an OCI layout, an archive, or a saved measurement")
    command.add_argument("--target", default="api", help="whose last build to measure where no image is named")
    _report_arguments(command)
    command.add_argument("--keep", action="store_true", help="keep this measurement, for the trend in the HTML page")
    command.add_argument("--kept", type=Path, metavar="FOLDER", help="where they are (default: build/measurements)")


def add_compare_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `compare`."""
    command.add_argument("before", help="the earlier image: of the engine, a layout, an archive or a measurement")
    command.add_argument("after", help="the later image, in the same forms")
    _report_arguments(command)
    command.add_argument(
        "--base-layers", type=int, metavar="N", help="how many lowest layers are the base's (default: by their labels)"
    )


def add_time_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `time`."""
    command.add_argument("target", nargs="?", help="a target of docker/images.toml (default: api)")
    command.add_argument("--against", metavar="TARGET", help="a baseline, timed in turn with it in the same run")
    command.add_argument(
        "--scenarios",
        help=f"separated by commas, of cold-empty, cold, no-op, code, dependency, torch, base (default: {_SCENARIOS})",
    )
    command.add_argument("--runs", type=int, help=f"of each scenario (default: {_RUNS})")
    command.add_argument("--dependency", help="whose release the dependency scenario changes (default: tqdm)")
    command.add_argument("--builder", help="an engine of yours, by its docker context, to empty and fill")
    command.add_argument("--keep-downloads", action="store_true", help="keep that engine's downloads for the next run")
    command.add_argument(
        "--base-origin",
        choices=["auto", "registry", "debian"],
        default="auto",
        help="pull the base image from a registry, or make it from Debian's packages; auto: pull it if possible",
    )
    command.add_argument("--saved", type=Path, metavar="FILE", help="report an earlier run; nothing is built")
    _output_arguments(command)
    command.add_argument("--exit-zero", action="store_true", help="exit 0 even where a budget is broken")


def _output_arguments(command: argparse.ArgumentParser, *formats: str) -> None:
    command.add_argument("--format", "-f", default="terminal", choices=formats or _FORMATS, help="of the report")
    command.add_argument("--output", "-o", type=Path, help="a file for the report (default: stdout)")


def _report_arguments(command: argparse.ArgumentParser) -> None:
    _output_arguments(command)
    command.add_argument("--platform", help="of an index with several, as linux/amd64")
    command.add_argument("--tag", help="which image of an archive with several")
    command.add_argument("--max-entries", type=int, metavar="N", help="refuse an image with more files and folders")
    command.add_argument("--max-layer-bytes", metavar="SIZE", help='refuse a larger layer, unpacked ("300 GB")')
    command.add_argument("--timings", type=Path, metavar="FILE", help="timed builds to show and to evaluate, of `time`")
    command.add_argument("--budgets", metavar="TARGET", help="evaluate by this target's budgets in docker/images.toml")
    command.add_argument("--dive-rules", type=Path, metavar="FILE", help="evaluate by a .dive-ci file instead")
    command.add_argument("--exit-zero", action="store_true", help="exit 0 even where a budget is broken")
