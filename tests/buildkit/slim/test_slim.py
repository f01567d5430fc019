"""Slims a small tree: every step, the RECORD, the manifest, a second run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from buildkit.binary import elf
from buildkit.binary.elf import UnsupportedBinary
from buildkit.slim import manifest
from buildkit.slim.libraries import prune
from buildkit.slim.libraries.check import check_pruned
from buildkit.slim.rules.options import SlimOptions
from buildkit.slim.rules.rule_sets import choose_rules
from buildkit.slim.slim import slim_tree
from tests.support.elf import LibrarySpec, container, cubin, in_memory, mapped_bytes
from tests.support.installed import SITE, install, snapshot, untrue_rows

CORRUPT_FILES = 300
ROOT = Path(__file__).parents[3]


def plant(root: Path) -> Path:
    """Installs files of every kind that slimming changes, and some that it must not change."""
    library = LibrarySpec(
        fatbin=[container(cubin(80), cubin(90)), container(cubin(75))], relocatable=[container(cubin(90))]
    )
    install(
        root,
        "torch",
        {
            "torch/__init__.py": b"",
            "torch/lib/libtorch_cuda.so": library.build(),
            "torch/lib/libplain.so": LibrarySpec().build(),
            "torch/include/torch.h": b"#pragma once",
            "torch/tests/test_it.py": b"",
            "torch/lib/broken.so": b"\x7fELF" + bytes(100),
        },
    )
    install(root, "numpy", {"numpy.libs/libblas.so": LibrarySpec().build(), "numpy/tests/data.npy": b"1"})
    return root


EVERYTHING = SlimOptions(rules=choose_rules("runtime"), strips=True, targets=frozenset({90}))


def test_slim_tree_changes_exactly_the_recorded_files(tmp_path: Path) -> None:
    root = plant(tmp_path / "venv")
    before = snapshot(root)

    result = slim_tree(root, EVERYTHING)

    after = snapshot(root)
    removed = {path for removal in result.removals for path in removal.removed}
    changed = {change.path for change in result.changes}
    assert before.keys() - after.keys() == removed
    assert removed == {
        f"{SITE}/torch/include/torch.h",
        f"{SITE}/torch/tests/test_it.py",
        f"{SITE}/numpy/tests/data.npy",
    }
    assert {path for path in after if after[path] != before[path]} == changed
    assert {change.path: change.steps for change in result.changes} == {
        f"{SITE}/torch/lib/libtorch_cuda.so": ("prune", "strip"),
        f"{SITE}/torch/lib/libplain.so": ("strip",),
        f"{SITE}/torch-1.0.dist-info/RECORD": ("record",),
        f"{SITE}/numpy-1.0.dist-info/RECORD": ("record",),
    }
    assert untrue_rows(root) == []
    assert result.bytes_before == sum(map(len, before.values()))
    assert result.bytes_after == sum(map(len, after.values()))
    assert [(refusal.path, refusal.reason) for refusal in result.refusals] == [
        (f"{SITE}/torch/lib/broken.so", "elf-class"),
        (f"{SITE}/torch/lib/broken.so", "elf-class"),
    ]
    assert result.targets == ("9.0",)


def test_slim_tree_two_workers_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = plant(tmp_path / "one"), plant(tmp_path / "two")

    slim_tree(one, EVERYTHING, manifest_path=tmp_path / "one.json")
    slim_tree(two, EVERYTHING, manifest_path=tmp_path / "two.json", workers=2)

    assert snapshot(one) == snapshot(two)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_slim_tree_second_run_changes_nothing(tmp_path: Path) -> None:
    root = plant(tmp_path / "venv")
    path = root / "slim.json"
    slim_tree(root, EVERYTHING, manifest_path=path)
    before = snapshot(root)

    slim_tree(root, EVERYTHING, manifest_path=path)

    assert snapshot(root) == before


def test_slim_tree_manifest_inside_the_tree_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path / "venv")
    monkeypatch.chdir(root)

    first = slim_tree(root, EVERYTHING, manifest_path=Path("slim.json"))

    assert slim_tree(Path(), EVERYTHING, manifest_path=root / "slim.json") == first


def test_slim_tree_step_by_step_equals_one_run(tmp_path: Path) -> None:
    once, steps = plant(tmp_path / "once"), plant(tmp_path / "steps")
    slim_tree(once, EVERYTHING, manifest_path=tmp_path / "once.json")

    for choice in (
        SlimOptions(rules=(), strips=False, targets=frozenset({80, 90})),
        SlimOptions(rules=choose_rules("runtime"), strips=False),
        EVERYTHING,
    ):
        slim_tree(steps, choice, manifest_path=tmp_path / "steps.json")

    left, right = manifest.load(tmp_path / "once.json"), manifest.load(tmp_path / "steps.json")
    assert (left.bytes_before, left.removals, left.targets) == (right.bytes_before, right.removals, right.targets)
    assert {change.path: change.sha256_before for change in left.changes} == {
        change.path: change.sha256_before for change in right.changes
    }
    assert untrue_rows(steps) == []


def test_slim_tree_removed_target_raises(tmp_path: Path) -> None:
    root = plant(tmp_path / "venv")
    slim_tree(root, EVERYTHING, manifest_path=tmp_path / "slim.json")
    before = snapshot(root)

    with pytest.raises(manifest.TargetsAlreadyRemoved) as error:
        slim_tree(
            root, SlimOptions(rules=(), strips=False, targets=frozenset({80, 90})), manifest_path=tmp_path / "slim.json"
        )

    assert (error.value.targets, error.value.remaining) == (("8.0",), ("9.0",))
    assert snapshot(root) == before


def test_slim_tree_failed_prune_check_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path / "venv")
    path = root / SITE / "torch/lib/libtorch_cuda.so"
    content = path.read_bytes()

    def fail(*_arguments: object) -> None:
        raise UnsupportedBinary("compare-bytes", "planted")

    monkeypatch.setattr(prune, "check_pruned", fail)
    result = slim_tree(root, SlimOptions(rules=(), strips=False, targets=frozenset({90})))

    assert path.read_bytes() == content
    assert sorted(path.parent.iterdir()) == sorted(
        path.parent / name for name in ("libtorch_cuda.so", "libplain.so", "broken.so")
    )
    assert ("compare-bytes", "prune") in {(refusal.reason, refusal.step) for refusal in result.refusals}
    assert result.changes == ()


def test_slim_tree_manifest_of_other_schema_raises(tmp_path: Path) -> None:
    root = plant(tmp_path / "venv")
    path = tmp_path / "slim.json"
    path.write_text(json.dumps({"schema_version": 99}))

    with pytest.raises(manifest.InvalidManifest) as error:
        slim_tree(root, EVERYTHING, manifest_path=path)

    assert error.value.version == 99


def test_slim_tree_corrupt_libraries_are_correct_or_unchanged(tmp_path: Path) -> None:
    """Each corrupt library on disk maps the same bytes after slimming, or is unchanged."""
    chance = random.Random(20263)  # noqa: S311 - a corpus, not a secret
    intact = LibrarySpec(fatbin=[container(cubin(80), cubin(90))], is_extended=True, has_table_segment=True).build()
    tables = elf.parse(intact).section_table_offset
    originals: dict[str, bytes] = {}
    for index in range(CORRUPT_FILES):
        content = bytearray(intact)
        for _ in range(chance.randint(1, 3)):
            place = chance.choice((chance.randrange(500), chance.randrange(tables, len(intact))))
            content[place] = chance.choice((0, 1, 0xFF, chance.randrange(256)))
        originals[f"torch/{index}.so"] = bytes(content)
    install(tmp_path, "torch", originals)

    result = slim_tree(tmp_path, SlimOptions(rules=(), strips=True, targets=frozenset({90})), workers=2)

    changed = {change.path.removeprefix(f"{SITE}/"): change.steps for change in result.changes}
    for path, original in originals.items():
        now = (tmp_path / SITE / path).read_bytes()
        if path not in changed:
            assert now == original
        elif "prune" in changed[path]:
            check_pruned(in_memory(original), in_memory(now), frozenset({90}))
        else:
            assert mapped_bytes(now) == mapped_bytes(original)
    assert untrue_rows(tmp_path) == []
    assert len(changed) > CORRUPT_FILES // 10
    assert len(result.refusals) > CORRUPT_FILES // 10
    assert not list(tmp_path.rglob("*.so.*"))
