"""Measurements that are kept, one file each, so that the next ones can be held against them.

    FOLDER/SERIES/20261124T091200Z-0123456789ab.json

A series is what is measured again and again: a target, or any image by its name. The files are measurements in their
short form, which `measure` and `compare` take as well; the trend in the HTML page is drawn from them.
"""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from buildkit.image.model import Measurement, load, save

__all__ = ["keep", "series_in"]


def keep(measurement: Measurement, folder: Path, *, series: str, taken: datetime) -> Path:
    """Keep *measurement* in *folder*, as taken at that moment; returns its file."""
    moment = taken.astimezone(UTC)
    digest = (measurement.image.manifest_digest or measurement.image.config_digest).partition(":")[2]
    path = _folder(folder, series) / f"{moment:%Y%m%dT%H%M%SZ}-{digest[:12]}.json"
    save(replace(measurement.without_files(), taken=moment.isoformat(timespec="seconds")), path)
    return path


def series_in(folder: Path, series: str) -> tuple[Measurement, ...]:
    """Return the kept measurements of *series*, the oldest first; none where none was kept.

    Raises:
        InvalidFile: a file there is something else.
    """
    found = [load(path) for path in sorted(_folder(folder, series).glob("*.json"))]
    return tuple(sorted(found, key=lambda each: each.taken or ""))


def _folder(folder: Path, series: str) -> Path:
    """Return where a series is kept: its name, with what a file's name may not hold replaced."""
    return folder / (re.sub(r"[^A-Za-z0-9._-]+", "-", series).strip(".-") or "image")
