from __future__ import annotations

from pathlib import Path

import pytest

from buildkit.slim.rules import import_list
from buildkit.slim.rules.import_list import has_recorded_versions, imported_paths


@pytest.mark.parametrize(
    ("path", "is_recorded"),
    [
        ("torch-2.13.0.dist-info/METADATA", True),
        ("torch-2.13.1.dist-info/METADATA", False),
        ("Huggingface.Hub-1.0.dist-info/METADATA", False),
        ("mine-7.dist-info/METADATA", True),
        ("torch/vendored-1.dist-info/METADATA", True),
    ],
)
def test_has_recorded_versions_compares_distributions(path: str, is_recorded: bool) -> None:  # noqa: FBT001
    assert has_recorded_versions([path, "torch/__init__.py"]) == is_recorded


def test_imported_paths_are_the_listed_modules() -> None:
    lines = Path(import_list.__file__).with_name("imported.txt").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    listed = [line for line in lines if not line.startswith("#")]

    assert imported_paths() == set(listed)
    assert listed == sorted(listed)
    assert [comment.split(":")[0] for comment in comments] == ["# Made by record_imports.py", "# Recorded with"]
    assert {"torch/__init__.py", "transformers/__init__.py", "sentence_transformers/__init__.py"} < set(listed)
    assert not any(line.startswith(("networkx/", "service/")) for line in listed)
