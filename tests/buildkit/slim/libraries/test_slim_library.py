"""Slims single libraries; trees of them are slimmed in test_slim.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit.binary import elf
from buildkit.binary import library as library_module
from buildkit.slim.libraries.slim_library import LibraryResult, slim_library
from buildkit.slim.placeholders.kinds import removal_message
from buildkit.slim.rules.options import SlimOptions
from tests.support.elf import EntrySpec, LibrarySpec, container

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = SlimOptions(rules=(), strips=True, targets=frozenset({90}))
CUBINS = container(*(EntrySpec(architecture=target, payload=bytes([target]) * 9000) for target in (80, 90)))


def plant(root: Path, content: bytes, path: str = "lib.so") -> str:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)
    return path


@pytest.mark.parametrize("is_atomic", [False, True])
def test_slim_library_maps_and_parses_each_content_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_atomic: bool
) -> None:
    path = plant(tmp_path, LibrarySpec(fatbin=[CUBINS]).build())
    parsed_bytes: list[int] = []
    real = elf.parse

    def parse(content: bytes) -> object:
        parsed_bytes.append(len(content))
        return real(content)

    monkeypatch.setattr(library_module, "parse", parse)

    result = slim_library(tmp_path, path, SlimOptions((), strips=True, targets=frozenset({90}), is_atomic=is_atomic))

    assert result.change is not None
    assert result.change.steps == ("prune", "strip")
    original, pruned, stripped = parsed_bytes
    assert original == result.change.bytes_before > pruned > stripped
    assert stripped == result.change.bytes_after


def test_slim_library_placeholder_is_unchanged(tmp_path: Path) -> None:
    content = LibrarySpec().build() + removal_message("lib.so", "rule", "a feature").encode()
    path = plant(tmp_path, content)

    assert slim_library(tmp_path, path, OPTIONS) == LibraryResult(None, ())
    assert (tmp_path / path).read_bytes() == content


def test_slim_library_unsupported_step_does_not_stop_the_next(tmp_path: Path) -> None:
    path = plant(tmp_path, LibrarySpec(fatbin=[CUBINS], unwrapped=1, gap_in_fatbin=b"tail").build())

    result = slim_library(tmp_path, path, OPTIONS, sha256_before="aa")

    assert [(refusal.step, refusal.reason) for refusal in result.refusals] == [("prune", "fatbin-truncated")]
    assert result.change is not None
    assert (result.change.steps, result.change.sha256_before) == (("strip",), "aa")


def test_slim_library_grafted_library_is_not_stripped(tmp_path: Path) -> None:
    path = plant(tmp_path, LibrarySpec().build(), "numpy.libs/libblas.so")

    assert slim_library(tmp_path, path, OPTIONS).change is None
