"""Conversions of vectors, and model slots."""

from __future__ import annotations

import base64
import struct

import pytest

from service.inference.types import Label, ModelSlot, ModelUnavailableError, Scores, Vector
from tests.service.fakes import FakeEmbedder

VECTOR = Vector.of([0.5, -0.25, 0.125])


def test_a_vector_converts_to_floats_base64_and_pgvector() -> None:
    assert VECTOR.values() == [0.5, -0.25, 0.125]
    assert base64.b64decode(VECTOR.base64()) == struct.pack("<3f", 0.5, -0.25, 0.125)
    assert VECTOR.pgvector() == "[0.5, -0.25, 0.125]"
    assert VECTOR.dimension == 3


def test_a_shortened_vector_has_unit_norm() -> None:
    shortened = VECTOR.shortened(2).values()
    assert len(shortened) == 2
    assert sum(value * value for value in shortened) == pytest.approx(1.0)


def test_the_label_of_scores_is_the_most_probable_one() -> None:
    scores = Scores(entailment=0.25, neutral=0.125, contradiction=0.625)
    assert (scores.label, scores.confidence) == (Label.CONTRADICTION, 0.625)


def test_a_slot_has_a_model_or_the_reason_why_not() -> None:
    slot: ModelSlot[Vector] = ModelSlot("embedding", "name")
    with pytest.raises(ModelUnavailableError, match="still loading"):
        slot.get()
    slot.fail("it is broken")
    with pytest.raises(ModelUnavailableError, match="the embedding model is not available: it is broken"):
        slot.get()
    model = FakeEmbedder()
    slot.fill(model)
    assert slot.get() is model
