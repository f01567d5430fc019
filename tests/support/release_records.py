"""Writes the records of build and verification that a release reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from buildkit.build.record import SCHEMA_VERSION
from checks.results import RESULTS_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["check_result", "write_records"]


def check_result(outcome: str, name: str = "one") -> dict[str, Any]:
    """Returns the result of a check as verify.json holds it."""
    return {"name": name, "title": "T.", "group": "g", "tier": "static", "outcome": outcome, "seconds": 0.1}


def write_records(
    folder: Path,
    *,
    built: str,
    verified: str = "",
    revision: str = "c" * 40,
    checks: Sequence[dict[str, Any]] = (check_result("pass"),),
) -> tuple[Path, Path]:
    """Writes image.json about the digest *built*, and verify.json about *verified* or the same; returns both paths."""
    build = {
        "schema_version": SCHEMA_VERSION,
        "target": "api",
        "digest": built,
        "tags": [],
        "arguments": {},
        "base": {},
        "labels": {"org.opencontainers.image.version": "1.2.3"},
        "lock_sha256": "",
        "revision": revision,
        "versions": {},
        "started": "",
        "seconds": 1.0,
        "steps": [],
    }
    results = {
        "image": verified or built,
        "target": "api",
        "seconds": 1.0,
        "checks": checks,
        "schema_version": RESULTS_VERSION,
    }
    (folder / "image.json").write_text(json.dumps(build))
    (folder / "verify.json").write_text(json.dumps(results))
    return folder / "image.json", folder / "verify.json"
