"""The current request: its id, stages and headers."""

from __future__ import annotations

from service.current_request import note_header, note_stage, request_context, request_id


def test_outside_of_a_request_nothing_is_noted() -> None:
    note_stage("queue", 1.0)
    note_header("x-extra", "1")
    assert request_id() == ""


def test_stages_add_up_and_headers_are_those_of_the_response() -> None:
    with request_context("abc") as request:
        note_stage("queue", 0.5)
        note_stage("queue", 0.25)
        note_header("x-extra", "1")
        assert request_id() == "abc"
    assert request.stages == {"queue": 0.75}
    headers = dict(request.response_headers(2.0))
    assert headers == {
        b"x-request-id": b"abc",
        b"server-timing": b"queue;dur=750.00, total;dur=2000.00",
        b"x-extra": b"1",
    }


def test_contexts_nest() -> None:
    with request_context("outer"):
        with request_context("inner"):
            assert request_id() == "inner"
        assert request_id() == "outer"
