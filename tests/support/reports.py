"""Provides samples for reports, and renders reports in a terminal and a browser."""

from __future__ import annotations

import io
import re
import subprocess
from typing import TYPE_CHECKING

from rich.console import Console

from buildkit.check.budget import BudgetReport, BudgetResult
from checks.results import CheckResult, Results

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

__all__ = ["BUDGETS", "CHECK_RESULTS", "check_result", "markdown_rows", "render_in_browser", "terminal_text"]

BUDGETS = BudgetReport(
    "example:1",
    (
        BudgetResult("layers", "passed", 3, 2, "layers is 2"),
        BudgetResult("files", "failed", 1, 2, "files is 2 \x00 & <more>"),
        BudgetResult("packages", "waived", 1, 2, "waived until 2027: because"),
        BudgetResult("transfer_bytes.code", "not evaluated", 1, None, "not measured"),
    ),
)
"""One budget of each status."""


def check_result(name: str, outcome: str, tier: str = "static", **more: object) -> CheckResult:
    """Makes the result of a check that took 0.25 s."""
    fields = {
        "name": name,
        "title": f"Claim of {name}",
        "group": "g",
        "tier": tier,
        "outcome": outcome,
        "seconds": 0.25,
    }
    return CheckResult(**(fields | more))  # type: ignore[arg-type] # the fields are those of CheckResult


CHECK_RESULTS = Results(
    image="sha256:ab",
    target="api",
    seconds=2.5,
    checks=(
        check_result(
            "absent::tool_is_absent[gcc]", "fail", found=("/usr/bin/gcc", "\x00 <gcc>"), fix="use another base"
        ),
        check_result("absent::tool_is_absent[uv]", "pass"),
        check_result("device::kernel_runs", "not verified", "device", reason="no GPU"),
        check_result("contents::torch_is_cuda", "not applicable", reason="no torch"),
        check_result("application::it_starts", "error", reason="docker went away"),
    ),
)
"""One check of each outcome."""


def markdown_rows(text: str) -> list[list[str]]:
    """Splits the tables in *text* as a Markdown renderer does: an escaped bar is no border."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def terminal_text(renderable: RenderableType) -> str:
    """Returns the text that a terminal of 200 columns shows."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def render_in_browser(browser: str, path: Path, *options: str) -> tuple[str, str]:
    """Returns the document at *path* after its scripts ran, and the log of the browser."""
    completed = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=8000",
            f"--user-data-dir={path.parent / 'profile'}",
            *options,
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return completed.stdout, completed.stderr
