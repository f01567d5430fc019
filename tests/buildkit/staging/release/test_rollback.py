"""Rolls back on a fake stack: order, changes of the schema, and failures and Ctrl-C at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from buildkit.errors import CommandFailed, ReleaseFailed, StackFailed
from buildkit.staging.release import records
from buildkit.staging.release.records import Migrations
from buildkit.staging.release.release import stage
from buildkit.staging.release.rollback import CHECKS, roll_back, rollback_steps
from tests.support.fake_stack import at_start_of, interrupt

if TYPE_CHECKING:
    from buildkit.staging.release.records import Release
    from tests.support.fake_stack import FakeSite

FAULTS = {
    "find release": "",
    "pull": "pull",
    "migration plan": "plan",
    "migrate": "migrate",
    "rollout": "wait for api",
}
A = f"1.2.3-{'a':0<12}"


@pytest.fixture
def newer(serving: FakeSite) -> FakeSite:
    """A site on which the release of image "b" serves, on schema 0002, after that of "a" on 0001."""
    serving.code[serving.image("b")] = "0002"
    stage(serving.context("b"))
    serving.calls.clear()
    serving.lines.clear()
    return serving


def last(site: FakeSite) -> Release:
    return records.load(site.state).releases[-1]


def outcomes(site: FakeSite) -> list[str]:
    return [each.outcome for each in records.load(site.state).releases]


def test_rollback_has_the_documented_steps() -> None:
    steps = [step.name for step in (*rollback_steps(None), *CHECKS)]

    assert steps == [
        "find release",
        "pull",
        "migration plan",
        "migrate",
        "rollout",
        "migrate",
        "smoke test",
        "measure",
    ]


def test_rollback_changes_code_first_if_it_is_compatible(newer: FakeSite) -> None:
    made = roll_back(newer.context("b"), None)

    assert newer.calls == [
        "start canary",
        "plan 0001",
        "stop canary",
        "deploy 61",
        "wait for api",
        "migrate 0001",
        "smoke test",
        "prepare load",
        "scrape",
        "scrape",
        "load report",
    ]
    assert [step.name for step in made.steps] == [
        "find release",
        "pull",
        "migration plan",
        "rollout",
        "migrate",
        "smoke test",
        "measure",
    ]
    assert (newer.running["api"], newer.schema) == (newer.image("a"), "0001")
    assert outcomes(newer) == ["replaced", "rolled back", "serving"]
    assert made.name == A
    assert made.migrations == Migrations(before="0002", after="0001")
    assert made.reason == ""
    assert not newer.has_key


def test_rollback_changes_the_schema_first_if_the_code_needs_it(newer: FakeSite) -> None:
    newer.is_compatible = False

    made = roll_back(newer.context("b"), A)

    assert [call for call in newer.calls if call.startswith(("deploy", "migrate"))] == ["migrate 0001", "deploy 61"]
    assert made.outcome == "serving"


def test_rollback_with_keep_schema_changes_the_code_only(newer: FakeSite) -> None:
    newer.data_loss = ("3 rows of claims",)

    made = roll_back(newer.context("b", keep_schema=True), None)

    assert (newer.running["api"], newer.schema) == (newer.image("a"), "0002")
    assert made.migrations == Migrations(before="0002", after="0002")


def test_rollback_without_a_schema_change_starts_no_canary(serving: FakeSite) -> None:
    stage(serving.context("b"))
    serving.calls.clear()

    roll_back(serving.context("b"), None)

    assert "start canary" not in serving.calls
    assert serving.running["api"] == serving.image("a")


def test_rollback_to_a_newer_release_migrates_up_first(newer: FakeSite) -> None:
    """Only the code of the newer release knows its migration."""
    roll_back(newer.context("b"), None)
    newer.calls.clear()

    made = roll_back(newer.context("a"), f"1.2.3-{'b':0<12}")

    assert [call for call in newer.calls if call.startswith(("deploy", "migrate"))] == ["migrate 0002", "deploy 62"]
    assert made.migrations == Migrations(before="0001", after="0002")


def test_rollback_asks_the_target_if_the_serving_code_has_no_plan(newer: FakeSite) -> None:
    newer.faults["plan"] = ReleaseFailed("this code does not know 0001")

    made = roll_back(newer.context("b"), None)

    assert newer.calls.count("start canary") == 2
    assert made.outcome == "serving"


@pytest.mark.parametrize("is_interrupted", [False, True])
@pytest.mark.parametrize("step", ["pull", "migration plan", "rollout", "migrate"])
def test_stop_at_any_step_is_undone_and_recorded(newer: FakeSite, step: str, *, is_interrupted: bool) -> None:
    error = KeyboardInterrupt() if is_interrupted else CommandFailed(["docker"], 1, "broken")
    context = newer.context("b")
    if step == "pull":
        newer.engine.answers["pull"] = error
    else:
        newer.faults[FAULTS[step]] = error

    with pytest.raises(KeyboardInterrupt if is_interrupted else ReleaseFailed):
        roll_back(context, None)

    assert (newer.running["api"], newer.schema) == (newer.image("b"), "0002")
    assert outcomes(newer) == ["replaced", "serving", "interrupted" if is_interrupted else "failed"]
    assert (last(newer).name, last(newer).failed_step) == (A, step)
    assert not newer.has_canary


@pytest.mark.parametrize("step", FAULTS)
def test_ctrl_c_at_the_start_of_any_step_is_undone(newer: FakeSite, step: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        roll_back(newer.context("b", log=at_start_of(step, interrupt)), None)

    assert (newer.running["api"], newer.schema) == (newer.image("b"), "0002")
    serving = records.load(newer.state).serving
    assert serving is not None
    assert serving.image == newer.image("b")


def test_problems_after_a_rollback_are_recorded_only(newer: FakeSite) -> None:
    context = newer.context("b")
    newer.wrong = "another vector"

    made = roll_back(context, None)

    assert made.reason == "stopped at smoke test: embeds: another vector"
    assert (made.outcome, newer.running["api"]) == ("serving", newer.image("a"))
    assert not newer.has_key


@pytest.mark.parametrize("step", ["smoke test", "measure"])
def test_ctrl_c_after_the_rollback_leaves_a_true_record(newer: FakeSite, step: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        roll_back(newer.context("b", log=at_start_of(step, interrupt)), None)

    assert newer.running["api"] == newer.image("a")
    assert (last(newer).name, last(newer).outcome) == (A, "serving")
    assert last(newer).reason == "interrupted before it was checked"
    assert not newer.has_key


def test_data_loss_refuses_the_rollback(newer: FakeSite) -> None:
    newer.data_loss = ("3 rows of claims",)

    with pytest.raises(
        ReleaseFailed, match="would lose data: 3 rows of claims; `-- --keep-schema` rolls back the code"
    ):
        roll_back(newer.context("b"), None)


def test_keep_schema_is_refused_if_the_older_code_needs_its_own(newer: FakeSite) -> None:
    newer.is_compatible = False

    with pytest.raises(ReleaseFailed, match="code of 0001 does not work on the schema 0002"):
        roll_back(newer.context("b", keep_schema=True), None)


def test_unknown_plan_names_every_reason(newer: FakeSite) -> None:
    newer.faults["start canary"] = StackFailed("the canary ended")

    newer.faults["plan"] = ReleaseFailed("this code does not know 0002")

    with pytest.raises(ReleaseFailed, match="the canary ended; this code does not know 0002"):
        roll_back(newer.context("b"), None)


def test_rollback_without_an_earlier_release_is_refused(serving: FakeSite) -> None:
    with pytest.raises(ReleaseFailed, match="stopped at find release: there is no earlier release"):
        roll_back(serving.context("a"), None)

    assert outcomes(serving) == ["serving"]


def test_rollback_to_the_serving_release_is_refused(serving: FakeSite) -> None:
    with pytest.raises(ReleaseFailed, match=f"{A} is serving already"):
        roll_back(serving.context("a"), A)


def test_rollback_to_an_unknown_release_is_a_usage_error(serving: FakeSite) -> None:
    with pytest.raises(ReleaseFailed, match="expected a release that has served") as caught:
        roll_back(serving.context("a"), "none-such")

    assert caught.value.exit_code == 2


def test_rollback_needs_a_deployed_stack(newer: FakeSite) -> None:
    newer.running.clear()

    with pytest.raises(ReleaseFailed, match="the stack does not run"):
        roll_back(newer.context("b"), None)


def test_rollback_needs_the_schema_of_the_target(newer: FakeSite) -> None:
    known = records.load(newer.state)
    first = structs.replace(known.releases[0], migrations=None)
    records.save(newer.state, records.Releases(releases=(first, *known.releases[1:])))

    with pytest.raises(ReleaseFailed, match="does not say which schema it worked on"):
        roll_back(newer.context("b"), None)
