"""Tests how docker/layout.py installs distributions without a wheel; every build of an image tests the rest."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

LAYOUT = Path(__file__).resolve().parents[2] / "docker" / "layout.py"


@pytest.fixture
def layout() -> ModuleType:
    found = importlib.util.spec_from_file_location("layout", LAYOUT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("has_wheels", "only_binary", "expected"),
    [
        (True, False, ["wheels"]),
        (True, True, ["wheels"]),
        (False, False, ["wheels", "compilers", "sources"]),
        (False, True, ["wheels", "failed"]),
    ],
)
def test_compilers_are_installed_only_without_a_wheel(
    layout: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    has_wheels: bool,
    only_binary: bool,
    expected: list[str],
) -> None:
    ran: list[str] = []

    def run(*command: str) -> None:
        if command == ("/mnt/apt-install", "--compilers"):
            ran.append("compilers")
        elif "--only-binary" in command:
            ran.append("wheels")
            if not has_wheels:
                raise subprocess.CalledProcessError(1, command)
        else:
            assert "--require-hashes" in command
            ran.append("sources")

    fakes: dict[str, Any] = {"run": run, "make_venv": set}
    for name, fake in fakes.items():
        monkeypatch.setattr(layout, name, fake)

    try:
        layout.install(tmp_path / "lock.txt", only_binary=only_binary)
    except subprocess.CalledProcessError:
        ran.append("failed")

    assert ran == expected
