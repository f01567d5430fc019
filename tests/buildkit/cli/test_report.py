"""The options and exit codes of measure and compare."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from buildkit.timing import record
from tests.buildkit.timing.test_record import BUILDS, timings
from tests.support.images import LayerMaker, make_image, oci_files, write_folder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.buildkit.cli.conftest import RunCommand


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An OCI layout with two images, a:1 of one file and b:2 of three."""
    one = make_image([LayerMaker().file("a", "1").tar()])
    two = make_image([LayerMaker().file("a", "1").file("b", "2" * 5000).file("c", "3").tar()])
    files = oci_files(one, tag="a:1") | oci_files(two, tag="b:2")
    entries = [
        json.loads(oci_files(made, tag=tag)["index.json"])["manifests"][0] for made, tag in ((one, "a:1"), (two, "b:2"))
    ]
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return write_folder(files, tmp_path / "image")


def test_tag_chooses_an_image_of_an_archive(run: RunCommand, image: Path) -> None:
    ambiguous = run("measure", image)
    done = run("measure", image, "--tag", "b:2", "--format", "json")

    assert ambiguous.returncode != 0
    assert "a:1" in ambiguous.stderr
    assert done.returncode == 0
    assert json.loads(done.stdout)["totals"]["files"] == 3


def test_saved_measurements_have_the_names_of_their_files(run: RunCommand, image: Path, tmp_path: Path) -> None:
    before, after, other = (tmp_path / name for name in ("x/before.json", "after.json", "y/after.json"))
    for path, tag in ((before, "a:1"), (after, "b:2"), (other, "b:2")):
        assert run("measure", image, "--tag", tag, "--format", "json", "--output", path).returncode == 0

    assert run("compare", before, after, "--format", "markdown").stdout.startswith("## before and after\n")
    same = run("compare", after, other, "--format", "markdown").stdout.replace("\\_", "_")
    assert same.startswith(f"## {tmp_path}/after and {tmp_path}/y/after\n")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-entries", "2", "2 entries"),
        ("--max-layer-bytes", "4 kB", "4000 bytes"),
        ("--max-layer-bytes", "four", "--max-layer-bytes"),
    ],
)
def test_image_above_a_limit_is_refused(run: RunCommand, image: Path, option: str, value: str, message: str) -> None:
    done = run("measure", image, "--tag", "b:2", option, value)

    assert done.returncode in {2, 3}
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr
    assert done.stdout == ""


def test_kept_measurements_are_the_trend_of_the_page(run: RunCommand, image: Path, tmp_path: Path) -> None:
    words = ("measure", image, "--tag", "a:1", "--keep", "--history", tmp_path / "history")
    first = run(*words)
    page = run(*words, "--format", "html", "--output", tmp_path / "page.html")

    assert (first.returncode, page.returncode) == (0, 0)
    saved = [str(path) for path in (tmp_path / "history").rglob("*.json")]
    assert any(f"wrote {path}" in first.stderr for path in saved)
    text = (tmp_path / "page.html").read_text()
    assert 'data-chart="trend"' in text
    assert text.count('<th scope="row">2') >= len(saved)


def test_timed_builds_are_shown_and_evaluated_with_the_image(
    run: RunCommand, image: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    path = tmp_path / "timings.json"
    record.save(timings(*BUILDS), path)  # a code change with 7 bytes to fetch, and a ratio of 0.5
    words = ("measure", image, "--tag", "a:1", "--timings", path, "--budgets", "api", "--history", tmp_path / "history")

    fine = run(*words, "--format", "html", "--output", tmp_path / "page.html", project=pytestconfig.rootpath)
    slow = tmp_path / "slow.json"
    slow.write_text(path.read_text().replace('"ratio": 0.5', '"ratio": 0.9'))
    broken = run(*words[:5], slow, *words[6:], project=pytestconfig.rootpath)

    assert fine.returncode == 0, fine.stderr
    assert "api, cold, run 1: 30.0 s" in (tmp_path / "page.html").read_text()
    assert broken.returncode == 1
    assert "build_seconds_ratio.cold is 0.9000" in " ".join(broken.stdout.split())
    assert run(*words[:5], slow, *words[6:], "--exit-zero", project=pytestconfig.rootpath).returncode == 0
