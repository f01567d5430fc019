"""Runs the command line of slimming; proof options are tested with the proof."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from buildkit.slim import manifest
from buildkit.slim.__main__ import main
from tests.support.elf import EntrySpec, LibrarySpec, container
from tests.support.installed import install, snapshot

ROOT = Path(__file__).parents[3]


def plant(root: Path) -> Path:
    cubins = [EntrySpec(architecture=target, payload=bytes([target]) * 9000) for target in (80, 90)]
    files = {
        "torch/lib/libtorch_cuda.so": LibrarySpec(fatbin=[container(*cubins)]).build(),
        "torch/include/torch.h": b"#pragma once",
        "torch/lib/broken.so": b"\x7fELF" + bytes(100),
    }
    install(root, "torch", files)
    return root


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "TREE = '': name the virtual environment"),
        (["{root}/lib"], "neither a virtual environment nor"),
        (["{root}", "--rules", "header"], "rules = 'header': no such rule"),
        (["{root}", "--targets", "9.9"], "target = '9.9': not a known compute capability"),
    ],
)
def test_main_wrong_argument_is_one_line_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    root = plant(tmp_path / "venv")
    before = snapshot(root)

    assert main([argument.format(root=root) for argument in arguments]) == 2

    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert snapshot(root) == before


def test_main_runs_with_only_the_mounted_modules(tmp_path: Path) -> None:
    """As in a build stage: only these modules are mounted, and there are no site-packages."""
    root = plant(tmp_path / "venv")
    (tmp_path / "mnt/buildkit").mkdir(parents=True)
    for name in ("binary", "slim", "errors.py"):
        (tmp_path / "mnt/buildkit" / name).symlink_to(ROOT / "buildkit" / name)
    command = [
        sys.executable,
        "-S",
        "-m",
        "buildkit.slim",
        str(root),
        "--strip",
        "--rules",
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

    assert "unchanged" in result.stderr
    assert "prune" in result.stderr
    assert manifest.load(root / "slim.json").targets == ("9.0",)


def test_main_without_compiler_exits_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plant(tmp_path / "venv")
    install(root, "cudnn", {"nvidia/cudnn/lib/libcudnn_cnn.so.9": LibrarySpec().build()})
    before = snapshot(root)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert main([str(root), "--rules", "cudnn-engines"]) == 3

    assert "gcc is not installed" in capsys.readouterr().err
    assert snapshot(root) == before


def test_main_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])

    assert "python -m buildkit.slim /opt/venv --profile single" in capsys.readouterr().out
