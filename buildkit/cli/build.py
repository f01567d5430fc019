"""Runs `engine`, `build` and `lock`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from buildkit.console import FOLDER, log, make_console

if TYPE_CHECKING:
    import argparse

__all__ = [
    "add_base_origin_argument",
    "add_build_arguments",
    "add_engine_arguments",
    "add_lock_arguments",
    "run_build",
    "run_engine",
    "run_lock",
]


def add_engine_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `engine`."""
    command.add_argument(
        "action",
        nargs="?",
        choices=["start", "stop", "clean"],
        default="start",
        help="start: find an engine, or install and start one; stop: stop the engine that this toolkit started; "
        "clean: remove this project's images, and the build cache of the engine that this toolkit started",
    )
    command.add_argument(
        "--purge", action="store_true", help="with stop: also remove the images and the build cache of that engine"
    )


def run_engine(arguments: argparse.Namespace) -> int:
    """Finds or starts an engine and prints its versions, or stops or cleans the managed one."""
    from buildkit import spec
    from buildkit.engine import client, daemon
    from buildkit.timing import builder

    managed = daemon.ManagedDaemon()
    if arguments.action == "stop":
        builder.remove_own_builder(log, purge=arguments.purge)  # a killed benchmark may have left one
        if not daemon.stop(managed, log, purge=arguments.purge):
            log("no engine of this toolkit was running")
        return 0
    if arguments.action == "clean":
        names = (spec.load(arguments.project).name, "truthgraph-base")
        daemon.clean(daemon.find(os.environ, managed), managed, names, log)
        return 0
    engine = daemon.ensure(os.environ, managed, log)
    for name, version in client.versions(engine).items():
        print(f"{name:<9} {version}")
    if engine.host and engine.host != os.environ.get("DOCKER_HOST"):
        print(f"address   {engine.host}")
        log(f"to use it with docker, run: export DOCKER_HOST={engine.host}")
    return 0


def add_build_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `build`."""
    command.add_argument("target", nargs="?", default="api", help="a target in docker/images.toml")
    command.add_argument(
        "--include-dev",
        action="store_true",
        help="build the dev target; INCLUDE_DEV=1 in the environment does the same",
    )
    command.add_argument("--base", metavar="IMAGE", help="the Python base image (default: that of docker/images.toml)")
    command.add_argument(
        "--python",
        metavar="X.Y",
        help="the Python version of that image, for example 3.13 (default: that of docker/images.toml)",
    )
    add_base_origin_argument(command)
    command.add_argument("--no-cache", action="store_true", help="run every step again")
    command.add_argument("--skip-disk-check", action="store_true", help="build even if the disk seems too full")


def add_base_origin_argument(command: argparse.ArgumentParser) -> None:
    """Adds --base-origin, which `build` and `time` share."""
    command.add_argument(
        "--base-origin",
        choices=["auto", "registry", "debian"],
        default="auto",
        help="registry: pull the base image; debian: make it from Debian's packages; auto: pull it, or else make it",
    )


def run_build(arguments: argparse.Namespace) -> int:
    """Builds a target, writes its build record and prints the digest of the image."""
    from rich.console import Console

    from buildkit import spec
    from buildkit.build import base, build, display
    from buildkit.engine import daemon

    loaded = spec.load(arguments.project, base=arguments.base, python=arguments.python)
    include_dev = "1" in (os.environ.get("INCLUDE_DEV"), "1" if arguments.include_dev else None)
    target = loaded.target("dev" if include_dev and arguments.target == "api" else arguments.target)
    engine = daemon.find(os.environ, daemon.ManagedDaemon())
    base_image = base.ensure_base_image(
        engine,
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
        engine=engine,
        base=base_image,
        environment=os.environ,
        folder=arguments.project / FOLDER,
        show=lambda events: display.BuildDisplay(console, events, title=f"building {target.name}"),
        use_cache=not arguments.no_cache,
        check_disk=not arguments.skip_disk_check,
    )
    console.print(f"  built {record.tags[0]} in {record.seconds:.1f} s on a base from {record.base['origin']}")
    print(record.digest)
    return 0


def add_lock_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lock`."""
    command.add_argument(
        "--upgrade", action="store_true", help="upgrade to the newest versions that pyproject.toml allows"
    )
    command.add_argument(
        "--check",
        action="store_true",
        help="check that the lock files are current; needs no network and changes nothing",
    )


def run_lock(arguments: argparse.Namespace) -> int:
    """Checks the lock files, or resolves them again and prints those that changed."""
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
    log(f"lock files changed: {len(changed)}")
    return 0
