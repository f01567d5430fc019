"""Budgets: every limit can fail, every mistake in one is named."""

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


def statuses(verdict: BudgetReport) -> dict[str, str]:
    return {judgement.budget: judgement.status for judgement in verdict.judgements}


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
def test_each_limit_is_the_last_value_that_passes(image: Measurement, name: str, measured_value: int) -> None:
    assert evaluate(image, Budgets({name: measured_value}), today=TODAY).is_fine
    (judgement,) = evaluate(image, Budgets({name: measured_value - 1}), today=TODAY).judgements
    assert (judgement.status, judgement.measured) == ("failed", measured_value)
    assert f"{name} is {measured_value:,}" in judgement.message


def test_efficiency_is_a_least(image: Measurement) -> None:
    assert evaluate(image, Budgets({"efficiency_fraction": 0.625}), today=TODAY).is_fine
    assert not evaluate(image, Budgets({"efficiency_fraction": 0.63}), today=TODAY).is_fine


def test_growth_is_judged_against_the_baseline(image: Measurement, tmp_path: Path) -> None:
    baseline = measure_layers(tmp_path / "old", LayerMaker().file("a", "x" * 800))
    limits = budgets("growth_fraction = { unpacked_bytes = 1.0, layers = 0.5, wasted_bytes = 9.0 }")
    verdict = evaluate(image, limits, today=TODAY, baseline=baseline)
    assert statuses(verdict) == {
        "growth_fraction.unpacked_bytes": "passed",
        "growth_fraction.layers": "failed",
        "growth_fraction.wasted_bytes": "failed",  # from nothing: no fraction of it allows 600
    }
    assert evaluate(image, limits, today=TODAY, baseline=image).is_fine


def test_what_was_not_measured_is_not_judged_and_does_not_pass(image: Measurement) -> None:
    limits = budgets("growth_fraction.layers = 0\ntransfer_bytes.code = '1 MB'\nbuild_seconds_ratio.cold = 0.3")
    verdict = evaluate(image, limits, today=TODAY)
    assert set(statuses(verdict).values()) == {"not judged"}
    assert verdict.is_fine
    verdict = evaluate(
        image, limits, today=TODAY, transfer_bytes={"code": 1_000_001}, build_seconds_ratio={"cold": 0.29}
    )
    assert statuses(verdict) == {
        "growth_fraction.layers": "not judged",
        "transfer_bytes.code": "failed",
        "build_seconds_ratio.cold": "passed",
    }


def test_a_waiver_holds_until_its_day_is_over(image: Measurement) -> None:
    limits = budgets('layers = 1\n[[waivers]]\nbudget = "layers"\nreason = "split soon"\nexpires = 2026-11-24')
    (judgement,) = evaluate(image, limits, today=TODAY).judgements
    assert judgement.status == "waived"
    assert "split soon" in judgement.message
    (judgement,) = evaluate(image, limits, today=TODAY + dt.timedelta(days=1)).judgements
    assert judgement.status == "failed"
    assert "expired on 2026-11-24" in judgement.message


def test_sizes_are_decimal_or_binary_as_they_say() -> None:
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
def test_mistakes_are_refused_with_their_place(text: str, field: str) -> None:
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


def test_a_dive_ci_file_is_read_and_judged_by_dives_figures(image: Measurement) -> None:
    limits = parse_dive_rules(DIVE)
    assert limits.limits == {"lowestEfficiency": 0.95, "highestWastedBytes": 20e6}
    assert statuses(evaluate(image, limits, today=TODAY)) == {
        "lowestEfficiency": "failed",
        "highestWastedBytes": "passed",
    }
    assert budgets("lowestEfficiency = 0.95").limits == {"lowestEfficiency": 0.95}


@pytest.mark.parametrize(
    "text",
    [
        "lowestEfficiency: 0.9",
        "rules:\n  unknownRule: 1",
        "rules:\n  lowestEfficiency: high",
        "rules:\n- a",
        "rules: {}",
    ],
)
def test_a_dive_ci_file_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_dive_rules(text)


def test_a_budget_for_a_scenario_that_is_not_timed_is_refused() -> None:
    with pytest.raises(UsageError, match="no scenario; one of cold-empty, cold") as caught:
        budgets("transfer_bytes.wram = '1 MB'")

    assert caught.value.field.endswith("transfer_bytes.wram")


def test_timed_builds_are_judged_without_an_image() -> None:
    limits = budgets(
        "layers = 3\ntransfer_bytes.code = '1 MB'\nbuild_seconds_ratio.cold = 0.3\ntransfer_bytes.torch = 1"
    )

    verdict = evaluate(
        None,
        limits.of_builds(),
        today=TODAY,
        transfer_bytes={"code": 1_000_001},
        build_seconds_ratio={"cold": 0.3},
        image="api",
    )

    assert verdict.image == "api"
    assert {each.budget: each.status for each in verdict.judgements} == {
        "transfer_bytes.code": "failed",
        "build_seconds_ratio.cold": "passed",
        "transfer_bytes.torch": "not judged",
    }
