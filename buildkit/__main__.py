"""`python -m buildkit COMMAND`: the only module that prints, reads the environment, or exits.

Exit codes: 0 fine, 1 findings, 2 usage or configuration, 3 could not do it, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from buildkit.errors import BuildkitError, UsageError
from buildkit.processes import end_children

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Group

    from buildkit.budget import Budgets, Verdict
    from buildkit.image.layer_stream import Limits
    from buildkit.measure import Measurement
    from buildkit.report.builds import Timeline
    from buildkit.timing.record import Timings

__all__ = ["main"]

FOLDER = Path("build")
INTERRUPTED = 130
_SCENARIOS, _RUNS = "cold,no-op,code,dependency", 3
_FORMATS = ("terminal", "json", "markdown", "html", "junit", "sarif")
_STAGING = {
    "stage": "release the verified image: push, migrate, update, check, record",
    "stage-status": "what runs in staging, how it is, and which releases are kept",
    "rollback": "go back to an earlier release",
    "stage-down": "take staging down",
    "watch": "look at staging for hours",
    "backup": "write staging's database into a file",
    "restore": "put a backup in the place of staging's database",
}
"""Their arguments and their work are in buildkit/staging/commands.py; here they are listed without importing it."""


def _say(line: str) -> None:
    print(f"· {line}", file=sys.stderr, flush=True)


def _engine(arguments: argparse.Namespace) -> int:
    from buildkit import engine, spec
    from buildkit.timing import scope

    private = engine.Private()
    if arguments.action == "stop":
        scope.remove_own(_say, purge=arguments.purge)  # of a run that was killed
        if not engine.stop(private, _say, purge=arguments.purge):
            _say("no private engine was running")
        return 0
    if arguments.action == "clean":
        names = (spec.load(arguments.project).name, "truthgraph-base")
        engine.clean(engine.find(os.environ, private), private, names, _say)
        return 0
    found = engine.ensure(os.environ, private, _say)
    for name, version in engine.versions(found).items():
        print(f"{name:<9} {version}")
    if found.host and found.host != os.environ.get("DOCKER_HOST"):
        print(f"address   {found.host}")
        _say(f"to use it by hand: export DOCKER_HOST={found.host}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from buildkit import base, build, display, engine, spec

    loaded = spec.load(arguments.project, base=arguments.base, python=arguments.python)
    include_dev = "1" in (os.environ.get("INCLUDE_DEV"), "1" if arguments.include_dev else None)
    target = loaded.target("dev" if include_dev and arguments.target == "api" else arguments.target)
    found = engine.find(os.environ, engine.Private())
    origin = base.obtain(
        found,
        reference=loaded.base,
        python=loaded.python,
        origin=arguments.base_origin,
        cache=arguments.project / FOLDER / "cache",
        say=_say,
    )
    console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")) or None)
    if os.environ.get("CI"):
        console = Console(stderr=True, force_terminal=False)
    record = build.build(
        loaded,
        target,
        engine=found,
        base=origin,
        environment=os.environ,
        folder=arguments.project / FOLDER,
        show=lambda events: display.BuildDisplay(console, events, title=f"building {target.name}"),
        use_cache=not arguments.no_cache,
        check_disk=not arguments.skip_disk_check,
    )
    console.print(f"  built {record.tags[0]} in {record.seconds:.1f} s on a base from {record.base['origin']}")
    print(record.digest)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from buildkit import build, engine, inspection, spec, verify
    from buildkit.handed_in import HandedIn

    loaded = spec.load(arguments.project)
    folder: Path = arguments.project / FOLDER
    found = engine.find(os.environ, engine.Private())
    labels = None
    image: str = arguments.image
    if not image:
        record = build.load_record(arguments.build or build.record_path(folder, arguments.target))
        image, labels = record.digest, record.labels
    handed_in = HandedIn.of(os.environ)
    expectations = verify.expect(
        loaded,
        arguments.target,
        labels=labels,
        certificates=handed_in.certificates.read_bytes() if handed_in.certificates else b"",
        handed_in=handed_in.plain(),
    )
    result = verify.verify(
        image,
        expectations,
        output=folder,
        environment=os.environ,
        engine_host=found.host or None,
        require=arguments.require,
        cache=folder / "cache" / "layers",
        handed_in=handed_in.plain(),
    )
    if arguments.format == "terminal":
        Console(no_color=bool(os.environ.get("NO_COLOR")) or None).print(verify.table(result))
    else:
        _write(arguments, inspection.render_checks(arguments.format, result.results, required=arguments.require))
    return 0 if arguments.exit_zero and result.exit_code == 1 else result.exit_code


def _measure(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from buildkit import build, inspection, kept
    from buildkit.report import builds, terminal

    timelines: list[Timeline] = []
    name, series = arguments.image, arguments.image
    if not name:
        record = build.load_record(build.record_path(arguments.project / FOLDER, arguments.target))
        name, series, timelines = record.digest, record.target, [builds.timeline_of(record)]
    _say(f"reading {name}")
    measurement = inspection.obtain(name, **_reading(arguments))
    if not arguments.image:
        measurement = measurement.called(record.tags[0])
    if arguments.keep:
        _say(f"kept {kept.keep(measurement, _kept(arguments), series=series, taken=datetime.now(tz=UTC))}")
    trend = kept.series_in(_kept(arguments), series)
    verdict = _judge(arguments, measurement)
    if arguments.format == "terminal":
        tables = [terminal.measurement_tables(measurement)]
    else:
        tables = []
        timelines += _timelines(arguments)
        text = inspection.render(arguments.format, measurement, verdict=verdict, timelines=timelines, trend=trend)
        _write(arguments, text)
    return _concluded(arguments, tables, verdict)


def _compare(arguments: argparse.Namespace) -> int:
    from buildkit import compare, inspection
    from buildkit.report import terminal

    measurements = []
    for name in (arguments.before, arguments.after):
        _say(f"reading {name}")
        measurements.append(inspection.obtain(name, **_reading(arguments)))
    before, after = measurements
    comparison = compare.compare(before, after, base_layers=arguments.base_layers)
    verdict = _judge(arguments, after, before)
    called = _called(arguments.before, arguments.after)
    names: dict[str, Any] = {"before": called[0], "after": called[1]}
    if arguments.format == "terminal":
        tables = [terminal.comparison_tables(comparison, **names)]
    else:
        tables = []
        shown: dict[str, Any] = {"comparison": comparison, "verdict": verdict, "timelines": _timelines(arguments)}
        _write(arguments, inspection.render(arguments.format, after, **shown, **names))
    return _concluded(arguments, tables, verdict)


def _called(*measurements: str) -> tuple[str, ...]:
    """What a report calls images: as the caller did, saved measurements by their files' names where these differ."""
    names = tuple(name.removesuffix(".json") for name in measurements)
    short = tuple(Path(name).name if name != given else name for name, given in zip(names, measurements, strict=True))
    return short if len(set(short)) == len(short) else names


def _time(arguments: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from rich.console import Console

    from buildkit import display, engine, spec
    from buildkit.timing import record, run, scope

    if arguments.saved:
        for name in ("target", "against", "scenarios", "runs", "dependency", "builder"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--saved with {name}", getattr(arguments, name), "the file says what was timed")
        timings = record.load(arguments.saved)
        return _timed(arguments, timings, _budgets_of(arguments.project, timings.target))
    loaded = spec.load(arguments.project)
    scenarios: Any = (arguments.scenarios or _SCENARIOS).split(",")  # Plan refuses unknown ones
    plan = run.Plan(
        loaded.target(arguments.target or "api").name,
        loaded.target(arguments.against).name if arguments.against else None,
        tuple(scenarios),
        _RUNS if arguments.runs is None else arguments.runs,
        arguments.dependency or "tqdm",
    )
    budgets = _budgets_of(arguments.project, plan.target)
    console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")) or None)
    kept = arguments.project / FOLDER / "timings.json"
    with (
        nullcontext(scope.named(engine.find(os.environ, engine.Private()), arguments.builder))
        if arguments.builder
        else scope.own(_say, keep=arguments.keep_downloads)
    ) as cache_scope:
        timings = run.time_builds(
            plan,
            cache_scope,
            spec=loaded,
            environment=os.environ,
            base_origin=arguments.base_origin,
            cache=arguments.project / FOLDER / "cache",
            show=lambda events, title: display.BuildDisplay(console, events, title=title),
            say=_say,
            keep=lambda so_far: record.save(so_far, kept),
        )
    _say(f"wrote {kept}")
    return _timed(arguments, timings, budgets)


def _timed(arguments: argparse.Namespace, timings: Timings, budgets: Budgets) -> int:
    """Writes the report of *timings*; 1 where a budget is broken, 3 where a scenario could not be timed."""
    from datetime import UTC, datetime

    from buildkit import budget, inspection
    from buildkit.report import builds

    limits, verdict = budgets.of_builds(), None
    if limits.limits:
        verdict = budget.judge(
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
        _write(arguments, inspection.render_timings(arguments.format, timings, verdict=verdict))
    code = _concluded(arguments, tables, verdict)
    return code or (3 if timings.not_run else 0)


def _reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """How images are read: the cache, the platform, and the engine where one answers (files need none)."""
    from buildkit import engine

    docker: tuple[str, ...] = ("docker",)
    try:
        host = engine.find(os.environ, engine.Private()).host
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
    from buildkit import budget
    from buildkit.image.layer_stream import Limits

    named: dict[str, int] = {}
    if arguments.most_entries is not None:
        named["entries"] = arguments.most_entries
    if arguments.most_layer_bytes is not None:
        named["unpacked_bytes"] = round(budget.parse_size("--most-layer-bytes", arguments.most_layer_bytes))
    return Limits(**named)


def _kept(arguments: argparse.Namespace) -> Path:
    """Where measurements are kept."""
    folder: Path = arguments.kept or arguments.project / FOLDER / "measurements"
    return folder


def _timelines(arguments: argparse.Namespace) -> list[Timeline]:
    """The timed builds that the caller named."""
    from buildkit.report import builds
    from buildkit.timing import record

    return list(builds.timelines_of(record.load(arguments.timings))) if arguments.timings else []


def _budgets_of(project: Path, target: str) -> Budgets:
    """The limits of *target* in docker/images.toml; none where it has no table."""
    from buildkit import budget, spec

    loaded = spec.load(project)
    return budget.parse_budgets(loaded.budgets.get(loaded.target(target).name, {}), where=f"budgets.{target}")


def _judge(
    arguments: argparse.Namespace, measurement: Measurement, baseline: Measurement | None = None
) -> Verdict | None:
    """The verdict by the target's budgets in docker/images.toml, or by a .dive-ci file; None without either."""
    from datetime import UTC, datetime

    from buildkit import budget
    from buildkit.timing import record

    if arguments.dive_rules:
        budgets = budget.parse_dive_rules(arguments.dive_rules.read_text(), where=str(arguments.dive_rules))
    elif arguments.budgets:
        budgets = _budgets_of(arguments.project, arguments.budgets)
    else:
        return None
    timings = record.load(arguments.timings) if arguments.timings else None
    target = arguments.budgets or (timings.target if timings else "")
    return budget.judge(
        measurement,
        budgets,
        today=datetime.now(tz=UTC).date(),
        baseline=baseline,
        transfer_bytes=timings.transfer_bytes(target) if timings else None,
        build_seconds_ratio=timings.seconds_ratio(target) if timings else None,
    )


def _write(arguments: argparse.Namespace, text: str) -> None:
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text)
        _say(f"wrote {arguments.output}")
    else:
        print(text)


def _concluded(arguments: argparse.Namespace, tables: list[Group], verdict: Verdict | None) -> int:
    """Prints *tables* and the verdict; 1 where a limit is broken, unless the caller wants 0 all the same."""
    from rich.console import Console

    from buildkit.report import terminal

    console = Console(no_color=bool(os.environ.get("NO_COLOR")) or None)
    for table in tables:
        console.print(table)
    if verdict is None:
        return 0
    if tables:
        console.print(terminal.verdict_table(verdict))
    return 0 if verdict.is_fine or arguments.exit_zero else 1


def _lock(arguments: argparse.Namespace) -> int:
    from buildkit import layers, spec

    loaded = spec.load(arguments.project)
    if arguments.check:
        layers.check_locks(loaded)
        return 0
    _say("resolving with uv, which asks the package index")
    changed = layers.write_locks(loaded, upgrade=arguments.upgrade)
    for path in changed:
        print(path.relative_to(loaded.project))
    _say(f"{len(changed)} lock files changed")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m buildkit", description="Builds, measures and proves images.")
    parser.add_argument("--project", type=Path, default=Path.cwd(), help="the folder that holds docker/ (default: .)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("engine", help="find, install or start a container engine")
    command.add_argument(
        "action",
        nargs="?",
        choices=["start", "stop", "clean"],
        default="start",
        help="stop: end the private engine; clean: remove this project's images, and the private engine's build cache",
    )
    command.add_argument("--purge", action="store_true", help="with stop: remove all that the private engine stored")
    command.set_defaults(run=_engine)

    command = commands.add_parser("build", help="build one target and record its digest in build/")
    command.add_argument("target", nargs="?", default="api", help="a target of docker/images.toml (default: api)")
    command.add_argument("--include-dev", action="store_true", help="the dev target; the same as INCLUDE_DEV=1")
    command.add_argument("--base", help="another Python image than docker/images.toml names")
    command.add_argument("--python", help="the Python of that image, as 3.13")
    command.add_argument("--base-origin", choices=["auto", "registry", "debian"], default="auto")
    command.add_argument("--no-cache", action="store_true", help="run every step again")
    command.add_argument("--skip-disk-check", action="store_true", help="build even where the disk seems too full")
    command.set_defaults(run=_build)

    command = commands.add_parser("verify", help="check an image: the last one built, or any other")
    command.add_argument("--image", default="", help="any image in the engine, by digest or name")
    command.add_argument("--target", default="api", help="what the image is expected to be (default: api)")
    command.add_argument("--build", type=Path, help="a build record (default: the target's last, in build/)")
    command.add_argument(
        "--require", action="append", default=[], metavar="TIER", help="static or device: not verified is a finding"
    )
    _add_output_options(command, "terminal", "json", "markdown", "junit", "sarif")
    command.add_argument("--exit-zero", action="store_true", help="exit 0 even with findings")
    command.set_defaults(run=_verify)

    command = commands.add_parser("measure", help="what is in an image, in which layer, and what of it is waste")
    command.add_argument("image", nargs="?", help="in the engine, an OCI layout, an archive, or a saved measurement")
    command.add_argument("--target", default="api", help="whose last build to measure where no image is named")
    _add_report_options(command)
    command.add_argument("--keep", action="store_true", help="keep this measurement, for the trend in the HTML page")
    command.add_argument("--kept", type=Path, metavar="FOLDER", help="where they are (default: build/measurements)")
    command.set_defaults(run=_measure)

    command = commands.add_parser("compare", help="what changed between two images, and what a node must fetch")
    command.add_argument("before")
    command.add_argument("after")
    _add_report_options(command)
    command.add_argument(
        "--base-layers", type=int, metavar="N", help="how many lowest layers are the base's (default: by their labels)"
    )
    command.set_defaults(run=_compare)

    _add_time(commands)
    commands.add_parser("diet", help="take out of an installed tree what its GPUs can never run")
    for name, text in _STAGING.items():
        commands.add_parser(name, help=text)

    command = commands.add_parser("lock", help="resolve pyproject.toml into docker/lock/")
    command.add_argument("--upgrade", action="store_true", help="take the newest versions allowed")
    command.add_argument("--check", action="store_true", help="only say whether the lock is stale (no network)")
    command.set_defaults(run=_lock)
    return parser


def _add_time(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("time", help="how long builds take, cold, warm and after changes, beside a baseline")
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
    command.add_argument("--base-origin", choices=["auto", "registry", "debian"], default="auto")
    command.add_argument("--saved", type=Path, metavar="FILE", help="report an earlier run; nothing is built")
    _add_output_options(command)
    command.add_argument("--exit-zero", action="store_true", help="exit 0 even where a budget is broken")
    command.set_defaults(run=_time)


def _add_output_options(command: argparse.ArgumentParser, *formats: str) -> None:
    command.add_argument("--format", "-f", default="terminal", choices=formats or _FORMATS)
    command.add_argument("--output", "-o", type=Path, help="a file for the report (default: stdout)")


def _add_report_options(command: argparse.ArgumentParser) -> None:
    _add_output_options(command)
    command.add_argument("--platform", help="of an index with several, as linux/amd64")
    command.add_argument("--tag", help="which image of an archive with several")
    command.add_argument("--most-entries", type=int, metavar="N", help="refuse an image with more files and folders")
    command.add_argument("--most-layer-bytes", metavar="SIZE", help='refuse a larger layer, unpacked ("300 GB")')
    command.add_argument("--timings", type=Path, metavar="FILE", help="timed builds to show and to judge, of `time`")
    command.add_argument("--budgets", metavar="TARGET", help="judge by this target's budgets in docker/images.toml")
    command.add_argument("--dive-rules", type=Path, metavar="FILE", help="judge by a .dive-ci file instead")
    command.add_argument("--exit-zero", action="store_true", help="exit 0 even where a budget is broken")


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; every expected failure is one message on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["diet"]:
        from buildkit.diet.__main__ import main as diet  # has a command line of its own, which runs without this one

        return diet(words[1:])
    interrupted = "nothing was left running, and the last image is as it was"
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: whoever starts us in the background has it ignored
        signal.signal(number, _interrupt)
    try:
        if words and words[0] in _STAGING:
            from buildkit.staging import commands

            interrupted = commands.INTERRUPTED
            return commands.run(words)
        arguments = _parser().parse_args(words)
        run: Callable[[argparse.Namespace], int] = arguments.run
        return run(arguments)
    except BuildkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        end_children()
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
