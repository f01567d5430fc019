from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit.slim.__main__ import main
from buildkit.slim.manifest import (
    SCHEMA_VERSION,
    FileChange,
    InvalidManifest,
    Refusal,
    Removal,
    SlimManifest,
    continue_from,
    explain,
    join,
    load,
    save,
)

if TYPE_CHECKING:
    from pathlib import Path

CUFFT = FileChange("site/nvidia/lib/libcufft.so.12", ("prune",), 900, 400, "aa", "bb", {"sm_80": (3, 500)})
TRITON = Removal(
    "triton", "needs a compiler", "torch.compile", {"site/triton/__init__.py": 10, "site/triton/_C/x.so": 90}
)
RECORD = FileChange("site/t.dist-info/RECORD", ("record",), 50, 40, "cc", "dd")
CUDA = SlimManifest(
    1000, 490, (), (CUFFT, RECORD), (Refusal("site/odd.so", "strip", "elf-class", "1"),), ("8.0", "9.0")
)
TORCH = SlimManifest(500, 400, (TRITON,), (), (), ("9.0",))
SCIENCE = SlimManifest(70, 70, (), (), ())


@pytest.mark.parametrize("manifest", [CUDA, TORCH, SCIENCE], ids=["pruned", "removed", "untouched"])
def test_load_returns_the_saved_manifest(tmp_path: Path, manifest: SlimManifest) -> None:
    save(manifest, tmp_path / "one.json")
    loaded = load(tmp_path / "one.json")
    save(loaded, tmp_path / "two.json")

    assert loaded == manifest
    assert loaded.schema_version == SCHEMA_VERSION
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_join_describes_the_merged_tree(tmp_path: Path) -> None:
    for name, manifest in (("a", CUDA), ("b", TORCH), ("c", SCIENCE)):
        save(manifest, tmp_path / f"{name}.json")

    assert (
        main(["--join", *(str(tmp_path / f"{n}.json") for n in "abc"), "--manifest", str(tmp_path / "slim.json")]) == 0
    )

    joined = load(tmp_path / "slim.json")
    assert joined == join([CUDA, TORCH, SCIENCE])
    assert (joined.bytes_before, joined.bytes_after, joined.targets) == (1570, 960, ("9.0",))
    assert joined.removals == (TRITON,)
    assert [change.path for change in joined.changes] == [CUFFT.path, RECORD.path]
    assert join([SCIENCE, SCIENCE]).targets is None


def test_join_merges_removals_of_one_rule() -> None:
    other = Removal("triton", "needs a compiler", "torch.compile", {"bin/proton": 1})

    (removal,) = join([TORCH, SlimManifest(1, 0, (other,), (), ())]).removals

    assert removal.removed == {"bin/proton": 1, **TRITON.removed}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("triton", "triton removed 2 files (100 bytes)"),
        ("triton._C", "triton removed 1 file (90 bytes)"),
        ("libcufft", "900 bytes before, 400 after; removed GPU code: 3 of sm_80"),
        ("libcufft.so.12", "prune"),
    ],
)
def test_explain_names_the_rule_or_the_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    save(join([CUDA, TORCH]), tmp_path / "slim.json")

    assert main(["--explain", name, "--manifest", str(tmp_path / "slim.json")]) == 0

    assert words in capsys.readouterr().out


@pytest.mark.parametrize("name", ["trit", "cufft", "numpy", "RECORD"])
def test_explain_unchanged_name_is_empty(name: str) -> None:
    assert explain(join([CUDA, TORCH]), name) == ()


def test_continue_from_merges_changes_of_one_file() -> None:
    later = FileChange(CUFFT.path, ("strip",), 400, 300, "bb", "ee")
    now = SlimManifest(490, 390, (), (later,), ())

    continued = continue_from(CUDA, now, present={CUFFT.path: 300, RECORD.path: 40, "site/odd.so": 50})

    assert continued.bytes_before == 390 + 600 + 10
    assert continued.targets == ("8.0", "9.0")
    assert continued.changes[0] == FileChange(CUFFT.path, ("prune", "strip"), 900, 300, "aa", "ee", {"sm_80": (3, 500)})


def test_continue_from_drops_reinstalled_files() -> None:
    now = SlimManifest(1000, 1000, (), (), ())

    continued = continue_from(join([CUDA, TORCH]), now, present={CUFFT.path: 900, "site/triton/__init__.py": 10})

    assert [change.path for change in continued.changes] == []
    assert continued.removals[0].removed == {"site/triton/_C/x.so": 90}


@pytest.mark.parametrize("text", ["[]", "not JSON", '{"schema_version": 1}'], ids=["a list", "no JSON", "older"])
def test_load_other_file_raises(tmp_path: Path, text: str) -> None:
    (tmp_path / "slim.json").write_text(text)

    with pytest.raises(InvalidManifest, match="schema_version 2 is needed"):
        load(tmp_path / "slim.json")
