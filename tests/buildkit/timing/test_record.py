"""Timings: phases of BuildKit's steps, medians and ratios, the saved file and its schema."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from buildkit import jsonfile
from buildkit.build.events import Step, SubStep
from buildkit.timing import record as record_module
from buildkit.timing.record import (
    SCHEMA_VERSION,
    BuildTiming,
    Machine,
    Scenario,
    Timings,
    load,
    phases_of,
    save,
    schema,
    stages_of,
    steps_of,
    summaries_of,
)

MEASURED = Path(__file__).resolve().parents[3] / "docs" / "measured"
SCHEMA = Path(record_module.__file__).with_name("timings.schema.json")
BEGAN = 1000.0


def step(stage: str, instruction: str, start: float, seconds: float, *parts: SubStep, cached: bool = False) -> Step:
    return Step(
        stage=stage,
        instruction=instruction,
        started=BEGAN + start,
        seconds=seconds,
        cached=cached,
        error="",
        parts=parts,
    )


def part(name: str, start: float, seconds: float) -> SubStep:
    return SubStep(name=name, seconds=seconds, total=0, started=BEGAN + start)


STEPS = (
    step("internal", "load build definition from Dockerfile", 0.1, 0.1),
    step("context", "load metadata for base", 0.2, 0.1),
    step("internal", "load build context", 0.3, 0.5),
    step("base", "FROM base", 0.3, 0.0, cached=True),
    step("base", "RUN apt", 0.4, 2.0),
    step("torch", "RUN install", 1.4, 4.0),  # runs during the last second of the step above
    step(
        "export",
        "exporting to image",
        6.0,
        4.0,
        part("exporting layers", 6.0, 3.0),
        part("exporting manifest sha256:ab", 9.0, 0.1),
        part("unpacking to x", 9.5, 0.5),
    ),
    Step(stage="never", instruction="RUN x", started=None, seconds=0, cached=False, error="", parts=()),
)


def test_phases_count_concurrent_steps_once() -> None:
    phases = {phase.name: phase for phase in phases_of(STEPS, BEGAN)}

    assert {name: (phase.seconds, phase.steps) for name, phase in phases.items()} == {
        "context": (0.6, 2),
        "resolve": (0.1, 1),
        "steps": (5.0, 3),
        "export": (3.5, 1),
        "unpack": (0.5, 1),
    }
    assert phases["steps"].cached == 1
    assert phases["export"].start_seconds == 6.0
    assert all(phase.written_bytes is None for phase in phases.values())


def test_written_bytes_belong_to_the_phase_of_their_time() -> None:
    written = [(BEGAN, 100), (BEGAN + 5, 600), (BEGAN + 5.9, 700), (BEGAN + 9.4, 1700), (BEGAN + 10, 1750)]

    phases = {phase.name: phase.written_bytes for phase in phases_of(STEPS, BEGAN, written)}

    assert (phases["steps"], phases["export"], phases["unpack"]) == (500, 1000, 50)


def test_phase_that_never_ran_has_no_seconds_and_no_bytes() -> None:
    (unpack,) = [each for each in phases_of(STEPS[:2], BEGAN, [(BEGAN, 1)]) if each.name == "unpack"]

    assert (unpack.seconds, unpack.steps, unpack.written_bytes) == (0.0, 0, None)


def test_stages_are_those_of_the_dockerfile() -> None:
    assert [(each.stage, each.seconds, each.steps, each.cached) for each in stages_of(STEPS)] == [
        ("base", 2.0, 2, 1),
        ("torch", 4.0, 1, 0),
    ]


def test_steps_have_the_parts_of_the_export() -> None:
    steps = steps_of(STEPS, BEGAN)

    assert [each.instruction for each in steps if each.stage == "export"] == [
        "exporting layers",
        "exporting manifest",
        "unpacking to x",
    ]
    assert "RUN x" not in {each.instruction for each in steps}
    assert [each.start_seconds for each in steps] == sorted(each.start_seconds for each in steps)


def build(
    target: str, scenario: Scenario, seconds: float, *, run: int = 1, transfer_bytes: int | None = None
) -> BuildTiming:
    return BuildTiming(
        target=target,
        scenario=scenario,
        run=run,
        change="",
        layer_cache="warm",
        download_cache="warm",
        started="2026-11-24T10:00:00.000+00:00",
        load_average=1.0,
        seconds=seconds,
        digest="sha256:" + "a" * 64,
        written_bytes=None,
        transfer_bytes=transfer_bytes,
        phases=phases_of(STEPS, BEGAN),
        stages=stages_of(STEPS),
        steps=steps_of(STEPS, BEGAN),
    )


BUILDS = (
    build("api", "cold", 30, transfer_bytes=100),
    build("phase1", "cold", 100),
    build("api", "cold", 50, run=2, transfer_bytes=300),
    build("phase1", "cold", 60, run=2),
    build("api", "code", 2, transfer_bytes=7),
)


def timings(*builds: BuildTiming) -> Timings:
    return Timings(
        schema_version=SCHEMA_VERSION,
        started="2026-11-24T10:00:00+00:00",
        machine=Machine("Debian", "EPYC", 2, 24_000_000_000),
        versions={"engine": "26.1.5"},
        builder="an engine of its own",
        base_origin="debian",
        target="api",
        against="phase1",
        runs=2,
        summaries=summaries_of(builds, against="phase1"),
        builds=builds,
        skipped=(),
    )


def test_ratio_divides_medians_of_the_same_scenario() -> None:
    found = timings(*BUILDS)

    assert {(each.target, each.scenario): each.median_seconds for each in found.summaries} == {
        ("api", "cold"): 40,
        ("phase1", "cold"): 80,
        ("api", "code"): 2,
    }
    assert found.seconds_ratio("api") == {"cold": 0.5}  # phase1 has no code change to compare with
    assert found.seconds_ratio("phase1") == {}
    assert found.transfer_bytes("api") == {"cold": 200, "code": 7}
    assert found.transfer_bytes("phase1") == {}


def test_typical_build_is_nearest_to_the_median() -> None:
    found = timings(*BUILDS, build("api", "cold", 45, run=3))

    typical = found.typical("api", "cold")

    assert typical is not None
    assert typical.run == 3
    assert found.typical("api", "torch") is None


def test_saved_timings_load_equal_and_fit_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "timings.json"

    save(timings(*BUILDS), path)

    assert load(path) == timings(*BUILDS)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(path.read_text()))


@pytest.mark.parametrize("path", sorted(MEASURED.glob("times-*.json")), ids=lambda path: path.name)
def test_timings_of_the_documentation_load(path: Path) -> None:
    assert load(path).builds


def test_published_schema_is_current() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert json.loads(SCHEMA.read_text()) == schema()


def test_timings_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    save(replace(timings(), schema_version=9), path)

    with pytest.raises(jsonfile.InvalidFile, match="schema version 9, but this program reads version 2"):
        load(path)
