"""Fake models without weights: their results depend on the words of the texts, and some words make them fail."""

from __future__ import annotations

import threading
import zlib
from typing import TYPE_CHECKING

from service.inference.types import DeviceLostError, DeviceMemoryError, Scores, TextTooLongError, TokenRow, Vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.inference.types import Input

DIMENSION = 384
LIMIT_TOKENS = 256
_SEPARATOR = 0


class FakeModel:
    """Tokenizes by spaces: a token is the hash of a word. The words poison, hungry and lost make a pass fail."""

    def __init__(self, name: str, dimension: int) -> None:
        self.name = name
        self.revision = "0" * 64
        self.dimension = dimension
        self.limit_tokens = LIMIT_TOKENS
        self.batch_tokens = 512
        self.pass_tokens = 32
        self.batches: list[int] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def prepare(self, inputs: Sequence[Input], *, truncate: bool) -> list[TokenRow]:
        rows = []
        for index, each in enumerate(inputs):
            texts = [each] if isinstance(each, str) else [part for part in each if isinstance(part, str)]
            ids: list[int] = []
            for text in texts:
                ids += [_token(word) for word in text.lower().split()] + [_SEPARATOR]
            if not texts:
                ids = [part for part in each if isinstance(part, int)]
            if len(ids) > LIMIT_TOKENS and not truncate:
                raise TextTooLongError(index, len(ids), LIMIT_TOKENS)
            rows.append(TokenRow(tuple(ids[:LIMIT_TOKENS]), (0,) * len(ids[:LIMIT_TOKENS])))
        return rows

    def run(self, rows: Sequence[TokenRow]) -> None:
        """Waits for `may_run`, then fails if a word says so."""
        self.batches.append(len(rows))
        assert self.may_run.wait(30)
        words = {token for row in rows for token in row.ids}
        if _token("lost") in words:
            raise DeviceLostError("the fake device is lost")
        if _token("hungry") in words and len(rows) > 1:
            raise DeviceMemoryError(f"{len(rows)} rows")
        if _token("poison") in words:
            raise ValueError("poisoned")


class FakeEmbedder(FakeModel):
    """Counts words: texts that share words are similar."""

    def __init__(self, name: str = "all-MiniLM-L6-v2") -> None:
        super().__init__(name, DIMENSION)

    def forward(self, rows: Sequence[TokenRow]) -> list[Vector]:
        self.run(rows)
        return [_bag(row) for row in rows]


class FakeEntailment(FakeModel):
    """Entailment if the texts share most words, contradiction if only one of them also has "not", otherwise neutral."""

    def __init__(self, name: str = "fake-nli") -> None:
        super().__init__(name, 3)

    def forward(self, rows: Sequence[TokenRow]) -> list[Scores]:
        self.run(rows)
        return [_judge(row) for row in rows]


def _judge(row: TokenRow) -> Scores:
    split = row.ids.index(_SEPARATOR)
    premise, hypothesis = set(row.ids[:split]), set(row.ids[split + 1 :]) - {_SEPARATOR}
    negation = _token("not")
    shared = len(premise & hypothesis) / max(1, len(hypothesis))
    if shared < 0.5:
        return Scores(0.05, 0.9, 0.05)
    if (negation in premise) != (negation in hypothesis):
        return Scores(0.02, 0.03, 0.95)
    return Scores(0.95, 0.03, 0.02)


def _bag(row: TokenRow) -> Vector:
    values = [0.0] * DIMENSION
    for token in row.ids:
        values[token % DIMENSION] += 1.0
    norm = sum(value * value for value in values) ** 0.5
    return Vector.of([value / norm for value in values])


def _token(word: str) -> int:
    return zlib.crc32(word.encode()) % 1_000_003 + 1
