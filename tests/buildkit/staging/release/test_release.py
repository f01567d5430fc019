"""Runs every list of steps on a fake stack: order, effects, and failures and Ctrl-C at every step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from buildkit.errors import CommandFailed, ReleaseFailed, StackFailed
from buildkit.jsonfile import InvalidFile
from buildkit.staging.release import records
from buildkit.staging.release.records import Migrations
from buildkit.staging.release.release import FIRST_RELEASE, PUBLISH, REPLACE_BROKEN, UPDATE, stage
from tests.support.fake_stack import at_start_of, digest, interrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit.staging.release.records import Release
    from buildkit.staging.release.run import ReleaseRun
    from buildkit.staging.release.steps import Step
    from tests.support.fake_stack import FakeSite

FAULTS = {
    "verify record": "image inspect",
    "tag": "image tag",
    "push": "push",
    "deploy": "wait for proxy",
    "baseline": "prepare load",
    "migration plan": "plan",
    "migrate": "migrate",
    "canary": "smoke test inside",
    "sidecars": "wait for database",
    "rollout": "wait for api",
    "smoke test": "smoke test",
    "measure": "load report",
}
"""Step -> an operation of it that can fail after the step has made its change."""
NEEDS_ALL = ("first", "update", "broken")


def names(steps: tuple[Step[ReleaseRun], ...]) -> list[str]:
    return [step.name for step in steps]


def done(record: Release) -> list[str]:
    assert {step.outcome for step in record.steps} == {"done"}
    return [step.name for step in record.steps]


def last(site: FakeSite) -> Release:
    return records.load(site.state).releases[-1]


def break_step(site: FakeSite, step: str, error: BaseException) -> Callable[[str], None]:
    """Returns a log that has *step* stop with *error* once it starts."""

    def break_it() -> None:
        if step in names(PUBLISH):
            for command in [FAULTS[step], *[each for each in site.engine.answers if each.startswith(FAULTS[step])]]:
                site.engine.answers[command] = error
        else:
            site.faults[FAULTS[step]] = error

    return at_start_of(step, break_it)


def prepare(site: FakeSite, kind: str) -> tuple[Step[ReleaseRun], ...]:
    """Prepares *site* so that a release of image "b" needs every step of the list *kind*; returns the list."""
    if kind == "first":
        return FIRST_RELEASE
    stage(site.context("a"))
    site.calls.clear()
    site.lines.clear()
    site.code[site.image("b")] = "0002"
    site.sidecars = {**site.sidecars, "proxy": digest("proxy2")}
    site.answers = kind == "update"
    return UPDATE if kind == "update" else REPLACE_BROKEN


def test_lists_have_the_documented_steps() -> None:
    assert names(PUBLISH) == ["verify record", "tag", "push"]
    assert names(FIRST_RELEASE) == ["deploy", "smoke test", "measure"]
    assert names(UPDATE) == [
        "baseline",
        "migration plan",
        "migrate",
        "canary",
        "sidecars",
        "rollout",
        "smoke test",
        "measure",
    ]
    assert names(REPLACE_BROKEN) == names(UPDATE)[1:]
    assert set(FAULTS) == {*names(PUBLISH), *names(FIRST_RELEASE), *names(UPDATE)}


@pytest.mark.parametrize("kind", NEEDS_ALL)
def test_release_runs_its_list_in_order(site: FakeSite, kind: str) -> None:
    steps = prepare(site, kind)

    made = stage(site.context("b"))

    assert done(made) == names((*PUBLISH, *steps))
    assert last(site) == made
    assert (made.outcome, made.failed_step, made.reason) == ("serving", "", "")
    assert site.running["api"] == made.image == site.image("b")
    assert not site.has_canary
    assert not site.has_key


def test_first_release_deploys_everything_and_is_recorded(site: FakeSite) -> None:
    made = stage(site.context("a"))

    assert site.calls == [
        "deploy 61",
        "wait for database",
        "wait for migrate",
        "wait for api",
        "wait for proxy",
        "plan head",
        "smoke test",
        "prepare load",
        "scrape",
        "scrape",
        "load report",
    ]
    assert made.name == f"1.2.3-{'a':0<12}"
    assert made.migrations == Migrations(before=None, after="0001")
    assert made.bytes_sent == 3000
    assert made.counts["checks"] == 1
    assert made.counts["load_requests"] == 100
    assert made.metrics is not None
    assert made.settings == {"TRUTHGRAPH_RELEASE": made.name}
    assert made.sidecars == {
        "database": f"registry.test/truthgraph-postgres@{digest('pg')}",
        "proxy": f"registry.test/truthgraph-proxy@{digest('proxy')}",
    }


def test_update_of_code_alone_skips_migration_and_sidecars(serving: FakeSite) -> None:
    made = stage(serving.context("b"))

    assert [name for name in names(UPDATE) if name not in done(made)] == ["migrate", "sidecars"]
    assert made.migrations == Migrations(before="0001", after="0001")
    assert [each.outcome for each in records.load(serving.state).releases] == ["replaced", "serving"]


def test_update_tries_the_canary_before_the_rollout(serving: FakeSite) -> None:
    serving.code[serving.image("b")] = "0002"

    made = stage(serving.context("b"))

    work = [call for call in serving.calls if call not in {"prepare load", "scrape", "load report"}]
    assert work == [
        "start canary",
        "plan head",
        "migrate 0002",
        "wait for canary",
        "smoke test inside with vectors",
        "stop canary",
        "deploy 62",
        "wait for api",
        "smoke test with vectors",
    ]
    assert made.migrations == Migrations(before="0001", after="0002")


def test_update_of_sidecars_leaves_the_api_for_the_rollout(serving: FakeSite) -> None:
    serving.sidecars = {**serving.sidecars, "proxy": digest("proxy2")}

    stage(serving.context("b"))

    assert [call for call in serving.calls if call.startswith("deploy")] == ["deploy 61", "deploy 62"]
    assert serving.running["proxy"].endswith(digest("proxy2"))


def test_broken_release_is_replaced_without_a_baseline(serving: FakeSite) -> None:
    serving.answers = False

    made = stage(serving.context("b"))

    assert done(made) == [*names(PUBLISH), "migration plan", "canary", "rollout", "smoke test", "measure"]
    assert "smoke test inside" in serving.calls
    assert "the deployed release does not answer: it is replaced without a baseline" in serving.lines


def every_step() -> list[tuple[str, str]]:
    lists = {"first": FIRST_RELEASE, "update": UPDATE, "broken": REPLACE_BROKEN}
    return [(kind, name) for kind, steps in lists.items() for name in names((*PUBLISH, *steps))]


def check_undone(site: FakeSite, kind: str, step: str) -> None:
    """Checks that *site* is as it was before the release that stopped at *step*, and that the record says so."""
    assert not site.has_canary
    assert not site.has_key
    if kind == "first":
        assert site.running == {}
    else:
        assert site.running["api"] == site.image("a")
        assert site.schema == "0001"
        serving = records.load(site.state).serving
        assert serving is not None
        assert serving.image == site.image("a")
    history = records.load(site.state)
    if step in names(PUBLISH):
        assert len(history.releases) == (0 if kind == "first" else 1)
        return
    assert history.releases[-1].failed_step == step
    assert history.releases[-1].image == site.image("b")


@pytest.mark.parametrize(("kind", "step"), every_step())
def test_failure_at_any_step_is_undone_and_recorded(site: FakeSite, kind: str, step: str) -> None:
    prepare(site, kind)
    context = site.context("b", log=break_step(site, step, StackFailed("broken")))

    with pytest.raises(ReleaseFailed) as caught:
        stage(context)

    assert caught.value.step == step
    assert caught.value.reason == "broken"
    expected = "no release is serving, as before" if kind == "first" else f"1.2.3-{'a':0<12} is still serving"
    assert caught.value.serving.splitlines()[-1] == expected
    check_undone(site, kind, step)
    if step not in names(PUBLISH):
        record = last(site)
        assert (record.outcome, record.reason) == ("failed", "broken")
        assert [each.name for each in record.steps if each.outcome == "failed"] == [step]


@pytest.mark.parametrize(("kind", "step"), every_step())
def test_ctrl_c_within_any_step_is_undone_and_recorded(site: FakeSite, kind: str, step: str) -> None:
    prepare(site, kind)
    context = site.context("b", log=break_step(site, step, KeyboardInterrupt()))

    with pytest.raises(KeyboardInterrupt):
        stage(context)

    check_undone(site, kind, step)
    if step not in names(PUBLISH):
        assert (last(site).outcome, last(site).reason) == ("interrupted", "KeyboardInterrupt")


@pytest.mark.parametrize(("kind", "step"), every_step())
def test_ctrl_c_at_the_start_of_any_step_is_undone(site: FakeSite, kind: str, step: str) -> None:
    prepare(site, kind)

    with pytest.raises(KeyboardInterrupt):
        stage(site.context("b", log=at_start_of(step, interrupt)))

    check_undone(site, kind, step)


def test_undo_goes_backwards(serving: FakeSite) -> None:
    serving.code[serving.image("b")] = "0002"
    serving.faults["smoke test"] = StackFailed("wrong answer")

    with pytest.raises(ReleaseFailed) as caught:
        stage(serving.context("b"))

    undone = [(step.name, step.detail) for step in last(serving).steps if step.outcome == "undone"]
    assert undone == [
        ("rollout", f"{serving.image('a')} is serving again"),
        ("migrate", "the schema is at 0001 again"),
    ]
    assert caught.value.serving.splitlines()[:2] == [detail for _, detail in undone]


def test_rollout_that_swarm_rolled_back_is_not_deployed_again(
    serving: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def roll_back(site: FakeSite, operation: str, about: str = "") -> None:
        site.calls.append(operation)
        if operation == "wait for api" and site.running["api"] == site.image("b"):
            site.running["api"] = site.image("a")
            raise StackFailed("swarm rolled the update back")
        del about

    context = serving.context("b")
    monkeypatch.setattr(type(serving), "do", roll_back)

    with pytest.raises(ReleaseFailed, match="stopped at rollout: swarm rolled the update back"):
        stage(context)

    assert serving.calls.count("deploy") == 1


@pytest.mark.parametrize(
    ("fault", "step", "line"),
    [
        ("deploy", "rollout", "rollout could not be undone: broken"),
        ("migrate", "migrate", "migrate could not be undone: the schema stays at 0002: broken"),
    ],
)
def test_failed_undo_is_reported_and_recorded(serving: FakeSite, fault: str, step: str, line: str) -> None:
    """The message does not claim that the first release serves, because that is unknown."""
    serving.code[serving.image("b")] = "0002"

    faults = {"smoke test": StackFailed("wrong answer"), fault: StackFailed("broken")}

    with pytest.raises(ReleaseFailed) as caught:
        stage(serving.context("b", log=at_start_of("smoke test", lambda: serving.faults.update(faults))))

    assert caught.value.step == "smoke test"
    assert line in caught.value.serving
    assert caught.value.serving.endswith("not everything was undone: `nox -s stage-status` shows the serving release")
    assert [each.name for each in last(serving).steps if each.outcome == "undo failed"] == [step]


def test_second_ctrl_c_ends_the_undo_and_is_recorded(serving: FakeSite) -> None:
    faults = {"smoke test": KeyboardInterrupt(), "deploy": KeyboardInterrupt()}

    with pytest.raises(KeyboardInterrupt):
        stage(serving.context("b", log=at_start_of("smoke test", lambda: serving.faults.update(faults))))

    assert [each.name for each in last(serving).steps if each.outcome == "undo failed"] == ["rollout"]


def test_failed_smoke_test_stops_the_canary_and_the_release(serving: FakeSite) -> None:
    context = serving.context("b")
    serving.wrong = "another vector"

    with pytest.raises(ReleaseFailed, match="stopped at canary: embeds: another vector"):
        stage(context)

    assert not serving.has_canary
    assert not [call for call in serving.calls if call.startswith("deploy")]


@pytest.mark.parametrize(
    ("wrong", "retried", "reason"),
    [
        (2, 0, "under load: 2 wrong responses"),
        (0, 3, "3 of 100 requests had to be retried, allowed 2.0%"),
    ],
)
def test_rollout_with_wrong_or_retried_requests_is_undone(
    serving: FakeSite, wrong: int, retried: int, reason: str
) -> None:
    context = serving.context("b")
    serving.report = replace(serving.report, wrong=wrong, retried=retried)

    with pytest.raises(ReleaseFailed, match=f"stopped at rollout: {reason}"):
        stage(context)

    assert serving.running["api"] == serving.image("a")


def test_first_release_with_a_bad_load_is_removed(site: FakeSite) -> None:
    site.report = replace(site.report, claims_lost=1)

    with pytest.raises(ReleaseFailed, match="stopped at measure: 1 lost claim"):
        stage(site.context("a"))

    assert site.running == {}
    assert last(site).metrics is not None


def test_code_older_than_the_schema_is_refused(serving: FakeSite) -> None:
    serving.schema = "0002"

    with pytest.raises(ReleaseFailed, match=r"stopped at migration plan: the schema is at 0002.*older \(0001\)"):
        stage(serving.context("b"))


def test_incompatible_migration_needs_allow_downtime(serving: FakeSite) -> None:
    serving.code[serving.image("b")] = "0002"
    serving.is_compatible = False

    with pytest.raises(ReleaseFailed, match=r"not name 0001 in `compatible_with`.*--allow-downtime"):
        stage(serving.context("b"))
    assert serving.schema == "0001"

    stage(serving.context("b", allow_downtime=True))
    assert serving.schema == "0002"


def test_canary_without_a_plan_fails_with_its_own_reason(serving: FakeSite) -> None:
    context = serving.context("b")
    serving.faults = {
        "plan": CommandFailed(["docker", "exec"], 1, "broken pipe"),
        "check canary": StackFailed("the canary ended: exit 7"),
    }

    with pytest.raises(ReleaseFailed, match="stopped at migration plan: the canary ended: exit 7") as caught:
        stage(context)
    assert caught.value.exit_code == 1


def test_error_of_the_engine_keeps_its_exit_code(serving: FakeSite) -> None:
    context = serving.context("b")
    serving.faults["wait for api"] = CommandFailed(["docker", "service", "inspect"], 1, "no engine")

    with pytest.raises(ReleaseFailed, match=r"(?s)stopped at rollout: .*no engine") as caught:
        stage(context)

    assert caught.value.exit_code == 3


def test_unreadable_history_stops_before_the_first_step(site: FakeSite) -> None:
    (site.state / "releases.json").write_text("{")
    context = site.context("a")

    with pytest.raises(InvalidFile):
        stage(context)

    assert site.lines == []
