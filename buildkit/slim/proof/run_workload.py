"""Runs the workload in a new process on one tree, and reads its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from buildkit.errors import BuildkitError
from buildkit.slim.placeholders.kinds import parse_message

__all__ = ["WORKLOAD", "WorkloadFailed", "run_workload"]

# For hangs only: a run of the workload took 95 s on two busy cores without a GPU.
_DEADLINE_SECONDS: Final = 1800
WORKLOAD = Path(__file__).with_name("workload.py")
"""The program to run."""


class WorkloadFailed(BuildkitError):
    """The workload ended without a report.

    Attributes:
        site: the tree that it ran on.
        status: its exit status.
        log_tail: the last lines of its standard error.
    """

    def __init__(self, site: Path, status: int, log_tail: str) -> None:
        super().__init__(f"the workload on {site} ended with exit status {status}:\n{log_tail}")
        self.site = site
        self.status = status
        self.log_tail = log_tail


def run_workload(
    site: Path, work: Path, loading: str, *, chosen: tuple[str, ...] = (), has_cudnn: bool = True
) -> dict[str, Any]:
    """Runs the workload with `site` as its only site-packages, and returns its report.

    The report gets one more key, `placeholder_calls`: the messages of placeholders on standard error, sorted.

    Args:
        site: a site-packages folder.
        work: a folder for temporary files.
        loading: how CUDA loads modules, `LAZY` or `EAGER`.
        chosen: the workload's options that choose cases; none runs all.
        has_cudnn: whether torch may use cuDNN. False is how the service runs without cuDNN's libraries.

    Raises:
        WorkloadFailed: it ended without a report.
    """
    with tempfile.TemporaryDirectory(dir=work, prefix="run-") as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-S", "-W", "ignore", str(WORKLOAD), str(report), *chosen]
        command += [] if has_cudnn else ["--without-cudnn"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
        environment |= {
            "PYTHONPATH": str(site),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_MODULE_LOADING": loading,
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it, cuBLAS does not repeat its bits (cuBLAS guide, 2.1.4)
            "HOME": folder,
        }
        result = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_DEADLINE_SECONDS,
        )
        errors = result.stderr.splitlines()
        if not report.exists():
            raise WorkloadFailed(site, result.returncode, "\n".join(errors[-20:]))
        document: dict[str, Any] = json.loads(report.read_text("utf-8"))
        return document | {"placeholder_calls": sorted({line for line in errors if parse_message(line) is not None})}
