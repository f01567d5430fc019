"""Generates corrupt files from an intact one, the same in every run."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["corrupt_copies"]


def corrupt_copies(
    intact: bytes, count: int, *, seed: int, places: Sequence[int], truncated_fraction: float = 0.1
) -> Iterator[bytearray]:
    """Yields copies with one to three changed bytes at some of these offsets; a fraction of them is truncated too."""
    chance = random.Random(seed)  # noqa: S311 - test data, not a secret
    for _ in range(count):
        content = bytearray(intact)
        for _ in range(chance.randint(1, 3)):
            content[chance.choice(places)] = chance.choice((0, 1, 8, 0x7F, 0xFF, chance.randrange(256)))
        if chance.random() < truncated_fraction:
            del content[chance.randrange(len(content)) :]
        yield content
