"""What stands beside the API in the stack: PostgreSQL and the proxy, built here unless they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit import base, build
from buildkit import engine as engines
from buildkit.display import BuildDisplay
from buildkit.errors import CommandFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rich.console import Console

    from buildkit.engine import Engine
    from buildkit.events import Events
    from buildkit.spec import ImageSpec

__all__ = ["PARTS", "obtain"]

PARTS = ("postgres", "proxy")


def obtain(
    spec: ImageSpec,
    part: str,
    *,
    engine: Engine,
    folder: Path,
    environment: Mapping[str, str],
    console: Console,
    say: Callable[[str], None],
) -> str:
    """The digest of *part*'s image in the engine: the one of its build record, built now where there is none.

    Raises:
        BuildFailed: it does not build.
    """
    path = build.record_path(folder, part)
    try:
        digest = build.load_record(path).digest
        engines.docker(engine.host, "image", "inspect", "--format", "{{.Id}}", digest)
    except (UsageError, CommandFailed):
        say(f"building {part}")
    else:
        return digest

    def show(events: Events) -> BuildDisplay:
        return BuildDisplay(console, events, title=f"building {part}")

    origin = base.obtain(
        engine, reference=spec.base, python=spec.python, origin="auto", cache=folder / "cache", say=say
    )
    return build.build(
        spec,
        spec.target(part),
        engine=engine,
        base=origin,
        environment=environment,
        folder=folder,
        show=show,
    ).digest
