from __future__ import annotations

from pathlib import Path

import pytest

from buildkit import jsonfile
from buildkit.build.record import SCHEMA_VERSION, BuildRecord, load_record, record_path
from buildkit.jsonfile import InvalidFile

RECORD = BuildRecord(
    schema_version=SCHEMA_VERSION,
    target="api",
    digest="sha256:" + "0" * 64,
    tags=("truthgraph-api:latest",),
    arguments={},
    base={},
    labels={},
    lock_sha256="",
    revision="unknown",
    versions={},
    started="2026-01-01T00:00:00.000+00:00",
    seconds=1.0,
    steps=(),
)


def test_record_of_the_default_target_is_image_json() -> None:
    assert record_path(Path("build"), "api") == Path("build/image.json")
    assert record_path(Path("build"), "single") == Path("build/image-single.json")


def test_saved_record_loads_equal(tmp_path: Path) -> None:
    jsonfile.save(RECORD, tmp_path / "image.json")

    assert load_record(tmp_path / "image.json") == RECORD


def test_record_of_another_version_is_refused_with_the_command(tmp_path: Path) -> None:
    path = tmp_path / "image.json"
    jsonfile.save(RECORD, path)
    path.write_text(path.read_text().replace(f'"schema_version":{SCHEMA_VERSION}', '"schema_version":1'))

    with pytest.raises(InvalidFile, match=r"schema version 1, .*; run `nox -s build-image` first"):
        load_record(path)
