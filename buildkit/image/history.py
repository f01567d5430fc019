"""Stores the measurements of an image over time, one file each, for the trend in the HTML page.

    FOLDER/SERIES/20261124T091200Z-0123456789ab.json

A series has the name of a build target, or of an image. The files are measurements without their lists of files;
`measure` and `compare` accept them too.
"""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from buildkit.image.model import Measurement, load, save

__all__ = ["append", "load_series"]


def append(measurement: Measurement, folder: Path, *, series: str, measured_at: datetime) -> Path:
    """Adds *measurement* to a series and returns the path of its file."""
    moment = measured_at.astimezone(UTC)
    digest = (measurement.image.manifest_digest or measurement.image.config_digest).partition(":")[2]
    path = _series_folder(folder, series) / f"{moment:%Y%m%dT%H%M%SZ}-{digest[:12]}.json"
    save(replace(measurement.without_files(), measured_at=moment.isoformat(timespec="seconds")), path)
    return path


def load_series(folder: Path, series: str) -> tuple[Measurement, ...]:
    """Returns the measurements of *series*, the oldest first; an unknown series is empty.

    Raises:
        InvalidFile: a file is not a measurement of this version.
    """
    found = [load(path) for path in sorted(_series_folder(folder, series).glob("*.json"))]
    return tuple(sorted(found, key=lambda each: each.measured_at or ""))


def _series_folder(folder: Path, series: str) -> Path:
    """Returns the folder of a series: its name, with characters that do not belong in a file name replaced."""
    return folder / (re.sub(r"[^A-Za-z0-9._-]+", "-", series).strip(".-") or "image")
