"""Runs single cases of the workload with the torch of this Python."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from buildkit.slim.proof.run_workload import WORKLOAD

if TYPE_CHECKING:
    from pathlib import Path


def test_workload_repeats_its_digests(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    report = tmp_path / "report.json"
    command = [sys.executable, "-W", "ignore", str(WORKLOAD), str(report), "--case", "linear algebra"]

    def digests() -> dict[str, str]:
        subprocess.run(command, check=True)
        cases: dict[str, str] = json.loads(report.read_text())["cases"]
        return cases

    first = digests()

    assert first.keys() == {"first kernel", "linear algebra"}
    assert all(len(digest) == 64 for digest in first.values())
    assert digests() == first
