from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from buildkit.check.budget import BudgetReport
from buildkit.diff.diff import compare
from buildkit.image.gpu_code import GpuArchitecture, GpuCodeMeasurement, GpuLibrary
from buildkit.report.markdown import (
    budgets_markdown,
    checks_markdown,
    comparison_markdown,
    measurement_markdown,
    removed_markdown,
    summary_markdown,
    timings_markdown,
)
from buildkit.timing.record import Skipped
from tests.buildkit.timing.test_record import BUILDS, timings
from tests.support.reports import BUDGETS, CHECK_RESULTS, markdown_rows

if TYPE_CHECKING:
    from buildkit.diff.model import Comparison
    from buildkit.image.model import Measurement

HOSTILE = "<img src=x onerror=document.title='owned'> | `x`"
SERIES = replace(
    timings(*(replace(build, change=HOSTILE) for build in BUILDS)),
    skipped=(Skipped("phase1", "dependency", 1, "no room | at all"),),
)


def test_every_row_has_a_cell_for_each_heading(before: Measurement, comparison: Comparison) -> None:
    for text in (
        measurement_markdown(before),
        comparison_markdown(comparison, before="a|b", after="c"),
        budgets_markdown(BUDGETS),
        checks_markdown(CHECK_RESULTS),
        timings_markdown(SERIES),
    ):
        for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            assert len({len(row) for row in markdown_rows(table)}) == 1, table


def test_measurement_has_totals_layers_waste_and_duplicates(after: Measurement, before: Measurement) -> None:
    text = measurement_markdown(after)

    assert "| Wasted | 1.0 kB |" in text
    assert "| overwritten | 1.0 kB | 1 | 0 | 1: `RUN" in text
    assert re.search(r"^TOTAL +701 B$", text, flags=re.MULTILINE)
    assert "| libcudart.so (CUDA) | 8.0 kB |" in measurement_markdown(before)
    assert "No wasted bytes" in measurement_markdown(before)


def test_summary_has_the_figures_of_the_before_after_report(comparison: Comparison) -> None:
    rows = {row[0]: row[1:] for row in markdown_rows(summary_markdown(comparison, before="phase1", after="api"))}

    assert rows["Metric"] == ["phase1", "api", "Change", "% change"]
    assert rows["Image size (files in all layers)"] == ["72.1 kB", "1.7 kB", "-70.4 kB", "-97.6%"]
    assert rows["Package managers and their caches"] == ["yes (53.6 kB)", "no", "-53.6 kB", "-100.0%"]
    assert rows["Layers"] == ["2", "2", "+0", "+0.0%"]


def test_removed_components_have_a_total(comparison: Comparison) -> None:
    rows = markdown_rows(removed_markdown(comparison))

    assert rows[2] == ["root/.cache/uv", "53.6 kB", "1", "package manager"]
    assert rows[-1][:3] == ["**Total**", "**70.6 kB**", "3"]


def test_removed_components_beyond_the_limit_are_summed(comparison: Comparison) -> None:
    component = replace(comparison.removed[0], removed_bytes=1000, files=2)
    rows = markdown_rows(removed_markdown(replace(comparison, removed=(component,) * 22)))

    assert rows[-2][:3] == ["2 more", "2.0 kB", "4"]
    assert rows[-1][:3] == ["**Total**", "**22.0 kB**", "44"]


def test_comparison_of_identical_images_says_so(before: Measurement) -> None:
    assert "identical" in comparison_markdown(compare(before, before))


def test_comparison_without_files_says_so(before: Measurement, after: Measurement) -> None:
    assert "Files were not compared" in comparison_markdown(compare(before.without_files(), after))


def test_no_budgets_are_a_sentence() -> None:
    assert budgets_markdown(BudgetReport("a")) == "No budget is set.\n"


def test_checks_show_findings_and_count_the_others() -> None:
    text = checks_markdown(CHECK_RESULTS)

    assert "1 fail, 1 pass, 1 not verified, 1 not applicable, 1 error; 2.5 s" in text
    assert "Claim of absent::tool\\_is\\_absent\\[gcc\\] | FAIL | /usr/bin/gcc<br>" in text
    assert "NOT VERIFIED" in text
    assert "\\[uv\\]" not in text
    assert "\\<gcc\\>" in text


def test_timings_have_circumstances_and_skipped_builds() -> None:
    text = timings_markdown(SERIES, BUDGETS)

    assert "| cold | api | 40.0 | 30.0 50.0 | 0.50 |" in text
    assert "2 processors (EPYC)" in text
    assert "phase1, dependency, run 1: no room" in text
    assert "### Budgets" in text


def test_gpu_code_is_shown_by_architecture(before: Measurement) -> None:
    found = GpuCodeMeasurement(
        (GpuArchitecture("sm_90", 3456, 2),), (GpuLibrary("lib/liba.so", 0, None, 3456, {"sm_90": 3456}),), ()
    )
    text = measurement_markdown(replace(before, gpu_code=found))
    assert "| sm\\_90 | 3.5 kB | 2 |" in text
    assert "### GPU code" not in measurement_markdown(before)
