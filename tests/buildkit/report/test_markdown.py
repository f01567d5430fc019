"""Reports as text: what readers and the tools of a CI see."""

import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console, RenderableType

from buildkit.check.budget import BudgetReport, BudgetResult
from buildkit.diff.diff import Comparison, compare
from buildkit.image.model import Measurement
from buildkit.report.findings import junit, sarif
from buildkit.report.markdown import (
    budget_markdown,
    comparison_markdown,
    measurement_markdown,
    removed_table,
    summary_table,
    to_json,
)
from buildkit.report.terminal import budget_table, comparison_tables, measurement_tables
from buildkit.text import format_byte_change, format_bytes
from tests.support.images import LayerMaker, measure_layers

SITE = "opt/venv/lib/python3.13/site-packages"
ODD = "we|ird`*<b>:x:"


def measured(folder: Path, *layers: LayerMaker) -> Measurement:
    return measure_layers(folder, *layers, instructions=[f"RUN {ODD} {n}" for n in range(len(layers))])


@pytest.fixture(name="before")
def _before(tmp_path: Path) -> Measurement:
    cuda = LayerMaker().file("usr/local/cuda/libcudart.so.12", "c" * 9000)
    cuda.file(f"{SITE}/nvidia/libcudart.so.12", "d" * 8000).file("root/.cache/uv/x", "u" * 53_600)
    return measured(tmp_path / "before", LayerMaker().file("a", "1" * 1000).file(ODD, "2" * 500), cuda)


@pytest.fixture(name="after")
def _after(tmp_path: Path) -> Measurement:
    return measured(
        tmp_path / "after", LayerMaker().file("a", "1" * 1000).file(ODD, "3" * 700), LayerMaker().file("a", "x")
    )


@pytest.fixture(name="comparison")
def _comparison(before: Measurement, after: Measurement) -> Comparison:
    return compare(before, after)


VERDICT = BudgetReport(
    "example:1",
    (
        BudgetResult("layers", "passed", 3, 2, "layers is 2"),
        BudgetResult("files", "failed", 1, 2, "files is 2 \x00 & <more>"),
        BudgetResult("packages", "waived", 1, 2, "waived until 2027: because"),
        BudgetResult("transfer_bytes.code", "not judged", 1, None, "nothing was measured"),
    ),
)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(7_930_000_000, "7.93 GB"), (53_600_000, "53.6 MB"), (980_000, "980.0 kB"), (999, "999 B"), (0, "0 B")],
)
def test_sizes_are_decimal_with_their_unit(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


def test_changes_have_a_sign() -> None:
    assert format_byte_change(2000, 500) == "-1.5 kB"
    assert format_byte_change(500, 2000) == "+1.5 kB"
    assert format_byte_change(5, 5) == "0 B"


def cells(table: str) -> list[list[str]]:
    """Split a Markdown table as a renderer does: an escaped bar is no border."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()
        if line.startswith("|")
    ]


def test_every_row_of_a_table_has_as_many_cells_as_its_head(before: Measurement, comparison: Comparison) -> None:
    for text in (measurement_markdown(before), comparison_markdown(comparison), budget_markdown(VERDICT)):
        for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            assert len({len(row) for row in cells(table)}) == 1, table


def test_a_measurement_names_totals_layers_waste_and_duplicates(after: Measurement, before: Measurement) -> None:
    text = measurement_markdown(after)
    assert "| Wasted | 1.0 kB |" in text
    assert "| overwritten | 1.0 kB | 1 | 0 | 1 |" in text
    assert re.search(r"^TOTAL +701 B$", text, flags=re.MULTILINE)
    assert "| libcudart.so (CUDA) | 8.0 kB |" in measurement_markdown(before)
    assert "No byte is stored and not seen." in measurement_markdown(before)


def test_the_summary_has_the_figures_of_the_before_after_report(comparison: Comparison) -> None:
    rows = {row[0]: row[1:] for row in cells(summary_table(comparison, before="phase1", after="api"))}
    assert rows["Metric"] == ["phase1", "api", "Change", "% change"]
    assert rows["Image size (files in all layers)"] == ["72.1 kB", "1.7 kB", "-70.4 kB", "-97.6%"]
    assert rows["Package managers and their caches"] == ["yes (53.6 kB)", "no", "-53.6 kB", "-100.0%"]
    assert rows["Layers"] == ["2", "2", "+0", "+0.0%"]


def test_removed_components_have_a_total(comparison: Comparison) -> None:
    rows = cells(removed_table(comparison))
    assert rows[2] == ["root/.cache/uv", "53.6 kB", "1", "package manager"]
    assert rows[-1][:3] == ["**Total**", "**70.6 kB**", "3"]


def test_identical_images_say_so(before: Measurement) -> None:
    assert "identical" in comparison_markdown(compare(before, before))


def test_short_forms_say_that_files_were_not_compared(before: Measurement, after: Measurement) -> None:
    assert "Files were not compared" in comparison_markdown(compare(before.without_files(), after))


def test_junit_passes_only_what_passed() -> None:
    root = ET.fromstring(junit(VERDICT))  # noqa: S314 (our own text)
    (suite,) = root
    assert {name: suite.attrib[name] for name in ("tests", "failures", "skipped", "errors")} == {
        "tests": "4",
        "failures": "1",
        "skipped": "2",
        "errors": "0",
    }
    assert [[child.tag for child in case] for case in suite] == [[], ["failure"], ["skipped"], ["skipped"]]
    assert "& <more>" in suite[1][0].attrib["message"]


def test_sarif_has_a_result_for_each_finding(before: Measurement, after: Measurement) -> None:
    for measurement, rules in (
        (before, ["budget", "budget", "cuda-twice"]),
        (after, ["budget", "budget", "wasted-bytes"]),
    ):
        (run,) = json.loads(sarif(VERDICT, measurement))["runs"]
        results = run["results"]
        assert [each["ruleId"] for each in results] == rules
        assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} >= set(rules)
        assert [each["level"] for each in results] == ["error", "note", "warning"]
        assert results[1]["suppressions"][0]["kind"] == "external"
        for each in results:
            assert each["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "docker/Dockerfile"
            assert each["message"]["text"]


def test_json_is_what_was_measured(before: Measurement) -> None:
    assert json.loads(to_json(before))["totals"]["unpacked_bytes"] == before.totals.unpacked_bytes


def printed(renderable: RenderableType) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_terminals_show_the_same_and_take_nothing_for_markup(
    before: Measurement, after: Measurement, comparison: Comparison
) -> None:
    assert ODD in printed(measurement_tables(after))
    text = printed(comparison_tables(comparison))
    assert "-70.4 kB" in text
    assert ODD in text
    assert "identical" in printed(comparison_tables(compare(before, before)))
    assert "not judged" in printed(budget_table(VERDICT))
