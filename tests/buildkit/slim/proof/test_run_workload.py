from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit.slim.placeholders.kinds import removal_message
from buildkit.slim.proof import run_workload as module
from buildkit.slim.proof.run_workload import WorkloadFailed, run_workload

if TYPE_CHECKING:
    from pathlib import Path

MESSAGE = removal_message("libx.so", "stub-x", "x")
PROGRAM = f"""
import json, os, sys
print({MESSAGE!r}, "another line", {MESSAGE!r}, sep="\\n", file=sys.stderr)
if "--fail" in sys.argv:
    sys.exit(5)
json.dump({{"site": os.environ["PYTHONPATH"], "arguments": sys.argv[2:]}}, open(sys.argv[1], "w"))
"""


@pytest.fixture(autouse=True)
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "workload.py").write_text(PROGRAM)
    monkeypatch.setattr(module, "WORKLOAD", tmp_path / "workload.py")


def test_run_workload_adds_placeholder_messages_to_the_report(tmp_path: Path) -> None:
    report = run_workload(tmp_path / "site", tmp_path, "LAZY", chosen=("--served",), has_cudnn=False)

    assert report == {
        "site": str(tmp_path / "site"),
        "arguments": ["--served", "--without-cudnn"],
        "placeholder_calls": [MESSAGE],
    }


def test_run_workload_without_report_raises(tmp_path: Path) -> None:
    with pytest.raises(WorkloadFailed, match="another line") as error:
        run_workload(tmp_path / "site", tmp_path, "EAGER", chosen=("--fail",))

    assert (error.value.status, error.value.exit_code) == (5, 3)
