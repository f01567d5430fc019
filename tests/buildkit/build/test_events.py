from __future__ import annotations

import base64
import json

from buildkit.build.events import Events, shorten

STAGE = "sha256:aa"


def line(**event: object) -> str:
    return json.dumps(event)


def vertex(**fields: object) -> dict[str, object]:
    return {"digest": STAGE, "name": "[builder 2/3] RUN --mount=type=cache,target=/x  make", **fields}


def test_step_has_stage_instruction_and_seconds() -> None:
    events = Events()
    assert events.feed(line(vertexes=[vertex(started="2026-01-01T00:00:00.5Z")])) == []

    (step,) = events.feed(
        line(vertexes=[vertex(started="2026-01-01T00:00:00.5Z", completed="2026-01-01T00:00:02.123456789Z")])
    )

    assert (step.stage, step.instruction, step.seconds, step.cached) == ("builder", "RUN make", 1.623, False)


def test_object_on_many_lines_is_one_event() -> None:
    events = Events()
    text = json.dumps(
        {"vertexes": [vertex(started="2026-01-01T00:00:00Z", completed="2026-01-01T00:00:01Z")]}, indent=2
    )

    ended = [step for one in text.splitlines() for step in events.feed(one + "\n")]

    assert [step.instruction for step in ended] == ["RUN make"]


def test_cached_step_has_no_duration() -> None:
    events = Events()

    (step,) = events.feed(
        line(vertexes=[vertex(started="2026-01-01T00:00:00Z", completed="2026-01-01T00:00:05Z", cached=True)])
    )

    assert (step.cached, step.seconds) == (True, 0.0)


def test_failure_has_exit_code_and_the_last_40_lines() -> None:
    events = Events()
    log = "".join(f"line {number}\n" for number in range(100))
    for piece in (log[:333], log[333:]):  # a piece may end inside a line
        events.feed(line(logs=[{"vertex": STAGE, "data": base64.b64encode(piece.encode()).decode()}]))
    error = 'process "/bin/sh -c make" did not complete successfully: exit code: 2'
    events.feed(line(vertexes=[vertex(started="2026-01-01T00:00:00Z", completed="2026-01-01T00:00:01Z", error=error)]))

    failure = events.failure()

    assert failure is not None
    step, exit_code, tail = failure
    assert (step.stage, exit_code) == ("builder", 2)
    assert [f"line {number}" for number in range(61, 100)] == tail.splitlines()


def test_cancelled_step_is_not_the_failure() -> None:
    events = Events()
    cancelled = {"digest": "sha256:bb", "name": "[a 1/1] RUN x", "error": "context canceled"}
    events.feed(line(vertexes=[cancelled]))

    assert events.failure() is None


def test_lines_that_are_no_event_are_collected() -> None:
    events = Events()
    events.feed("ERROR: failed to connect\n")
    events.feed('{"vertexes": 3}\n')

    assert events.other_lines == ["ERROR: failed to connect", '{"vertexes": 3}']


def test_running_step_has_the_last_line_of_its_log() -> None:
    events = Events()
    events.feed(line(vertexes=[vertex(started="2026-01-01T00:00:00Z")]))
    events.feed(line(logs=[{"vertex": STAGE, "data": base64.b64encode(b"unpacking torch\n").decode()}]))

    ((step, seconds, detail),) = events.running

    assert step.stage == "builder"
    assert seconds > 0
    assert detail == "unpacking torch"


def test_parts_of_the_export_have_their_own_times() -> None:
    events = Events()
    part = {
        "id": "exporting layers",
        "vertex": STAGE,
        "started": "2026-01-01T00:00:00Z",
        "completed": "2026-01-01T00:00:03Z",
        "timestamp": "2026-01-01T00:00:03Z",
    }
    events.feed(line(statuses=[part]))
    name = {"name": "exporting to image"}
    (step,) = events.feed(
        line(vertexes=[vertex(started="2026-01-01T00:00:00Z", completed="2026-01-01T00:00:04Z") | name])
    )

    assert step.stage == "export"
    assert [(p.name, p.seconds) for p in step.parts] == [("exporting layers", 3.0)]


def test_shorten_removes_mounts() -> None:
    assert shorten("RUN --mount=type=bind,source=a,target=b     python3 x   --out y") == "RUN python3 x --out y"
