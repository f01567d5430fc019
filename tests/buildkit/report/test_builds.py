from __future__ import annotations

from dataclasses import replace

from buildkit.report import builds
from buildkit.timing.record import Skipped
from tests.buildkit.timing.test_record import BUILDS, timings

SERIES = replace(timings(*BUILDS), skipped=(Skipped("phase1", "dependency", 1, "no room"),))


def test_each_scenario_has_the_timeline_of_its_typical_build() -> None:
    titles = [each.title for each in builds.timelines_of(SERIES)]

    assert titles == ["api, cold, run 1: 30.0 s", "phase1, cold, run 1: 100.0 s", "api, code, run 1: 2.0 s"]


def test_circumstances_name_machine_engine_and_cache() -> None:
    text = builds.circumstances(SERIES)

    assert all(words in text for words in ("engine 26.1.5", "an engine of its own", "2 processors (EPYC)"))


def test_medians_have_the_targets_of_a_scenario_together() -> None:
    rows = builds.median_table(SERIES).rows

    assert rows[0][:5] == ("cold", "api", "40.0", "30.0 50.0", "0.50")
    assert [row[:2] for row in rows] == [("cold", "api"), ("cold", "phase1"), ("code", "api")]


def test_rest_is_the_time_outside_the_phases() -> None:
    typical = SERIES.typical("api", "cold")
    assert typical is not None
    rest = typical.seconds - sum(phase.seconds for phase in typical.phases)

    table = builds.phase_table(SERIES)

    assert rest > 0
    assert table.rows[0][table.headings.index("Rest")] == f"{rest:.2f}"


def test_slowest_steps_took_a_second_and_are_in_order() -> None:
    table = next(iter(builds.slowest_steps(SERIES)))

    assert table.caption == "api, cold"
    assert [row[3] for row in table.rows] == ["4.0", "3.0", "2.0"]


def test_every_build_has_a_row() -> None:
    assert len(builds.build_table(SERIES).rows) == len(BUILDS)


def test_builds_that_did_not_run_have_a_reason() -> None:
    assert builds.not_timed(SERIES) == ["phase1, dependency, run 1: no room"]
