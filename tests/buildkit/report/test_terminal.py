from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit.check.verify import VerifyResult
from buildkit.diff.diff import compare
from buildkit.diff.model import PackageChange
from buildkit.report.terminal import (
    budget_table,
    check_table,
    comparison_tables,
    measurement_tables,
    timings_tables,
)
from buildkit.timing.record import Skipped
from tests.buildkit.timing.test_record import BUILDS, timings
from tests.support.reports import BUDGETS, CHECK_RESULTS, check_result, terminal_text

if TYPE_CHECKING:
    from buildkit.diff.model import Comparison
    from buildkit.image.model import Measurement


def test_measurement_shows_names_that_rich_would_interpret(after: Measurement, odd_name: str) -> None:
    text = terminal_text(measurement_tables(after))

    assert f"RUN {odd_name} 1" in text
    assert re.search(r"overwritten +1: RUN", text)


def test_measurement_without_waste_says_so(before: Measurement) -> None:
    assert "No wasted bytes." in terminal_text(measurement_tables(before))


def test_comparison_shows_changes_and_bytes_to_fetch(comparison: Comparison, odd_name: str) -> None:
    text = terminal_text(comparison_tables(comparison, before="phase1", after="api"))

    assert "-70.4 kB" in text
    assert odd_name in text
    assert "Files that changed: " in text
    assert "To fetch: " in text


def test_packages_beyond_the_limit_are_counted(comparison: Comparison) -> None:
    change = PackageChange("python", "web", "grown", "1.0", "1.1", 1, 2)
    many = replace(comparison, packages=(change,) * 23)

    assert "3 more" in terminal_text(comparison_tables(many))
    assert "No package changed." in terminal_text(comparison_tables(replace(comparison, packages=())))


def test_comparison_of_identical_images_says_so(before: Measurement) -> None:
    assert "identical" in terminal_text(comparison_tables(compare(before, before)))


def test_budgets_show_every_status() -> None:
    text = terminal_text(budget_table(BUDGETS))

    assert all(status in text for status in ("passed", "failed", "waived", "not evaluated"))


def test_timings_show_ratio_phases_and_skipped_builds() -> None:
    series = replace(timings(*BUILDS), skipped=(Skipped("phase1", "dependency", 1, "no room"),))
    text = terminal_text(timings_tables(series))

    assert re.search(r"cold +api +40\.0 +30\.0 50\.0 +0\.50", text)
    assert "1/3" in text  # steps from the cache
    assert "not timed: phase1, dependency, run 1: no room" in text


def test_checks_show_findings_fixes_and_reasons() -> None:
    failed = check_result(
        "a::b", "fail", found=tuple(f"/usr/bin/gcc-{number}" for number in range(9)), fix="use another base"
    )
    results = replace(CHECK_RESULTS, checks=(failed, *CHECK_RESULTS.checks[1:]))
    text = terminal_text(check_table(VerifyResult(results, frozenset(), Path("verify.json"), Path("verify.xml"))))

    for words in ("Claim of a::b", "/usr/bin/gcc-0", "and 4 more", "fix: use another base", "NOT VERIFIED", "no GPU"):
        assert words in text
    assert "1 pass, 1 fail, 1 error, 1 not verified, 1 not applicable" in text
