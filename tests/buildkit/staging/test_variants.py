"""Checks that the faults of the variants work on this checkout's service: the slow tests rely on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.buildkit.staging.variants import FAULTS, VARIANTS

ROOT = Path(__file__).parents[3]


def run(folder: Path, fault: str, program: str, *, workers: str = "") -> subprocess.CompletedProcess[str]:
    """Runs *program* as `python -c PROGRAM serve`, with *fault* installed as in a variant's image."""
    shutil.copy(FAULTS / f"{fault}.py", folder / "sitecustomize.py")
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "TRUTHGRAPH_TASK_WORKERS": workers}
    return subprocess.run(
        [sys.executable, "-c", program, "serve"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_crash_ends_the_server(tmp_path: Path) -> None:
    assert run(tmp_path, "crash", "print('started')").returncode == 7


def test_wrong_embeddings_are_reversed(tmp_path: Path) -> None:
    program = "from service.inference.types import Vector; print(Vector.of([1.0, 2.0]).values())"

    assert run(tmp_path, "wrong_embeddings", program).stdout == "[2.0, 1.0]\n"


def test_schema_0002_is_needed(tmp_path: Path) -> None:
    program = "from service import database; print(database.SCHEMA_REVISION)"

    assert run(tmp_path, "schema_0002", program).stdout == "0002\n"


@pytest.mark.parametrize(("workers", "is_ready"), [("", False), ("0", True)])
def test_never_ready_spares_the_canary(tmp_path: Path, workers: str, *, is_ready: bool) -> None:
    program = """
import asyncio
from service.app import create_app
from service.settings import Settings
conditions = asyncio.run(create_app(Settings()).health.conditions())
print({each.part: each.is_ready for each in conditions}["process"])
"""
    assert run(tmp_path, "never_ready", program, workers=workers).stdout == f"{is_ready}\n"


def test_each_variant_names_an_existing_fault() -> None:
    named = {variant.fault for variant in VARIANTS.values() if variant.fault}

    assert named == {path.stem for path in FAULTS.glob("*.py")}
