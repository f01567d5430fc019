"""Runs the commands for staging: stage, stage-status, rollback, stage-down, watch, backup, restore."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit import spec as specs
from buildkit.console import FOLDER, log, make_console
from buildkit.engine import daemon
from buildkit.errors import UsageError
from buildkit.staging.release import records, release, rollback, run
from buildkit.staging.stack import swarm
from buildkit.staging.stack.registry import LocalRegistry, Registry
from buildkit.staging.stack.stack import Stack
from buildkit.text import format_bytes

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from buildkit.spec import ImageSpec
    from buildkit.staging.release.records import Release

__all__ = [
    "add_backup_arguments",
    "add_down_arguments",
    "add_restore_arguments",
    "add_rollback_arguments",
    "add_stage_arguments",
    "add_status_arguments",
    "add_watch_arguments",
    "run_backup",
    "run_down",
    "run_restore",
    "run_rollback",
    "run_stage",
    "run_status",
    "run_watch",
]

_NOT_SETTINGS: Final = re.compile(r"TRUTHGRAPH_(?:[A-Z]+_IMAGE|SECRETS|STACK|BIND)$")
"""Variables of the stack file that a release sets itself, or that only Docker Compose reads."""


class _Staging:
    """The engine, the state folder and the stack that the arguments select."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.spec: ImageSpec = specs.load(arguments.project)
        self.state = records.state_folder(arguments.state, Path.home())
        self.engine = daemon.find(os.environ, daemon.ManagedDaemon())
        self.local = LocalRegistry(self.state / "registry", arguments.registry_port)
        file = self.spec.project / "docker" / "stack.yaml"
        self.stack = Stack(
            engine=self.engine,
            name=arguments.name or self.spec.staging.name,
            file=file,
            settings=_settings(file),
            secrets=self.state / "secrets",
            log=log,
        )


def _settings(file: Path) -> dict[str, str]:
    """Returns the environment variables that the stack file uses, except those in `_NOT_SETTINGS`."""
    named = set(re.findall(r"\$\{(TRUTHGRAPH_[A-Z_]+)", file.read_text()))
    return {name: os.environ[name] for name in sorted(named) if name in os.environ and not _NOT_SETTINGS.match(name)}


def _make_secrets(staging: _Staging) -> None:
    """Makes the missing secrets with docker/make-secrets, in a folder that only its owner can read."""
    program = staging.spec.project / "docker" / "make-secrets"
    done = subprocess.run(["sh", program, staging.state / "secrets"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UsageError("secrets", str(staging.state / "secrets"), done.stderr.strip())


def run_stage(arguments: argparse.Namespace) -> int:
    """Releases the verified image."""
    staging = _Staging(arguments)
    console = make_console(stderr=True)
    with records.locked(staging.state, f"stage {staging.stack.name}"):
        registry = _registry(arguments, staging)
        swarm.ensure_swarm(staging.engine, staging.state, is_local=arguments.local, log=log)
        _make_secrets(staging)
        context = _context(arguments, staging, repository=f"{registry}/{staging.spec.name}", console=console)
        done = release.stage(context)
        _prune_images(staging, registry)
    _print_release(done, staging)
    return 0


def _registry(arguments: argparse.Namespace, staging: _Staging) -> str:
    """Returns the registry's address with its path; starts the local registry if --local is given.

    Raises:
        UsageError: no registry is configured.
    """
    if arguments.local:
        staging.local.ensure(log)
        return staging.local.address
    named: str = arguments.registry or staging.spec.staging.registry
    if not named:
        advice = "set it by --registry or in docker/images.toml, or stage on this machine only with --local"
        raise UsageError("registry", "", advice)
    return named.rstrip("/")


def _context(
    arguments: argparse.Namespace, staging: _Staging, *, repository: str, console: Console | None = None
) -> run.ReleaseContext:
    from buildkit.build.record import record_path
    from buildkit.staging.stack import sidecars

    folder = staging.spec.project / FOLDER
    return run.ReleaseContext(
        spec=staging.spec,
        engine=staging.engine,
        build_path=getattr(arguments, "build", None) or record_path(folder, "api"),
        verify_path=getattr(arguments, "verify", None) or folder / "verify.json",
        state=staging.state,
        stack=staging.stack,
        repository=repository,
        log=log,
        sidecar=partial(
            sidecars.ensure_sidecar,
            staging.spec,
            engine=staging.engine,
            folder=folder,
            environment=os.environ,
            console=console or make_console(stderr=True),
            log=log,
        ),
        allow_downtime=getattr(arguments, "allow_downtime", False),
        keep_schema=getattr(arguments, "keep_schema", False),
    )


def _prune_images(staging: _Staging, registry: str) -> None:
    from buildkit.staging import retention

    local = staging.local if registry == staging.local.address else None
    removed = retention.prune_images(
        staging.engine, staging.stack, staging.state, keep=staging.spec.staging.keep_releases, local=local, log=log
    )
    for image in removed.images:
        log(f"removed {image}")
    if removed.images:
        in_engine, in_registry = format_bytes(removed.engine_bytes), format_bytes(removed.registry_bytes)
        log(f"freed {in_engine} in the engine, {in_registry} in the registry")


def _print_release(done: Release, staging: _Staging) -> None:
    console = make_console()
    console.print(f"{done.name} is serving at {replace(staging.stack, settings=done.settings).address}")
    console.print(f"{done.image}", soft_wrap=True)
    console.print(f"recorded in {staging.state / 'releases.json'}", soft_wrap=True)


def run_rollback(arguments: argparse.Namespace) -> int:
    """Returns to an earlier release."""
    staging = _Staging(arguments)
    with records.locked(staging.state, f"rollback {staging.stack.name}"):
        if staging.local.program.exists():
            staging.local.ensure(log)
        done = rollback.roll_back(_context(arguments, staging, repository=""), arguments.release)
    _print_release(done, staging)
    return 1 if done.reason else 0


def run_down(arguments: argparse.Namespace) -> int:
    """Stops staging."""
    staging = _Staging(arguments)
    with records.locked(staging.state, f"stage-down {staging.stack.name}"):
        if staging.stack.exists("api") or staging.stack.exists("database"):
            staging.stack.remove()
        if arguments.purge:
            staging.stack.remove_volumes()
        history = records.load(staging.state)
        records.save(staging.state, records.Releases(releases=history.with_outcome_of_serving("replaced")))
        swarm.leave_swarm(staging.engine, staging.state, log=log)
        staging.local.stop(log, purge=arguments.purge)
        if not arguments.purge:
            log("the database, the secrets and the release history were kept; --purge removes them")
    if arguments.purge:
        records.delete_state(staging.state)
        log(f"removed {staging.state}")
    return 0


def run_status(arguments: argparse.Namespace) -> int:
    """Prints the state of staging and its releases."""
    from buildkit.staging import status

    staging = _Staging(arguments)
    history = records.load(staging.state)
    current = status.read_status(staging.stack)
    console = make_console()
    for table in status.format_status(current, history):
        console.print(table)
    if not Registry(staging.local.address).answers() and staging.local.program.exists():
        log("the local registry is not running; `nox -s stage -- --local` and `nox -s rollback` start it")
    return 0 if current.is_healthy else 1


def run_watch(arguments: argparse.Namespace) -> int:
    """Watches staging for the given time."""
    from buildkit.staging import watch

    staging = _Staging(arguments)
    budget = staging.spec.staging.budget
    options = watch.WatchOptions(
        stack=staging.stack,
        budget=budget,
        duration_seconds=arguments.hours * 3600,
        interval_seconds=arguments.interval,
        tolerated_minutes=budget.minutes if arguments.minutes is None else arguments.minutes,
        history=arguments.history or staging.state / "watch.jsonl",
    )
    violations = watch.watch(options, make_console())
    if violations and arguments.rollback:
        log("rolling back: " + "; ".join(violations))
        arguments.release = None
        run_rollback(arguments)
    return 1 if violations else 0


def run_backup(arguments: argparse.Namespace) -> int:
    """Writes a backup of the database; if it fails, an existing file is unchanged."""
    staging = _Staging(arguments)
    path: Path = arguments.file
    if not path.parent.is_dir():
        raise UsageError("file", str(path), "its folder does not exist")
    container = staging.stack.container("database")
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            part.chmod(0o600)
            staging.engine.pipe("exec", "--interactive", container, "backup", stdout=file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    log(f"wrote {path} ({format_bytes(path.stat().st_size)})")
    return 0


def run_restore(arguments: argparse.Namespace) -> int:
    """Restores the database from a backup."""
    staging = _Staging(arguments)
    if not arguments.file.is_file():
        raise UsageError("file", str(arguments.file), "no such file; `python -m buildkit backup FILE` writes one")
    container = staging.stack.container("database")
    with records.locked(staging.state, f"restore {staging.stack.name}"), arguments.file.open("rb") as file:
        staging.engine.pipe(
            "exec", "--interactive", container, "restore", *(["--replace"] if arguments.replace else []), stdin=file
        )
    log(f"restored the database from {arguments.file}")
    return 0


def _add_common_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--name", default="", help="name of the stack (default: `staging.name` of docker/images.toml)")
    command.add_argument(
        "--state",
        type=Path,
        metavar="FOLDER",
        help="folder of releases.json, the secrets and the local registry (default: /var/lib/truthgraph-staging for "
        "root, ~/.local/state/truthgraph-staging for others)",
    )
    command.add_argument("--registry-port", type=int, default=5055, metavar="PORT", help="port of the local registry")


def add_stage_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `stage`."""
    _add_common_arguments(command)
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--local", action="store_true", help="stage on this machine only, with its own registry and swarm"
    )
    where.add_argument(
        "--registry",
        default="",
        metavar="HOST[:PORT][/PATH]",
        help="registry to push to (default: `staging.registry` of docker/images.toml)",
    )
    command.add_argument("--build", type=Path, metavar="FILE", help="build record (default: build/image.json)")
    command.add_argument("--verify", type=Path, metavar="FILE", help="verification record (default: build/verify.json)")
    command.add_argument(
        "--allow-downtime",
        action="store_true",
        help="migrate the database even if the serving release cannot work with the new schema",
    )


def add_status_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `stage-status`."""
    _add_common_arguments(command)


def add_rollback_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rollback`."""
    _add_common_arguments(command)
    command.add_argument(
        "release",
        nargs="?",
        metavar="RELEASE",
        help="the release to return to, as `stage-status` lists it (default: the previous one)",
    )
    command.add_argument("--keep-schema", action="store_true", help="roll back the code, but not the database schema")


def add_down_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `stage-down`."""
    _add_common_arguments(command)
    command.add_argument(
        "--purge",
        action="store_true",
        help="also delete the database, the secrets, the local registry and the release history",
    )


def add_watch_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `watch`."""
    _add_common_arguments(command)
    command.add_argument("--hours", type=float, default=24.0, help="hours to watch")
    command.add_argument(
        "--interval", type=float, default=15.0, metavar="SECONDS", help="seconds between two observations"
    )
    command.add_argument(
        "--minutes",
        type=float,
        help="stop when the budget has been exceeded for this many minutes without a break; 0: at once (default: "
        "`staging.budget.minutes` of docker/images.toml)",
    )
    command.add_argument(
        "--history",
        type=Path,
        metavar="FILE",
        help="JSON lines file for the observations, which are appended (default: watch.jsonl in the state folder)",
    )
    command.add_argument(
        "--rollback",
        action="store_true",
        help="return to the previous release when `watch` stops because of an exceeded budget",
    )


def add_backup_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `backup`."""
    _add_common_arguments(command)
    command.add_argument("file", type=Path, metavar="FILE", help="file to write; it replaces an older one")


def add_restore_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `restore`."""
    _add_common_arguments(command)
    command.add_argument("file", type=Path, metavar="FILE", help="a file that `backup` wrote")
    command.add_argument("--replace", action="store_true", help="replace a database that already has tables")
