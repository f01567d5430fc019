from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from buildkit.image.packages import Package
from buildkit.report import tables
from buildkit.report.format import FIGURES
from buildkit.report.tables import Styled, table
from tests.support.reports import BUDGETS

if TYPE_CHECKING:
    from buildkit.diff.model import Comparison
    from buildkit.image.model import Measurement

SMALL = table("t", "T", ("a", "b", "c"), [("1", "2", "3"), ("4", "5", "6"), ("7", "8", "9")], numbers=(1, 2))


def test_select_keeps_order_and_number_columns() -> None:
    selected = SMALL.select("c", "a")

    assert selected.headings == ("c", "a")
    assert selected.rows[0] == ("3", "1")
    assert selected.numbers == {0}


def test_first_counts_the_other_rows() -> None:
    assert SMALL.first(3) == SMALL
    assert SMALL.first(1).rows == (("1", "2", "3"), ("2 more", "", ""))


def test_every_row_has_a_cell_for_each_heading(before: Measurement, after: Measurement, comparison: Comparison) -> None:
    names = ("old", "new")
    for each in (
        tables.layers(before),
        tables.tree(before),
        tables.packages(before),
        tables.largest_files(before),
        tables.waste(after),
        tables.duplicate_libraries(before),
        tables.duplicate_content(before),
        tables.trend([before, after]),
        tables.summary(comparison, *names),
        tables.concerns(comparison, *names),
        tables.layer_changes(comparison, *names),
        tables.removed(comparison),
        tables.package_changes(comparison, *names),
        tables.file_changes(comparison, *names),
        tables.budgets(BUDGETS),
    ):
        assert {len(row) for row in each.rows} <= {len(each.headings)}, each.name
        assert all(0 < number < len(each.headings) or each.name == "content-table" for number in each.numbers)


def test_packages_end_with_the_files_in_no_package(before: Measurement) -> None:
    assert tables.packages(before).rows[-1][0] == "in no package"


def test_packages_beyond_the_limit_are_counted(before: Measurement) -> None:
    packages = tuple(Package("python", name, "1", "", 0, 1, 1) for name in "abc")
    names = [row[0] for row in tables.packages(replace(before, packages=packages), limit=1).rows]

    assert names == ["a", "2 more", "in no package"]


def test_parts_of_site_packages_are_indented(before: Measurement) -> None:
    parts = [row[0] for row in tables.tree(before).rows]

    assert parts[0] == "site-packages"
    assert parts[1] == Styled("site-packages/nvidia", "indent")


def test_waste_names_the_layer_that_hides_it(after: Measurement) -> None:
    (row,) = tables.waste(after).rows

    assert row[:4] == ("overwritten", "1.0 kB", "1", "0")
    assert isinstance(row[4], Styled)
    assert row[4].prefix == "1: "


def test_instructions_are_short_unless_asked_for_in_full(after: Measurement) -> None:
    long = replace(after, layers=(replace(after.layers[0], instruction="RUN " + "x" * 200),))

    (short,), (full,) = tables.layers(long).rows, tables.layers(long, has_full_instructions=True).rows
    assert isinstance(short[1], Styled)
    assert isinstance(full[1], Styled)
    assert (len(short[1].text), len(full[1].text)) == (90, 204)


def test_summary_has_every_total(comparison: Comparison) -> None:
    assert [row[0] for row in tables.summary(comparison, "old", "new").rows] == list(FIGURES.values())


def test_concerns_are_those_of_either_image(comparison: Comparison) -> None:
    assert tables.concerns(comparison, "old", "new").rows == (
        ("Package managers and their caches", "yes (53.6 kB)", "no", "-53.6 kB", "-100.0%"),
    )


@pytest.mark.parametrize(("place", "status"), list(enumerate(["passed", "failed", "waived", "not evaluated"])))
def test_budget_has_the_style_of_its_status(place: int, status: str) -> None:
    cell = tables.budgets(BUDGETS).rows[place][1]

    assert isinstance(cell, Styled)
    assert cell.style == status
