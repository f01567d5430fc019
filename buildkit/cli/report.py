"""Runs `measure` and `compare`: reports on images, and evaluates their budgets."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit import spec
from buildkit.build.record import load_record, record_path
from buildkit.check import budget
from buildkit.console import FOLDER, log, make_console, write
from buildkit.diff import diff
from buildkit.engine import daemon
from buildkit.errors import BuildkitError
from buildkit.image import history, model
from buildkit.image.analyze import analyze
from buildkit.image.layer_stream import Limits
from buildkit.image.read import ReadOptions, read_image
from buildkit.report import builds, render, terminal
from buildkit.report.content import ImageReport
from buildkit.timing import record

if TYPE_CHECKING:
    import argparse

    from rich.console import Group

    from buildkit.check.budget import BudgetReport, Budgets
    from buildkit.image.model import Measurement
    from buildkit.report.builds import Timeline

__all__ = [
    "add_compare_arguments",
    "add_measure_arguments",
    "add_output_arguments",
    "budgets_of",
    "finish",
    "run_compare",
    "run_measure",
]

_TARGET: Final = "api"
_FORMATS: Final = ("terminal", *render.FORMATS)
_IMAGE_FORMS: Final = "a name or digest in the engine, an OCI layout, an archive, or a saved .json measurement"


def run_measure(arguments: argparse.Namespace) -> int:
    """Analyzes an image and prints or writes the report."""
    timelines: list[Timeline] = []
    name, series = arguments.image, arguments.image
    if not name:
        built = load_record(record_path(arguments.project / FOLDER, arguments.target))
        name, series, timelines = built.digest, built.target, [builds.timeline_of_record(built)]
    measurement = _measure(name, arguments)
    if not arguments.image:
        measurement = measurement.renamed(built.tags[0])
    folder: Path = arguments.history or arguments.project / FOLDER / "measurements"
    if arguments.keep:
        log(f"wrote {history.append(measurement, folder, series=series, measured_at=datetime.now(tz=UTC))}")
    earlier = history.load_series(folder, series)
    budgets = _evaluate(arguments, measurement)
    tables = []
    if arguments.format == "terminal":
        tables = [terminal.measurement_tables(measurement)]
    else:
        timelines += _timelines(arguments)
        report = ImageReport(measurement, budgets=budgets, timelines=tuple(timelines), history=earlier)
        write(render.render(arguments.format, report), arguments.output)
    return finish(arguments, tables, budgets)


def run_compare(arguments: argparse.Namespace) -> int:
    """Compares two images and prints or writes the report."""
    before, after = _measure(arguments.before, arguments), _measure(arguments.after, arguments)
    comparison = diff.compare(before, after, base_layers=arguments.base_layers)
    budgets = _evaluate(arguments, after, before)
    before_name, after_name = _short_names(arguments.before, arguments.after)
    tables = []
    if arguments.format == "terminal":
        tables = [terminal.comparison_tables(comparison, before=before_name, after=after_name)]
    else:
        timelines = tuple(_timelines(arguments))
        report = ImageReport(after, comparison, budgets, timelines, before=before_name, after=after_name)
        write(render.render(arguments.format, report), arguments.output)
    return finish(arguments, tables, budgets)


def _short_names(*given: str) -> tuple[str, ...]:
    """Returns the names of images in a report: those given; for saved measurements their file names, if they differ."""
    names = tuple(name.removesuffix(".json") for name in given)
    short = tuple(Path(name).name if name != word else name for name, word in zip(names, given, strict=True))
    return short if len(set(short)) == len(short) else names


def _measure(name: str, arguments: argparse.Namespace) -> Measurement:
    """Loads the measurement *name* if it is a .json file; otherwise reads and analyzes the image *name*."""
    log(f"reading {name}")
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return model.load(path)
    try:
        host = daemon.find(os.environ, daemon.ManagedDaemon()).host
    except BuildkitError:  # an archive or a layout can be read without an engine
        host = ""
    options = ReadOptions(
        cache=arguments.project / FOLDER / "cache" / "layers",
        platform=arguments.platform,
        tag=arguments.tag,
        limits=_limits(arguments),
        engine_host=host,
    )
    return analyze(read_image(name, options))


def _limits(arguments: argparse.Namespace) -> Limits:
    """Returns the sizes above which an image is refused."""
    given: dict[str, int] = {}
    if arguments.max_entries is not None:
        given["entries"] = arguments.max_entries
    if arguments.max_layer_bytes is not None:
        given["unpacked_bytes"] = round(budget.parse_size("--max-layer-bytes", arguments.max_layer_bytes))
    return Limits(**given)


def _timelines(arguments: argparse.Namespace) -> list[Timeline]:
    """Returns the timelines of the builds in --timings."""
    return list(builds.timelines_of(record.load(arguments.timings))) if arguments.timings else []


def budgets_of(project: Path, target: str) -> Budgets:
    """Returns the budgets of *target* in docker/images.toml; none if the target has no budgets."""
    loaded = spec.load(project)
    return budget.parse_budgets(loaded.budgets.get(loaded.target(target).name, {}), where=f"budgets.{target}")


def _evaluate(
    arguments: argparse.Namespace, measurement: Measurement, baseline: Measurement | None = None
) -> BudgetReport | None:
    """Evaluates the budgets that --budgets or --dive-rules name; returns None without either."""
    if arguments.dive_rules:
        budgets = budget.parse_dive_rules(arguments.dive_rules.read_text(), where=str(arguments.dive_rules))
    elif arguments.budgets:
        budgets = budgets_of(arguments.project, arguments.budgets)
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


def finish(arguments: argparse.Namespace, tables: list[Group], budgets: BudgetReport | None) -> int:
    """Prints *tables* and the budgets; returns 1 if a budget failed, unless --exit-zero is given."""
    console = make_console()
    for table in tables:
        console.print(table)
    if budgets is None:
        return 0
    if tables:
        console.print(terminal.budget_table(budgets))
    return 0 if budgets.has_passed or arguments.exit_zero else 1


def add_measure_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `measure`."""
    command.add_argument(
        "image", nargs="?", metavar="IMAGE", help=f"{_IMAGE_FORMS} (default: the last build of --target)"
    )
    command.add_argument(
        "--target", default=_TARGET, help="measure the last build of this target if IMAGE is not given"
    )
    _add_report_arguments(command)
    command.add_argument("--keep", action="store_true", help="save this measurement in the folder of --history")
    command.add_argument(
        "--history",
        type=Path,
        metavar="FOLDER",
        help="folder of earlier measurements, for the trend in the HTML report (default: build/measurements)",
    )


def add_compare_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `compare`."""
    command.add_argument("before", metavar="BEFORE", help=f"the image before the change: {_IMAGE_FORMS}")
    command.add_argument("after", metavar="AFTER", help="the image after the change, in any of these forms")
    _add_report_arguments(command)
    command.add_argument(
        "--base-layers",
        type=int,
        metavar="N",
        help="number of layers that belong to the base image (default: the label io.truthgraph.base.layers, or else 1)",
    )


def add_output_arguments(command: argparse.ArgumentParser, *formats: str) -> None:
    """Adds --format, with all formats unless *formats* names some, and --output."""
    command.add_argument("--format", "-f", default="terminal", choices=formats or _FORMATS, help="format of the report")
    command.add_argument("--output", "-o", type=Path, metavar="FILE", help="write the report to FILE (default: stdout)")


def _add_report_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments that `measure` and `compare` share."""
    add_output_arguments(command)
    limits = Limits()
    command.add_argument("--platform", help="the platform to read from a multi-platform index, such as linux/amd64")
    command.add_argument("--tag", help="the image to read from an archive or layout with several, such as api:1")
    command.add_argument(
        "--max-entries",
        type=int,
        metavar="N",
        help=f"refuse an image with more files and folders than this (default: {limits.entries:,})",
    )
    command.add_argument(
        "--max-layer-bytes",
        metavar="SIZE",
        help="refuse a layer with a larger unpacked size, such as 300GB "
        f"(default: {limits.unpacked_bytes // 2**30} GiB)",
    )
    command.add_argument(
        "--timings",
        type=Path,
        metavar="FILE",
        help="timings that `time` saved, to show in the report and to check against the budgets",
    )
    command.add_argument(
        "--budgets", metavar="TARGET", help="check the image against the budgets of this target in docker/images.toml"
    )
    command.add_argument(
        "--dive-rules", type=Path, metavar="FILE", help="check the image against the rules of a .dive-ci file instead"
    )
    command.add_argument("--exit-zero", action="store_true", help="exit 0, not 1, if a budget is exceeded")
