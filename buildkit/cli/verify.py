"""Runs `verify`: checks an image and reports the results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit import spec
from buildkit.build.record import load_record, record_path
from buildkit.build.secrets import BuildSecrets
from buildkit.check import verify
from buildkit.check.expectations import expectations_of
from buildkit.cli.report import add_output_arguments
from buildkit.console import FOLDER, make_console, write
from buildkit.engine import daemon
from buildkit.report import render, terminal

if TYPE_CHECKING:
    import argparse

__all__ = ["add_verify_arguments", "run_verify"]

_TARGET: Final = "api"


def add_verify_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `verify`."""
    command.add_argument(
        "--image", default="", help="an image in the engine, by digest or name (default: the last build)"
    )
    command.add_argument("--target", default=_TARGET, help="the target in docker/images.toml that the image must match")
    command.add_argument("--build", type=Path, metavar="FILE", help="the build record of the image, instead of --image")
    command.add_argument(
        "--require",
        action="append",
        default=[],
        choices=verify.TIERS,
        metavar="TIER",
        help=f"fail if a check of this tier is NOT VERIFIED ({' or '.join(verify.TIERS)}; repeatable; default: none)",
    )
    add_output_arguments(command, "terminal", "json", "markdown", "junit", "sarif")
    command.add_argument("--exit-zero", action="store_true", help="exit 0, not 1, if checks fail")


def run_verify(arguments: argparse.Namespace) -> int:
    """Runs the checks on an image and prints their results."""
    folder: Path = arguments.project / FOLDER
    engine = daemon.find(os.environ, daemon.ManagedDaemon())
    labels = None
    image: str = arguments.image
    if not image:
        built = load_record(arguments.build or record_path(folder, arguments.target))
        image, labels = built.digest, built.labels
    build_secrets = BuildSecrets.of(os.environ)
    expectations = expectations_of(
        spec.load(arguments.project),
        arguments.target,
        labels=labels,
        certificates=build_secrets.certificates.read_bytes() if build_secrets.certificates else b"",
    )
    result = verify.verify(
        image,
        expectations,
        output=folder,
        environment=os.environ,
        engine_host=engine.host or None,
        require=arguments.require,
        cache=folder / "cache" / "layers",
        build_secrets=build_secrets.plain_values(),
    )
    if arguments.format == "terminal":
        make_console().print(terminal.check_table(result))
    else:
        write(render.render_checks(arguments.format, result.results, required=arguments.require), arguments.output)
    return 0 if arguments.exit_zero and result.exit_code == 1 else result.exit_code
