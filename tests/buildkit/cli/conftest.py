from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

PROJECT = Path(__file__).resolve().parents[3]


class RunCommand(Protocol):
    """Runs `python -m buildkit` with *words* and a project folder."""

    def __call__(self, *words: object, project: Path = ...) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run(tmp_path: Path) -> RunCommand:
    """Runs a command with an empty project folder, or with *project* for its budgets."""

    def call(*words: object, project: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "buildkit", "--project", str(project), *map(str, words)]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)

    return call
