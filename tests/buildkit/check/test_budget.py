import datetime as dt
import tomllib
from pathlib import Path

import pytest

from buildkit.check.budget import BudgetReport, Budgets, evaluate, parse_budgets, parse_dive_rules
from buildkit.errors import UsageError
from buildkit.image.model import Measurement
from tests.support.images import LayerMaker, measure_layers

TODAY = dt.date(2026, 11, 24)


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> Measurement:
    """1,600 bytes in two layers, 600 of them wasted."""
    lower = LayerMaker().file("a", "x" * 600).file("b", "y" * 400, mode=0o755)
    return measure_layers(tmp_path / "image", lower, LayerMaker().file("a", "z" * 600))


def budgets(text: str) -> Budgets:
    return parse_budgets(tomllib.loads(text))


def statuses(report: BudgetReport) -> dict[str, str]:
    return {result.budget: result.status for result in report.results}


@pytest.mark.parametrize(
    ("name", "measured_value"),
    [
        ("unpacked_bytes", 1600),
        ("final_bytes", 1000),
        ("wasted_bytes", 600),
        ("largest_layer_bytes", 1000),
        ("duplicate_bytes", 0),
        ("layers", 2),
        ("files", 2),
        ("packages", 0),
        ("executables", 1),
    ],
)
def test_limit_itself_passes_and_one_more_fails(image: Measurement, name: str, measured_value: int) -> None:
    assert evaluate(image, Budgets({name: measured_value}), today=TODAY).has_passed
    (result,) = evaluate(image, Budgets({name: measured_value - 1}), today=TODAY).results
    assert (result.status, result.measured) == ("failed", measured_value)
    assert f"{name} is {measured_value:,}" in result.message


def test_efficiency_is_a_minimum(image: Measurement) -> None:
    assert evaluate(image, Budgets({"efficiency_fraction": 0.625}), today=TODAY).has_passed
    assert not evaluate(image, Budgets({"efficiency_fraction": 0.63}), today=TODAY).has_passed


def test_growth_is_relative_to_the_baseline(image: Measurement, tmp_path: Path) -> None:
    baseline = measure_layers(tmp_path / "old", LayerMaker().file("a", "x" * 800))
    limits = budgets("growth_fraction = { unpacked_bytes = 1.0, layers = 0.5, wasted_bytes = 9.0 }")
    report = evaluate(image, limits, today=TODAY, baseline=baseline)
    assert statuses(report) == {
        "growth_fraction.unpacked_bytes": "passed",
        "growth_fraction.layers": "failed",
        "growth_fraction.wasted_bytes": "failed",  # from nothing: no fraction of it allows 600
    }
    assert evaluate(image, limits, today=TODAY, baseline=image).has_passed


def test_unmeasured_budget_is_not_evaluated(image: Measurement) -> None:
    limits = budgets("growth_fraction.layers = 0\ntransfer_bytes.code = '1 MB'\nbuild_seconds_ratio.cold = 0.3")
    report = evaluate(image, limits, today=TODAY)
    assert set(statuses(report).values()) == {"not evaluated"}
    assert report.has_passed
    report = evaluate(
        image, limits, today=TODAY, transfer_bytes={"code": 1_000_001}, build_seconds_ratio={"cold": 0.29}
    )
    assert statuses(report) == {
        "growth_fraction.layers": "not evaluated",
        "transfer_bytes.code": "failed",
        "build_seconds_ratio.cold": "passed",
    }


def test_waiver_holds_to_the_end_of_its_day(image: Measurement) -> None:
    limits = budgets('layers = 1\n[[waivers]]\nbudget = "layers"\nreason = "split soon"\nexpires = 2026-11-24')
    (result,) = evaluate(image, limits, today=TODAY).results
    assert result.status == "waived"
    assert "split soon" in result.message
    (result,) = evaluate(image, limits, today=TODAY + dt.timedelta(days=1)).results
    assert result.status == "failed"
    assert "expired on 2026-11-24" in result.message


def test_sizes_have_decimal_or_binary_units() -> None:
    limits = budgets("unpacked_bytes = '5.5 GB'\nblob_bytes = '2GiB'\nwasted_bytes = 7\nfinal_bytes = '12'").limits
    assert limits == {"unpacked_bytes": 5.5e9, "blob_bytes": 2 << 30, "wasted_bytes": 7, "final_bytes": 12}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("size = 1", "budgets.size"),
        ("growth_fraction = { size = 1 }", "budgets.growth_fraction.size"),
        ("growth_fraction = 1", "budgets.growth_fraction"),
        ("layers = true", "budgets.layers"),
        ("layers = -1", "budgets.layers"),
        ("layers = 'many'", "budgets.layers"),
        ("unpacked_bytes = '5 XB'", "budgets.unpacked_bytes"),
        ("layers = []", "budgets.layers"),
        ("waivers = 3", "budgets.waivers"),
        ("[[waivers]]\nbudget = 'layers'\nreason = 'x'\nexpires = 2030-01-01", "budgets.waivers"),
        ("layers = 1\n[[waivers]]\nbudget = 'layers'\nexpires = 2030-01-01", "budgets.waivers[0]"),
        ("layers = 1\n[[waivers]]\nbudget = 'layers'\nreason = ' '\nexpires = 2030-01-01", "budgets.waivers[0]"),
        ("layers = 1\n[[waivers]]\nbudget = 'layers'\nreason = 'x'", "budgets.waivers[0].expires"),
        ("layers = 1\n[[waivers]]\nbudget = 'layers'\nreason = 'x'\nexpires = 'soon'", "budgets.waivers[0].expires"),
        ("layers = 1\n[[waivers]]\nbudget = 'layers'\nreason = 'x'\nuntil = 1", "budgets.waivers[0].until"),
    ],
)
def test_invalid_budget_is_refused_by_its_name(text: str, field: str) -> None:
    with pytest.raises(UsageError) as raised:
        budgets(text)
    assert raised.value.field == field
    assert raised.value.exit_code == 2


DIVE = """\
# our rules
rules:
  lowestEfficiency: 0.95   # a comment
  highestWastedBytes: "20MB"
  highestUserWastedPercent: disabled
"""


def test_dive_rules_are_evaluated_with_the_figures_of_dive(image: Measurement) -> None:
    limits = parse_dive_rules(DIVE)
    assert limits.limits == {"lowestEfficiency": 0.95, "highestWastedBytes": 20e6}
    assert statuses(evaluate(image, limits, today=TODAY)) == {
        "lowestEfficiency": "failed",
        "highestWastedBytes": "passed",
    }
    assert budgets("lowestEfficiency = 0.95").limits == {"lowestEfficiency": 0.95}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("lowestEfficiency: 0.9", ".dive-ci:1"),
        ("rules:\n  unknownRule: 1", ".dive-ci:2"),
        ("rules:\n  lowestEfficiency: 1\n  highestWastedBytes: high", ".dive-ci:3"),
        ("rules:\n  lowestEfficiency: [1]", ".dive-ci:2"),
        ("rules:\n- a", ".dive-ci:2"),
        ("rules: 3", ".dive-ci:1"),
        ("rules:\n  a: 'b", ".dive-ci:2"),
        ("rules:\x00", ".dive-ci:1"),
        ("rules:\n  lowestEfficiency: 1\nlimits:\n  a: 1", ".dive-ci:1"),
    ],
)
def test_invalid_dive_rules_are_refused_by_line(text: str, field: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_dive_rules(text)

    assert raised.value.field == field


@pytest.mark.parametrize("text", ["", "---\n", "rules:\n", "rules: {}"])
def test_dive_rules_may_be_empty(text: str) -> None:
    assert parse_dive_rules(text).limits == {}


def test_budget_of_an_unknown_scenario_is_refused() -> None:
    with pytest.raises(UsageError, match="not a scenario; one of cold-empty, cold") as caught:
        budgets("transfer_bytes.wram = '1 MB'")

    assert caught.value.field.endswith("transfer_bytes.wram")


def test_budgets_of_builds_need_no_image() -> None:
    limits = budgets(
        "layers = 3\ntransfer_bytes.code = '1 MB'\nbuild_seconds_ratio.cold = 0.3\ntransfer_bytes.torch = 1"
    )

    report = evaluate(
        None,
        limits.of_builds(),
        today=TODAY,
        transfer_bytes={"code": 1_000_001},
        build_seconds_ratio={"cold": 0.3},
        image="api",
    )

    assert report.image == "api"
    assert {each.budget: each.status for each in report.results} == {
        "transfer_bytes.code": "failed",
        "build_seconds_ratio.cold": "passed",
        "transfer_bytes.torch": "not evaluated",
    }
