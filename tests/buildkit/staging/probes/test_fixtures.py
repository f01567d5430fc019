from __future__ import annotations

from contextlib import closing

import pytest

from buildkit.staging.probes.client import Client, RequestTimedOut
from buildkit.staging.probes.fixtures import SENTENCES, cosine, store_sentences
from tests.support.http_server import Reply, Request, serve


def test_cosine_is_1_for_parallel_and_0_for_orthogonal_vectors() -> None:
    assert cosine([1.0, 0.0], [2.0, 0.0]) == pytest.approx(1.0)
    assert cosine([1.0, 0.0], [0.0, 3.0]) == 0.0
    assert cosine([0.0, 0.0], [1.0, 0.0]) == 0.0


def test_store_sentences_sends_each_once() -> None:
    received: list[bytes] = []

    def store(request: Request) -> Reply:
        received.append(request.body)
        return Reply(201)

    with serve(store) as base, closing(Client(base)) as client:
        store_sentences(client)

    assert len(set(received)) == len(received) == len(SENTENCES)


def test_store_sentences_reports_a_refusal() -> None:
    with (
        serve(lambda _: Reply(403, b"no scope")) as base,
        closing(Client(base)) as client,
        pytest.raises(RequestTimedOut, match="403 b'no scope'"),
    ):
        store_sentences(client)
