"""Stores measurements of a series over time, one file each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from buildkit.image.history import append, load_series
from buildkit.image.model import load
from buildkit.jsonfile import InvalidFile
from tests.support.images import LayerMaker, measure_layers

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.image.model import Measurement

MOMENT = datetime(2026, 11, 24, 10, 0, 0, tzinfo=UTC)


@pytest.fixture
def measurement(tmp_path: Path) -> Measurement:
    return measure_layers(tmp_path, LayerMaker().file("a", "1"))


def test_series_is_loaded_in_order_of_time(measurement: Measurement, tmp_path: Path) -> None:
    folder = tmp_path / "history"
    later = append(measurement, folder, series="api", measured_at=MOMENT + timedelta(days=1))
    append(measurement, folder, series="api", measured_at=MOMENT)

    found = load_series(folder, "api")

    assert [each.measured_at for each in found] == ["2026-11-24T10:00:00+00:00", "2026-11-25T10:00:00+00:00"]
    assert all(each.files is None for each in found)
    assert found[1] == load(later)


def test_series_has_no_measurements_of_another(measurement: Measurement, tmp_path: Path) -> None:
    append(measurement, tmp_path, series="api", measured_at=MOMENT)
    append(measurement, tmp_path, series="registry.test:5000/other:1", measured_at=MOMENT)

    assert len(load_series(tmp_path, "registry.test:5000/other:1")) == 1
    assert load_series(tmp_path, "unknown") == ()


def test_series_never_leaves_its_folder(measurement: Measurement, tmp_path: Path) -> None:
    path = append(measurement, tmp_path / "history", series="../../etc/passwd", measured_at=MOMENT)

    assert path.resolve().is_relative_to(tmp_path / "history")


def test_file_that_is_not_a_measurement_is_named(measurement: Measurement, tmp_path: Path) -> None:
    path = append(measurement, tmp_path, series="api", measured_at=MOMENT)
    path.write_text("{}")

    with pytest.raises(InvalidFile, match=path.name):
        load_series(tmp_path, "api")
