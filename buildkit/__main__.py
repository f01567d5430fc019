"""`python -m buildkit COMMAND`: the command line, and the commands that begin everything: engine, build, lock.

The others are in report/commands.py, slim/__main__.py and staging/commands.py.

Exit codes: 0 fine, 1 findings, 2 usage or configuration, 3 could not do it, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from buildkit.console import FOLDER, log, make_console
from buildkit.engine.processes import end_children
from buildkit.errors import BuildkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

INTERRUPTED = 130
_LEFT = "nothing was left running, and the last image is as it was"
_LEFT_BY_STAGING = "what was begun was taken back, and what served before serves"
"""What holds when Ctrl-C has ended a command."""
_HERE = {
    "engine": "find, install or start a container engine",
    "build": "build one target and record its digest in build/",
    "lock": "resolve pyproject.toml into docker/lock/",
}
_REPORT = {
    "verify": "check an image: the last one built, or any other",
    "measure": "what is in an image, in which layer, and what of it is waste",
    "compare": "what changed between two images, and what a node must fetch",
    "time": "how long builds take, cold, warm and after changes, beside a baseline",
}
_SLIM = {"slim": "take out of an installed tree what its GPUs can never run"}
_STAGING = {
    "stage": "release the verified image: push, migrate, update, check, record",
    "stage-status": "what runs in staging, how it is, and which releases are kept",
    "rollback": "go back to the release before, or to RELEASE, its schema included",
    "stage-down": "take staging down; what is stored stays",
    "watch": "look at staging's replicas and metrics for hours; 1 where the budget was broken",
    "backup": "write staging's whole database into a file",
    "restore": "put a backup in the place of staging's database",
}
_ELSEWHERE = {
    **dict.fromkeys(_REPORT, "buildkit.cli.report"),
    **dict.fromkeys(_STAGING, "buildkit.cli.staging"),
}
"""The modules of commands that are not here. Only the one that is asked for is imported."""


def _engine(arguments: argparse.Namespace) -> int:
    from buildkit import spec
    from buildkit.engine import client, daemon
    from buildkit.timing import builder

    private = daemon.ManagedDaemon()
    if arguments.action == "stop":
        builder.remove_own(log, purge=arguments.purge)  # of a run that was killed
        if not daemon.stop(private, log, purge=arguments.purge):
            log("no private engine was running")
        return 0
    if arguments.action == "clean":
        names = (spec.load(arguments.project).name, "truthgraph-base")
        daemon.clean(daemon.find(os.environ, private), private, names, log)
        return 0
    found = daemon.ensure(os.environ, private, log)
    for name, version in client.versions(found).items():
        print(f"{name:<9} {version}")
    if found.host and found.host != os.environ.get("DOCKER_HOST"):
        print(f"address   {found.host}")
        log(f"to use it by hand: export DOCKER_HOST={found.host}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from buildkit import spec
    from buildkit.build import base, build, display
    from buildkit.engine import daemon

    loaded = spec.load(arguments.project, base=arguments.base, python=arguments.python)
    include_dev = "1" in (os.environ.get("INCLUDE_DEV"), "1" if arguments.include_dev else None)
    target = loaded.target("dev" if include_dev and arguments.target == "api" else arguments.target)
    found = daemon.find(os.environ, daemon.ManagedDaemon())
    origin = base.ensure_base_image(
        found,
        reference=loaded.base,
        python=loaded.python,
        origin=arguments.base_origin,
        cache=arguments.project / FOLDER / "cache",
        log=log,
    )
    console = make_console(stderr=True)
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


def _lock(arguments: argparse.Namespace) -> int:
    from buildkit import spec
    from buildkit.build import locks

    loaded = spec.load(arguments.project)
    if arguments.check:
        locks.check_locks(loaded)
        return 0
    log("resolving with uv, which asks the package index")
    changed = locks.write_locks(loaded, upgrade=arguments.upgrade)
    for path in changed:
        print(path.relative_to(loaded.project))
    log(f"{len(changed)} lock files changed")
    return 0


def _engine_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "action",
        nargs="?",
        choices=["start", "stop", "clean"],
        default="start",
        help="stop: end the private engine; clean: remove this project's images, and the private engine's build cache",
    )
    command.add_argument("--purge", action="store_true", help="with stop: remove all that the private engine stored")
    command.set_defaults(run=_engine)


def _build_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", nargs="?", default="api", help="a target of docker/images.toml (default: api)")
    command.add_argument("--include-dev", action="store_true", help="the dev target; the same as INCLUDE_DEV=1")
    command.add_argument("--base", help="another Python image than docker/images.toml names")
    command.add_argument("--python", help="the Python of that image, as 3.13")
    command.add_argument("--base-origin", choices=["auto", "registry", "debian"], default="auto")
    command.add_argument("--no-cache", action="store_true", help="run every step again")
    command.add_argument("--skip-disk-check", action="store_true", help="build even where the disk seems too full")
    command.set_defaults(run=_build)


def _lock_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--upgrade", action="store_true", help="take the newest versions allowed")
    command.add_argument("--check", action="store_true", help="only say whether the lock is stale (no network)")
    command.set_defaults(run=_lock)


_ARGUMENTS = {"engine": _engine_arguments, "build": _build_arguments, "lock": _lock_arguments}


def _parser(asked: str) -> argparse.ArgumentParser:
    """The command line: every command with its help, and the arguments of the one that is *asked* for."""
    parser = argparse.ArgumentParser(prog="python -m buildkit", description="Builds, measures and proves images.")
    here = "the folder that holds docker/ (default: .)"
    parser.add_argument("--project", type=Path, default=Path.cwd(), help=here)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {**_HERE, **_REPORT, **_SLIM, **_STAGING}.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == asked and name not in _SLIM:
            command.add_argument("--project", type=Path, default=argparse.SUPPRESS, help=here)
            arguments = import_module(_ELSEWHERE[name]).ARGUMENTS if name in _ELSEWHERE else _ARGUMENTS
            arguments[name](command)
    return parser


def _asked(words: Sequence[str]) -> int:
    """Where the command is among *words*: the first that is neither an option of the program itself nor its value."""
    place = 0
    while place < len(words) and words[place].startswith("-"):
        place += 2 if words[place] == "--project" else 1
    return place


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; every expected failure is one message on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    place = _asked(words)
    asked = "".join(words[place : place + 1])
    if asked == "slim" and not {"-h", "--help"}.intersection(words[:place]):
        if place:
            print("error: slim is about a tree, not a project: leave --project away", file=sys.stderr)
            return 2
        from buildkit.slim.__main__ import main as slim  # has a command line of its own, which runs without this one

        return slim(words[1:])
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: whoever starts us in the background has it ignored
        signal.signal(number, _interrupt)
    try:
        arguments = _parser(asked).parse_args(words)
        run: Callable[[argparse.Namespace], int] = arguments.run
        return run(arguments)
    except BuildkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        end_children()
        print(f"interrupted; {_LEFT_BY_STAGING if asked in _STAGING else _LEFT}", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
