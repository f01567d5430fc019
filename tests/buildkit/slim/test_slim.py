"""A whole slim of a small tree: every step, the RECORD, the manifest, a second run, the command line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit.binary import elf
from buildkit.binary.elf import UnsupportedBinary
from buildkit.slim import manifest
from buildkit.slim import slim as slim_module
from buildkit.slim.__main__ import main
from buildkit.slim.libraries.check import check_pruned
from buildkit.slim.rules.rule_sets import choose_rules
from buildkit.slim.slim import SlimOptions, slim_tree
from tests.support.elf import EntrySpec, Library, container, mapped
from tests.support.installed import SITE, install, snapshot, untrue_rows

CORRUPT_FILES = 300
ROOT = Path(__file__).parents[3]


def code(architecture: int) -> EntrySpec:
    return EntrySpec(architecture=architecture, payload=bytes([architecture]) * 9000)


def plant(root: Path) -> Path:
    """A tree with everything that a slim changes, and a few things that it must not."""
    library = Library(fatbin=[container(code(80), code(90)), container(code(75))], relocatable=[container(code(90))])
    install(
        root,
        "torch",
        {
            "torch/__init__.py": b"",
            "torch/lib/libtorch_cuda.so": library.build(),
            "torch/lib/libplain.so": Library().build(),
            "torch/include/torch.h": b"#pragma once",
            "torch/tests/test_it.py": b"",
            "torch/lib/broken.so": b"\x7fELF" + bytes(100),
        },
    )
    install(root, "numpy", {"numpy.libs/libblas.so": Library().build(), "numpy/tests/data.npy": b"1"})
    return root


EVERYTHING = SlimOptions(rules=choose_rules("runtime"), strips=True, targets=frozenset({90}))


def test_a_slim_changes_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    root = plant(tmp_path / "venv")
    before = snapshot(root)

    result = slim_tree(root, EVERYTHING)

    after = snapshot(root)
    removed = {path for removal in result.removals for path in removal.removed}
    altered = {change.path for change in result.alterations}
    assert before.keys() - after.keys() == removed
    assert removed == {
        f"{SITE}/torch/include/torch.h",
        f"{SITE}/torch/tests/test_it.py",
        f"{SITE}/numpy/tests/data.npy",
    }
    assert {path for path in after if after[path] != before[path]} == altered
    assert {change.path: change.steps for change in result.alterations} == {
        f"{SITE}/torch/lib/libtorch_cuda.so": ("architectures", "strip"),
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


def test_the_same_tree_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    one, two = plant(tmp_path / "one"), plant(tmp_path / "two")

    slim_tree(one, EVERYTHING, manifest_path=tmp_path / "one.json")
    slim_tree(two, EVERYTHING, manifest_path=tmp_path / "two.json", workers=2)

    assert snapshot(one) == snapshot(two)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_second_slim_changes_neither_tree_nor_manifest(tmp_path: Path) -> None:
    root = plant(tmp_path / "venv")
    path = root / "slim.json"
    slim_tree(root, EVERYTHING, manifest_path=path)
    before = snapshot(root)

    slim_tree(root, EVERYTHING, manifest_path=path)

    assert snapshot(root) == before


def test_a_manifest_inside_the_tree_is_no_part_of_it_however_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plant(tmp_path / "venv")
    monkeypatch.chdir(root)

    first = slim_tree(root, EVERYTHING, manifest_path=Path("slim.json"))

    assert slim_tree(Path(), EVERYTHING, manifest_path=root / "slim.json") == first


def test_step_by_step_gives_what_one_run_gives(tmp_path: Path) -> None:
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
    assert {change.path: change.sha256_before for change in left.alterations} == {
        change.path: change.sha256_before for change in right.alterations
    }
    assert untrue_rows(steps) == []


def test_code_that_is_gone_cannot_be_asked_for_again(tmp_path: Path) -> None:
    root = plant(tmp_path / "venv")
    slim_tree(root, EVERYTHING, manifest_path=tmp_path / "slim.json")
    before = snapshot(root)

    with pytest.raises(manifest.TargetsAlreadyRemoved) as error:
        slim_tree(
            root, SlimOptions(rules=(), strips=False, targets=frozenset({80, 90})), manifest_path=tmp_path / "slim.json"
        )

    assert (error.value.value, error.value.allowed) == (("8.0",), ("9.0",))
    assert snapshot(root) == before


def test_a_prune_that_fails_its_comparison_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path / "venv")
    path = root / SITE / "torch/lib/libtorch_cuda.so"
    content = path.read_bytes()

    def fail(*_arguments: object) -> None:
        raise UnsupportedBinary("compare-bytes", "planted")

    monkeypatch.setattr(slim_module, "check_pruned", fail)
    result = slim_tree(root, SlimOptions(rules=(), strips=False, targets=frozenset({90})))

    assert path.read_bytes() == content
    assert sorted(path.parent.iterdir()) == sorted(
        path.parent / name for name in ("libtorch_cuda.so", "libplain.so", "broken.so")
    )
    assert ("compare-bytes", "architectures") in {(refusal.reason, refusal.step) for refusal in result.refusals}
    assert result.alterations == ()


def test_a_manifest_of_another_schema_is_refused(tmp_path: Path) -> None:
    root = plant(tmp_path / "venv")
    path = tmp_path / "slim.json"
    path.write_text(json.dumps({"schema_version": 99}))

    with pytest.raises(manifest.UnknownSlimManifest) as error:
        slim_tree(root, EVERYTHING, manifest_path=path)

    assert error.value.value == 99


def test_of_many_corrupt_libraries_each_is_changed_soundly_or_not_at_all(tmp_path: Path) -> None:
    """The corpus on disk: whatever was not refused still maps the same bytes, whatever was is untouched."""
    chance = random.Random(20263)  # noqa: S311 - a corpus, not a secret
    whole = Library(fatbin=[container(code(80), code(90))], is_extended=True, has_table_segment=True).build()
    tables = elf.parse(whole).section_table_offset
    originals: dict[str, bytes] = {}
    for index in range(CORRUPT_FILES):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            place = chance.choice((chance.randrange(500), chance.randrange(tables, len(whole))))
            content[place] = chance.choice((0, 1, 0xFF, chance.randrange(256)))
        originals[f"torch/{index}.so"] = bytes(content)
    install(tmp_path, "torch", originals)

    result = slim_tree(tmp_path, SlimOptions(rules=(), strips=True, targets=frozenset({90})), workers=2)

    changed = {change.path.removeprefix(f"{SITE}/"): change.steps for change in result.alterations}
    for path, original in originals.items():
        now = (tmp_path / SITE / path).read_bytes()
        if path not in changed:
            assert now == original
        elif "architectures" in changed[path]:
            check_pruned(original, now, frozenset({90}))
        else:
            assert mapped(now) == mapped(original)
    assert untrue_rows(tmp_path) == []
    assert len(changed) > CORRUPT_FILES // 10
    assert len(result.refusals) > CORRUPT_FILES // 10
    assert not list(tmp_path.rglob("*.so.*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{root}/lib"], "neither a virtual environment nor"),
        (["{root}", "--files", "header"], "no rule or set is called 'header'"),
        (["{root}", "--targets", "9.9"], "no GPU of compute capability '9.9'"),
    ],
)
def test_a_wrong_choice_is_one_line_and_no_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    root = plant(tmp_path / "venv")
    before = snapshot(root)

    assert main([argument.format(root=root) for argument in arguments]) == 2

    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert snapshot(root) == before


def test_the_command_runs_from_a_folder_that_holds_the_package_only(tmp_path: Path) -> None:
    """As in a build stage: the package mounted, no site-packages of its own."""
    root = plant(tmp_path / "venv")
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt/buildkit").symlink_to(ROOT / "buildkit")
    command = [
        sys.executable,
        "-S",
        "-m",
        "buildkit.slim",
        str(root),
        "--strip",
        "--files",
        "runtime",
        "--targets",
        "9.0",
    ]

    result = subprocess.run(
        [*command, "--manifest", root / "slim.json", "--workers", "2"],
        env={"PYTHONPATH": str(tmp_path / "mnt")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "left as it was" in result.stderr
    assert "architectures" in result.stderr
    assert manifest.load(root / "slim.json").targets == ("9.0",)
