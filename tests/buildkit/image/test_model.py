"""Saves and loads measurements, and checks them against the published schema."""

import json
from pathlib import Path

import jsonschema
import pytest

from buildkit.image import model
from buildkit.image.model import Measurement, load, save, schema
from buildkit.jsonfile import InvalidFile
from tests.support.images import LayerMaker, measure_layers

SCHEMA = Path(model.__file__).with_name("measurement.schema.json")


@pytest.fixture
def measurement(tmp_path: Path) -> Measurement:
    lower = LayerMaker().file("a", "1" * 9).file("lib/libnccl.so.2", "x").file("b/libnccl.so.2", "x")
    return measure_layers(tmp_path, lower, LayerMaker().file("a", "22").symlink("link", "a"))


def test_saved_measurement_is_loaded_and_fits_the_schema(measurement: Measurement, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "measurement.json"
    for form in (measurement, measurement.without_files()):
        save(form, path)
        assert load(path) == form
        jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(path.read_text()))


def test_published_schema_is_current() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert json.loads(SCHEMA.read_text()) == schema()


def test_older_measurement_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"schema_version": 1, "taken": null}')
    with pytest.raises(InvalidFile) as raised:
        load(path)
    assert str(raised.value) == (
        f"cannot read {path}: schema version 1, but this program reads version 2; measure the image again"
    )


def test_other_json_is_not_a_measurement(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"schema_version": 2}')
    with pytest.raises(InvalidFile, match="not a measurement"):
        load(path)


def test_renamed_measurement_differs_in_its_name_only(measurement: Measurement) -> None:
    renamed = measurement.renamed("api:latest")
    assert renamed.image.name == "api:latest"
    assert renamed.renamed(measurement.image.name) == measurement
