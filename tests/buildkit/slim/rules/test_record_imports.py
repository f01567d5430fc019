from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from buildkit.slim.rules import rule_sets


def test_record_imports_adds_modules_and_versions(tmp_path: Path) -> None:
    listing = tmp_path / "imported.txt"
    listing.write_text("# old\nzzz/__init__.py\n")
    program = Path(rule_sets.__file__).with_name("record_imports.py")

    subprocess.run([sys.executable, program, listing, "pytest", "--version"], check=True, capture_output=True)

    comments = [line for line in listing.read_text().splitlines() if line.startswith("#")]
    paths = [line for line in listing.read_text().splitlines() if not line.startswith("#")]
    assert paths == sorted(paths)
    assert {"_pytest/main.py", "zzz/__init__.py"} < set(paths)
    assert len(comments) == 2
    assert f"pytest {pytest.__version__}" in comments[1].removeprefix("# Recorded with: ").split(", ")

    listing.write_text(listing.read_text().replace(f"pytest {pytest.__version__}", "pytest 1.0, gone 2.0"))
    before = listing.read_text()
    refused = subprocess.run(
        [sys.executable, program, listing, "pytest", "--version"], check=False, capture_output=True, text=True
    )
    assert f"was recorded with pytest 1.0, not {pytest.__version__}" in refused.stderr
    assert listing.read_text() == before
