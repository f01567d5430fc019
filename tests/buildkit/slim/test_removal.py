"""Slims trees with rules that leave placeholders, once and again."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from buildkit.slim.placeholders.kinds import is_placeholder_file
from buildkit.slim.rules.options import SlimOptions
from buildkit.slim.rules.rule_sets import choose_rules
from buildkit.slim.slim import slim_tree
from tests.support.elf import LibrarySpec
from tests.support.installed import SITE, install, snapshot, untrue_rows

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("gcc")
CUDNN, MODELS = choose_rules("cudnn-engines,other-models")
ENGINES = "nvidia/cudnn/lib/libcudnn_engines_precompiled.so.9"
OPTIONS = SlimOptions(rules=(CUDNN, MODELS), strips=True)
CLIP = b"from x import y\n\n__all__ = [\n    'CLIPModel',\n    \"CLIPTextModel\",\n]\n"


def plant(root: Path) -> Path:
    install(root, "cudnn", {ENGINES: LibrarySpec().build(), "nvidia/cudnn/lib/libcudnn.so.9": LibrarySpec().build()})
    install(
        root,
        "transformers",
        {
            "transformers/models/clip/__init__.py": b"",
            "transformers/models/clip/convert_clip.py": b"",
            "transformers/models/clip/image_processing_clip.py": b'__all__ = ["CLIPImageProcessor"]\n',
            "transformers/models/clip/configuration_clip.py": b'__all__ = ["CLIPConfig"]\n',
            "transformers/models/clip/modeling_clip.py": CLIP,
            "transformers/models/clip/__pycache__/configuration_clip.cpython-313.pyc": b"old",
            "transformers/models/bert/modeling_bert.py": b'__all__ = ["BertModel"]\n',
        },
    )
    return root


def test_slim_tree_leaves_and_records_placeholders(tmp_path: Path) -> None:
    root = plant(tmp_path / "venv")
    before = snapshot(root)

    result = slim_tree(root, OPTIONS, manifest_path=tmp_path / "slim.json")

    after = snapshot(root)
    clip = f"{SITE}/transformers/models/clip"
    placeholders = {change.path for change in result.changes if change.is_placeholder}
    assert placeholders == {f"{SITE}/{ENGINES}", f"{clip}/configuration_clip.py"}
    assert before.keys() - after.keys() == {
        f"{clip}/{name}"
        for name in (
            "convert_clip.py", "image_processing_clip.py", "modeling_clip.py",
            "__pycache__/configuration_clip.cpython-313.pyc",
        )
    }  # fmt: skip
    removed = {removal.rule: set(removal.removed) for removal in result.removals}
    assert removed["cudnn-engines"] == {f"{SITE}/{ENGINES}"}
    assert f"{clip}/configuration_clip.py" in removed["other-models"]
    assert untrue_rows(root) == []
    assert result.refusals == ()
    assert result.bytes_before == sum(map(len, before.values()))
    assert result.bytes_after == sum(map(len, after.values()))


def test_slim_tree_second_run_keeps_placeholders(tmp_path: Path) -> None:
    root, manifest = plant(tmp_path / "venv"), tmp_path / "slim.json"
    slim_tree(root, OPTIONS, manifest_path=manifest)
    once, recorded = snapshot(root), manifest.read_bytes()

    slim_tree(root, OPTIONS, manifest_path=manifest)
    assert snapshot(root) == once
    assert manifest.read_bytes() == recorded

    slim_tree(
        root, dataclasses.replace(OPTIONS, rules=()), manifest_path=manifest
    )  # without the rules of the first run
    assert snapshot(root) == once
    assert manifest.read_bytes() == recorded


def test_slim_tree_placeholder_for_stripped_library_is_removal(tmp_path: Path) -> None:
    """The service reads in the manifest whether cuDNN's libraries were removed."""
    root, manifest = tmp_path / "venv", tmp_path / "slim.json"
    install(root, "cudnn", {ENGINES: LibrarySpec().build()})
    before = sum(map(len, snapshot(root).values()))
    first = slim_tree(root, SlimOptions(rules=(), strips=True), manifest_path=manifest)
    assert [change.steps for change in first.changes] == [("record",), ("strip",)]

    continued = slim_tree(root, OPTIONS, manifest_path=manifest)

    assert {removal.rule: set(removal.removed) for removal in continued.removals} == {CUDNN.name: {f"{SITE}/{ENGINES}"}}
    assert [change.steps for change in continued.changes] == [("record",), ("placeholder",)]
    assert untrue_rows(root) == []
    assert continued.bytes_before <= before  # the bytes of the strip are in no entry any more


def test_slim_tree_reinstalled_files_are_removed_again(tmp_path: Path) -> None:
    root, manifest = plant(tmp_path / "venv"), tmp_path / "slim.json"
    first = slim_tree(root, OPTIONS, manifest_path=manifest)
    plant(root)

    again = slim_tree(root, OPTIONS, manifest_path=manifest)

    assert is_placeholder_file(root / SITE / ENGINES)
    assert again == first
