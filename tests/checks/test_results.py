from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit import jsonfile
from checks.results import RESULTS_VERSION, Results
from tests.support.reports import CHECK_RESULTS

if TYPE_CHECKING:
    from pathlib import Path


def test_saved_results_are_loaded_unchanged(tmp_path: Path) -> None:
    CHECK_RESULTS.save(tmp_path / "verify.json")

    loaded = jsonfile.load(tmp_path / "verify.json", Results, version=RESULTS_VERSION, what="check results")
    assert loaded == CHECK_RESULTS
