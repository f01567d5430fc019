"""Checks comparisons against the published schema."""

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from buildkit.diff import model
from buildkit.diff.diff import compare
from buildkit.diff.model import Comparison, schema
from tests.support.images import LayerMaker, measure_layers

SCHEMA = Path(model.__file__).with_name("comparison.schema.json")


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    before = measure_layers(tmp_path / "b", LayerMaker().file("a", "1"), LayerMaker().file("root/.cache/uv/x", "22"))
    return compare(before, measure_layers(tmp_path / "a", LayerMaker().file("a", "2")))


def test_published_schema_is_current_and_fits(comparison: Comparison) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert json.loads(SCHEMA.read_text()) == schema()
    jsonschema.Draft202012Validator(schema()).validate(json.loads(msgspec.json.encode(comparison)))


def test_figure_is_found_by_name(comparison: Comparison) -> None:
    figure = comparison.figure("layers")
    assert (figure.before, figure.after) == (2, 1)


def test_comparison_of_other_images_is_not_empty(comparison: Comparison, tmp_path: Path) -> None:
    image = measure_layers(tmp_path / "b", LayerMaker().file("a", "1"))
    assert not comparison.is_empty
    assert compare(image, image).is_empty
