"""From a name on the command line to a report."""

import json
from pathlib import Path

import pytest

from buildkit.check.budget import BudgetReport, BudgetResult
from buildkit.diff.diff import compare
from buildkit.errors import UsageError
from buildkit.image.model import save
from buildkit.jsonfile import InvalidFile
from buildkit.report.render import FORMATS, load_measurement, render
from tests.support.images import LayerMaker, make_image, oci_files, write_folder

VERDICT = BudgetReport("example", (BudgetResult("layers", "passed", 3, 1, "layers is 1"),))
STARTS = {"json": "{", "markdown": "## ", "html": "<!DOCTYPE html>", "junit": "<?xml", "sarif": "{"}


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> str:
    return str(write_folder(oci_files(make_image([LayerMaker().file("a", "1").tar()])), tmp_path / "image"))


def test_an_image_and_its_saved_measurement_are_the_same(image: str, tmp_path: Path) -> None:
    measurement = load_measurement(image, cache=tmp_path / "cache")
    path = tmp_path / "saved.json"
    save(measurement, path)
    assert load_measurement(str(path)) == measurement
    path.write_text("{}")
    with pytest.raises(InvalidFile):
        load_measurement(str(path))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_rendered(image: str, kind: str) -> None:
    measurement = load_measurement(image)
    (chosen,) = [each for each in FORMATS if each == kind]
    comparison = compare(measurement, measurement)
    for text in (
        render(chosen, measurement, verdict=VERDICT),
        render(chosen, measurement, comparison=comparison, verdict=VERDICT),
    ):
        assert text.startswith(STARTS[kind])


def test_the_json_of_a_comparison_is_the_comparison(image: str) -> None:
    measurement = load_measurement(image)
    assert "transfer_bytes" in json.loads(render("json", measurement, comparison=compare(measurement, measurement)))
    assert "totals" in json.loads(render("json", measurement))


def test_markdown_shows_budgets_where_they_were_judged(image: str) -> None:
    measurement = load_measurement(image)
    assert "### Budgets" in render("markdown", measurement, verdict=VERDICT)
    assert "### Budgets" not in render("markdown", measurement)


@pytest.mark.parametrize("kind", ["junit", "sarif"])
def test_formats_of_findings_need_a_verdict(image: str, kind: str) -> None:
    (chosen,) = [each for each in FORMATS if each == kind]
    with pytest.raises(UsageError):
        render(chosen, load_measurement(image))
