"""`python -m buildkit stage` and its sisters: releases, their state, the way back, watching, backup and restore."""

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
"""Variables of the stack file that a release fills in itself, or that only compose reads."""


# ---- what all commands need -----------------------------------------------------------------------------------------


class _Place:
    """The engine, the records and the stack that the arguments point to."""

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
        )


def _settings(file: Path) -> dict[str, str]:
    """Those of the environment's variables that the stack file names, without the images and the secrets' places."""
    named = set(re.findall(r"\$\{(TRUTHGRAPH_[A-Z_]+)", file.read_text()))
    return {name: os.environ[name] for name in sorted(named) if name in os.environ and not _NOT_SETTINGS.match(name)}


def _make_secrets(place: _Place) -> None:
    """Has docker/make-secrets make what is missing; the folder is its owner's alone."""
    program = place.spec.project / "docker" / "make-secrets"
    done = subprocess.run(["sh", program, place.state / "secrets"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UsageError("secrets", str(place.state / "secrets"), done.stderr.strip())


# ---- commands -------------------------------------------------------------------------------------------------------


def run_stage(arguments: argparse.Namespace) -> int:
    """Releases the verified image."""
    place = _Place(arguments)
    console = make_console(stderr=True)
    with records.locked(place.state, f"stage {place.stack.name}"):
        registry = _registry(arguments, place)
        swarm.ensure_swarm(place.engine, place.state, is_local=arguments.local, log=log)
        _make_secrets(place)
        context = _context(arguments, place, repository=f"{registry}/{place.spec.name}", console=console)
        done = release.stage(context)
        _tidy(place, registry)
    _tell_release(done, place)
    return 0


def _registry(arguments: argparse.Namespace, place: _Place) -> str:
    """The registry's address with its path; the local one is started.

    Raises:
        UsageError: none is named.
    """
    if arguments.local:
        place.local.ensure(log)
        return place.local.address
    named: str = arguments.registry or place.spec.staging.registry
    if not named:
        advice = "name one with --registry or in docker/images.toml, or stage on this machine alone with --local"
        raise UsageError("registry", "", advice)
    return named.rstrip("/")


def _context(
    arguments: argparse.Namespace, place: _Place, *, repository: str, console: Console | None = None
) -> run.ReleaseContext:
    from buildkit.build.record import record_path
    from buildkit.staging.stack import sidecars

    folder = place.spec.project / FOLDER
    return run.ReleaseContext(
        spec=place.spec,
        engine=place.engine,
        build_path=getattr(arguments, "build", None) or record_path(folder, "api"),
        verify_path=getattr(arguments, "verify", None) or folder / "verify.json",
        state=place.state,
        stack=place.stack,
        repository=repository,
        log=log,
        sidecar=partial(
            sidecars.ensure_sidecar,
            place.spec,
            engine=place.engine,
            folder=folder,
            environment=os.environ,
            console=console or make_console(stderr=True),
            log=log,
        ),
        allow_downtime=getattr(arguments, "allow_downtime", False),
        keep_schema=getattr(arguments, "keep_schema", False),
    )


def _tidy(place: _Place, registry: str) -> None:
    from buildkit.staging import retention

    local = place.local if registry == place.local.address else None
    freed = retention.prune_images(
        place.engine, place.stack, place.state, keep=place.spec.staging.keep_releases, local=local, log=log
    )
    for image in freed.images:
        log(f"removed {image}")
    if freed.images:
        in_engine, in_registry = freed.engine_bytes / 1e6, freed.registry_bytes / 1e6
        log(f"freed {in_engine:,.1f} MB in the engine, {in_registry:,.1f} MB in the registry")


def _tell_release(done: Release, place: _Place) -> None:
    console = make_console()
    console.print(f"{done.name} serves at {replace(place.stack, settings=done.settings).address}")
    console.print(f"{done.image}", soft_wrap=True)
    console.print(f"recorded in {place.state / 'releases.json'}", soft_wrap=True)


def run_rollback(arguments: argparse.Namespace) -> int:
    """Returns to an earlier release."""
    place = _Place(arguments)
    with records.locked(place.state, f"rollback {place.stack.name}"):
        if place.local.program.exists():
            place.local.ensure(log)
        done = rollback.roll_back(_context(arguments, place, repository=""), arguments.release)
    _tell_release(done, place)
    return 1 if done.reason else 0


def run_down(arguments: argparse.Namespace) -> int:
    """Stops staging."""
    place = _Place(arguments)
    with records.locked(place.state, f"stage-down {place.stack.name}"):
        if place.stack.exists("api") or place.stack.exists("database"):
            place.stack.remove(log)
        if arguments.purge:
            place.stack.remove_volumes(log)
        known = records.load(place.state)
        records.save(place.state, records.Releases(releases=known.with_outcome_of_serving("replaced")))
        swarm.leave_swarm(place.engine, place.state, log=log)
        place.local.stop(log, purge=arguments.purge)
        if not arguments.purge:
            log("the database's volume, the secrets and the releases stay; --purge removes them")
    if arguments.purge:
        records.delete_state(place.state)
        log(f"removed {place.state}")
    return 0


def run_status(arguments: argparse.Namespace) -> int:
    """Prints the state of staging and its releases."""
    from buildkit.staging import status

    place = _Place(arguments)
    known = records.load(place.state)
    seen = status.look(place.stack)
    console = make_console()
    for table in status.tables(seen, known):
        console.print(table)
    if not Registry(place.local.address).answers() and place.local.program.exists():
        log("the local registry does not run; `nox -s stage -- --local` and `nox -s rollback` start it")
    return 0 if seen.is_fine else 1


def run_watch(arguments: argparse.Namespace) -> int:
    """Watches staging for the given time."""
    from buildkit.staging import watch

    place = _Place(arguments)
    plan = watch.WatchOptions(
        stack=place.stack,
        budget=place.spec.staging.budget,
        seconds=arguments.hours * 3600,
        every_seconds=arguments.every,
        minutes=place.spec.staging.budget.minutes if arguments.minutes is None else arguments.minutes,
        record=arguments.record or place.state / "watch.jsonl",
    )
    broken = watch.watch(plan, make_console())
    if broken and arguments.rollback:
        log("rolling back: " + "; ".join(broken))
        arguments.release = None
        run_rollback(arguments)
    return 1 if broken else 0


def run_backup(arguments: argparse.Namespace) -> int:
    """Writes beside the file and renames: a backup that broke off leaves the one before."""
    place = _Place(arguments)
    path: Path = arguments.file
    if not path.parent.is_dir():
        raise UsageError("file", str(path), "its folder does not exist")
    container = place.stack.container("database")
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            part.chmod(0o600)
            place.engine.pipe("exec", "--interactive", container, "backup", stdout=file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    log(f"{path.stat().st_size / 1e6:,.1f} MB in {path}")
    return 0


def run_restore(arguments: argparse.Namespace) -> int:
    """Restores the database from a backup."""
    place = _Place(arguments)
    if not arguments.file.is_file():
        raise UsageError("file", str(arguments.file), "is not there; `backup` writes one")
    container = place.stack.container("database")
    with records.locked(place.state, f"restore {place.stack.name}"), arguments.file.open("rb") as file:
        place.engine.pipe(
            "exec", "--interactive", container, "restore", *(["--replace"] if arguments.replace else []), stdin=file
        )
    log(f"{arguments.file} is the database now")
    return 0


# ---- the command line -----------------------------------------------------------------------------------------------


def _everywhere(command: argparse.ArgumentParser) -> None:
    command.add_argument("--name", default="", help="of the stack (default: docker/images.toml)")
    command.add_argument("--state", type=Path, help="where releases.json lies (default: a folder of this machine)")
    command.add_argument("--registry-port", type=int, default=5055, help="of the local registry (default: 5055)")


def add_stage_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `stage`."""
    _everywhere(command)
    where = command.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="this machine alone: own registry, own swarm, own secrets")
    where.add_argument("--registry", default="", help="host[:port][/path] to push to (default: docker/images.toml)")
    command.add_argument("--build", type=Path, help="the build record (default: build/image.json)")
    command.add_argument("--verify", type=Path, help="the verification record (default: build/verify.json)")
    command.add_argument("--allow-downtime", action="store_true", help="migrate even if the serving release then stops")


def add_status_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `stage-status`."""
    _everywhere(command)


def add_rollback_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rollback`."""
    _everywhere(command)
    command.add_argument("release", nargs="?", help="a name of stage-status (default: the release before)")
    command.add_argument("--keep-schema", action="store_true", help="take the code alone back")


def add_down_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `down`."""
    _everywhere(command)
    command.add_argument(
        "--purge", action="store_true", help="remove the volumes, the secrets, the registry, the records"
    )


def add_watch_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `watch`."""
    _everywhere(command)
    command.add_argument("--hours", type=float, default=24.0, help="(default: 24)")
    command.add_argument("--every", type=float, default=15.0, metavar="SECONDS", help="between two looks (default: 15)")
    command.add_argument("--minutes", type=float, help="broken for this long ends it (default: docker/images.toml)")
    command.add_argument(
        "--record", type=Path, metavar="FILE", help="JSON lines, one a look (default: beside releases.json)"
    )
    command.add_argument("--rollback", action="store_true", help="and go back to the release before")


def add_backup_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `backup`."""
    _everywhere(command)
    command.add_argument("file", type=Path, help="where to write the backup")


def add_restore_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `restore`."""
    _everywhere(command)
    command.add_argument("file", type=Path, help="a file that `backup` wrote")
    command.add_argument("--replace", action="store_true", help="even where there are tables already")
