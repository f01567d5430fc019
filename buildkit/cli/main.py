"""Runs `python -m buildkit COMMAND`: finds the command, turns errors and signals into exit codes.

Exit codes: 0 success, 1 the image or release is at fault, 2 wrong usage or configuration, 3 the environment is at
fault, 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from buildkit.cli.command import PROJECT_HELP, Command, CommandHelpFormatter
from buildkit.engine.processes import end_children
from buildkit.errors import BuildkitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "main", "make_parser"]

INTERRUPTED: Final = 130
"""128 + SIGINT: the exit code that a shell gives a program ended by Ctrl-C."""
_NO_CHANGE: Final = "no process was left running; the last image is unchanged"
_ROLLED_BACK: Final = "changes were rolled back; the previous release is still serving"

COMMANDS: Final = (
    # Engine, build, locks.
    Command(
        "engine",
        "find, install, start or stop a container engine",
        add_arguments="buildkit.cli.build:add_engine_arguments",
        run="buildkit.cli.build:run_engine",
        example="engine stop --purge",
        interrupted=_NO_CHANGE,
    ),
    Command(
        "build",
        "build one target and record its digest in build/",
        add_arguments="buildkit.cli.build:add_build_arguments",
        run="buildkit.cli.build:run_build",
        example="build single --no-cache",
        interrupted=_NO_CHANGE,
    ),
    Command(
        "lock",
        "lock the dependencies of pyproject.toml in docker/lock/",
        add_arguments="buildkit.cli.build:add_lock_arguments",
        run="buildkit.cli.build:run_lock",
        example="lock --check",
        interrupted="the lock files are unchanged",
    ),
    # Reports on images and builds.
    Command(
        "verify",
        "check the last built image, or any other",
        add_arguments="buildkit.cli.verify:add_verify_arguments",
        run="buildkit.cli.verify:run_verify",
        example="verify --target single --require static --format junit --output build/verify.xml",
        interrupted=_NO_CHANGE,
    ),
    Command(
        "measure",
        "analyze an image: contents by layer, packages, waste",
        add_arguments="buildkit.cli.report:add_measure_arguments",
        run="buildkit.cli.report:run_measure",
        example="measure python:3.13-slim --format html --output build/page.html",
        interrupted=_NO_CHANGE,
    ),
    Command(
        "compare",
        "compare two images: changes and bytes to fetch",
        add_arguments="buildkit.cli.report:add_compare_arguments",
        run="buildkit.cli.report:run_compare",
        example="compare before.json truthgraph-api:latest --format markdown",
        interrupted=_NO_CHANGE,
    ),
    Command(
        "time",
        "time builds, alone or against a baseline",
        add_arguments="buildkit.cli.time:add_time_arguments",
        run="buildkit.cli.time:run_time",
        example="time api --against phase1 --runs 2 --scenarios cold,no-op",
        interrupted=_NO_CHANGE,
    ),
    # Slimming; it has its own command line, which also runs without this one, inside a build stage.
    Command(
        "slim",
        "remove unused GPU code and files from an environment",
        run="buildkit.slim.__main__:main",
        interrupted="the tree may be partly slimmed",
    ),
    # Staging.
    Command(
        "stage",
        "release the verified image to staging",
        add_arguments="buildkit.cli.staging:add_stage_arguments",
        run="buildkit.cli.staging:run_stage",
        example="stage --local",
        interrupted=_ROLLED_BACK,
    ),
    Command(
        "stage-status",
        "show the health and the releases of staging",
        add_arguments="buildkit.cli.staging:add_status_arguments",
        run="buildkit.cli.staging:run_status",
        example="stage-status",
    ),
    Command(
        "rollback",
        "return to the previous release, or to RELEASE",
        add_arguments="buildkit.cli.staging:add_rollback_arguments",
        run="buildkit.cli.staging:run_rollback",
        example="rollback --keep-schema",
        interrupted=_ROLLED_BACK,
    ),
    Command(
        "stage-down",
        "stop staging, but keep its data",
        add_arguments="buildkit.cli.staging:add_down_arguments",
        run="buildkit.cli.staging:run_down",
        example="stage-down --purge",
        interrupted="run stage-down again to finish",
    ),
    Command(
        "watch",
        "watch staging; exit 1 if its budget is exceeded",
        add_arguments="buildkit.cli.staging:add_watch_arguments",
        run="buildkit.cli.staging:run_watch",
        example="watch --hours 8 --rollback",
    ),
    Command(
        "backup",
        "back up the database of staging to a file",
        add_arguments="buildkit.cli.staging:add_backup_arguments",
        run="buildkit.cli.staging:run_backup",
        example="backup staging.dump",
        interrupted="an earlier file is unchanged",
    ),
    Command(
        "restore",
        "restore the database of staging from a backup",
        add_arguments="buildkit.cli.staging:add_restore_arguments",
        run="buildkit.cli.staging:run_restore",
        example="restore staging.dump --replace",
    ),
)
"""All commands, in the order of the help. A new command needs an entry here, and its two functions."""


def make_parser(chosen: str) -> argparse.ArgumentParser:
    """Returns the parser: every command with its summary, and the arguments of the *chosen* one."""
    parser = argparse.ArgumentParser(
        prog="python -m buildkit",
        description="Builds, measures, compares, slims, checks and releases container images with CUDA Python stacks.",
        epilog="example:\n  python -m buildkit build\n\n`python -m buildkit COMMAND --help` describes one command.",
        formatter_class=CommandHelpFormatter,
    )
    parser.add_argument("--project", metavar="FOLDER", type=Path, default=Path.cwd(), help=PROJECT_HELP)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands, is_chosen=command.name == chosen)
    return parser


def command_index(words: Sequence[str]) -> int:
    """Returns the index of the command in *words*: the first word that is neither an option nor an option's value."""
    index = 0
    while index < len(words) and words[index].startswith("-"):
        index += 2 if words[index] == "--project" else 1
    return index


def _raise_interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; every expected failure is one message on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    index = command_index(words)
    name = "".join(words[index : index + 1])
    command = next((command for command in COMMANDS if command.name == name), None)
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell starts background jobs with it ignored
        signal.signal(number, _raise_interrupt)
    try:
        if command and not command.add_arguments and not {"-h", "--help"}.intersection(words[:index]):
            if index:
                fix = f"leave it out: `{name}` works on a tree, not on a project"
                raise UsageError("option", " ".join(words[:index]), fix)
            return command(words[1:])
        arguments = make_parser(name).parse_args(words)
        return command(arguments) if command else 2
    except BuildkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        end_children()
        state = command.interrupted if command else ""
        print("interrupted" + (f"; {state}" if state else ""), file=sys.stderr)
        return INTERRUPTED
