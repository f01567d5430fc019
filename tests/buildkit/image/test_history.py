"""Kept measurements: a file each, in order of time, and apart by what was measured."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from buildkit.image.history import append, load_series
from buildkit.image.model import load
from buildkit.jsonfile import InvalidFile
from buildkit.report.render import render
from tests.support.images import LayerMaker, measure_layers

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.image.model import Measurement

MOMENT = datetime(2026, 11, 24, 10, 0, 0, tzinfo=UTC)


@pytest.fixture
def measurement(tmp_path: Path) -> Measurement:
    return measure_layers(tmp_path, LayerMaker().file("a", "1"))


def test_a_series_is_in_order_of_time_and_holds_no_other(measurement: Measurement, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    later = append(measurement, kept, series="api", measured_at=MOMENT + timedelta(days=1))
    append(measurement, kept, series="api", measured_at=MOMENT)
    append(measurement, kept, series="registry.test:5000/other:1", measured_at=MOMENT)

    found = load_series(kept, "api")

    assert [each.measured_at for each in found] == ["2026-11-24T10:00:00+00:00", "2026-11-25T10:00:00+00:00"]
    assert all(each.files is None for each in found)
    assert found[1] == load(later)  # a kept one is a measurement like any other
    assert len(load_series(kept, "registry.test:5000/other:1")) == 1
    assert load_series(kept, "never") == ()


def test_a_series_never_leaves_its_folder(measurement: Measurement, tmp_path: Path) -> None:
    path = append(measurement, tmp_path / "kept", series="../../etc/passwd", measured_at=MOMENT)

    assert path.is_relative_to(tmp_path / "kept")


def test_a_file_that_is_no_measurement_is_named(measurement: Measurement, tmp_path: Path) -> None:
    path = append(measurement, tmp_path, series="api", measured_at=MOMENT)
    path.write_text("{}")

    with pytest.raises(InvalidFile, match=path.name):
        load_series(tmp_path, "api")


def test_the_page_draws_the_trend_of_what_was_kept(measurement: Measurement, tmp_path: Path) -> None:
    for days in range(2):
        append(measurement, tmp_path, series="api", measured_at=MOMENT + timedelta(days=days))

    text = render("html", measurement, history=load_series(tmp_path, "api"))

    assert 'data-chart="trend"' in text
    assert "2026-11-25T10:00:00+00:00" in text
    assert 'data-chart="trend"' not in render("html", measurement)


def test_an_image_that_was_read_by_its_digest_is_shown_by_its_tag(measurement: Measurement) -> None:
    text = render("html", measurement.renamed("truthgraph-api:latest"))

    assert "<title>truthgraph-api:latest: what is in the image</title>" in text
    assert str(measurement.image.manifest_digest) in text
