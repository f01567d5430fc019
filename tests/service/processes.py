"""Runs commands of the service as processes, with settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = (
    "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'tokenizers', 'numpy'))); "
    "from service.__main__ import main; sys.exit(main(sys.argv[1:]))"
)
"""A program for `python -c`: the service's command line on a machine without torch."""


def environment(**settings: object) -> dict[str, str]:
    """Returns this process's environment with only these settings: PORT=1 sets TRUTHGRAPH_PORT."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRUTHGRAPH_")}
    return clean | {f"TRUTHGRAPH_{name}": str(value) for name, value in settings.items()}


def command(*arguments: str, code: int = 0, **settings: object) -> str:
    """Runs a command of the service, expects the exit code `code`, and returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr
