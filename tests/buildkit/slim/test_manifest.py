from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit.slim.__main__ import main
from buildkit.slim.manifest import (
    SCHEMA_VERSION,
    Alteration,
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

CUFFT = Alteration("site/nvidia/lib/libcufft.so.12", ("architectures",), 900, 400, "aa", "bb", {"sm_80": (3, 500)})
TRITON = Removal(
    "triton", "needs a compiler", "torch.compile", {"site/triton/__init__.py": 10, "site/triton/_C/x.so": 90}
)
RECORD = Alteration("site/t.dist-info/RECORD", ("record",), 50, 40, "cc", "dd")
CUDA = SlimManifest(
    1000, 490, (), (CUFFT, RECORD), (Refusal("site/odd.so", "strip", "elf-class", "1"),), ("8.0", "9.0")
)
TORCH = SlimManifest(500, 400, (TRITON,), (), (), ("9.0",))
SCIENCE = SlimManifest(70, 70, (), (), ())


@pytest.mark.parametrize("manifest", [CUDA, TORCH, SCIENCE], ids=["pruned", "removed", "untouched"])
def test_what_is_saved_is_loaded_and_saved_again_as_the_same_bytes(tmp_path: Path, manifest: SlimManifest) -> None:
    save(manifest, tmp_path / "one.json")
    loaded = load(tmp_path / "one.json")
    save(loaded, tmp_path / "two.json")

    assert loaded == manifest
    assert loaded.schema_version == SCHEMA_VERSION
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_joined_manifests_are_those_of_the_merged_tree(tmp_path: Path) -> None:
    for name, manifest in (("a", CUDA), ("b", TORCH), ("c", SCIENCE)):
        save(manifest, tmp_path / f"{name}.json")

    assert (
        main(["--join", *(str(tmp_path / f"{n}.json") for n in "abc"), "--manifest", str(tmp_path / "slim.json")]) == 0
    )

    joined = load(tmp_path / "slim.json")
    assert joined == join([CUDA, TORCH, SCIENCE])
    assert (joined.bytes_before, joined.bytes_after, joined.targets) == (1570, 960, ("9.0",))
    assert joined.removals == (TRITON,)
    assert [change.path for change in joined.alterations] == [CUFFT.path, RECORD.path]
    assert join([SCIENCE, SCIENCE]).targets is None


def test_removals_of_one_rule_in_two_trees_are_one() -> None:
    other = Removal("triton", "needs a compiler", "torch.compile", {"bin/proton": 1})

    (removal,) = join([TORCH, SlimManifest(1, 0, (other,), (), ())]).removals

    assert removal.removed == {"bin/proton": 1, **TRITON.removed}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("triton", "triton took 2 files out (100 bytes)"),
        ("triton._C", "triton took 1 files out (90 bytes)"),
        ("libcufft", "900 bytes became 400; without 3 of sm_80"),
        ("libcufft.so.12", "architectures"),
    ],
)
def test_a_name_is_explained_by_the_rule_that_took_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    save(join([CUDA, TORCH]), tmp_path / "slim.json")

    assert main(["--explain", name, "--manifest", str(tmp_path / "slim.json")]) == 0

    assert words in capsys.readouterr().out


@pytest.mark.parametrize("name", ["trit", "cufft", "numpy", "RECORD"])
def test_a_name_that_nothing_was_done_to_has_no_explanation(name: str) -> None:
    assert explain(join([CUDA, TORCH]), name) == ()


def test_a_slim_that_goes_on_tells_the_whole_story_once() -> None:
    later = Alteration(CUFFT.path, ("strip",), 400, 300, "bb", "ee")
    now = SlimManifest(490, 390, (), (later,), ())

    whole = continue_from(CUDA, now, present={CUFFT.path: 300, RECORD.path: 40, "site/odd.so": 50})

    assert whole.bytes_before == 390 + 600 + 10
    assert whole.targets == ("8.0", "9.0")
    assert whole.alterations[0] == Alteration(
        CUFFT.path, ("architectures", "strip"), 900, 300, "aa", "ee", {"sm_80": (3, 500)}
    )


def test_what_an_earlier_slim_says_of_a_file_installed_anew_is_forgotten() -> None:
    now = SlimManifest(1000, 1000, (), (), ())

    whole = continue_from(join([CUDA, TORCH]), now, present={CUFFT.path: 900, "site/triton/__init__.py": 10})

    assert [change.path for change in whole.alterations] == []
    assert whole.removals[0].removed == {"site/triton/_C/x.so": 90}
