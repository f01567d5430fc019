"""Reverses every embedding that the API returns as numbers. `crash.py` says how it is installed."""

from __future__ import annotations

import sys

if "serve" in sys.orig_argv:
    from service.inference.types import Vector

    correct = Vector.values

    def values(self: Vector) -> list[float]:
        return correct(self)[::-1]

    Vector.values = values  # type: ignore[method-assign] # the fault
