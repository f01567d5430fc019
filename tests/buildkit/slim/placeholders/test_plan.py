from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit.slim.placeholders.compiler import CompilerMissing
from buildkit.slim.placeholders.kinds import PlaceholderKind, parse_message
from buildkit.slim.placeholders.plan import make_placeholders
from buildkit.slim.rules.rule_sets import choose_rules
from tests.support.elf import LibrarySpec

if TYPE_CHECKING:
    from pathlib import Path

CUDNN, MODELS, SCIENCE, SOLVER = choose_rules("cudnn-engines,other-models,scipy-sklearn,dense-solver")


def write(root: Path, path: str, content: bytes) -> str:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)
    return path


def test_make_placeholders_returns_one_of_each_kind(tmp_path: Path, gcc: str) -> None:
    assert gcc
    library = LibrarySpec().build()
    claimed = {
        write(tmp_path, "nvidia/libcusolver.so.12", library): SOLVER,
        write(tmp_path, "nvidia/libcudnn_cnn.so.9", library): CUDNN,
        write(tmp_path, "nvidia/text.so.1", b"not a library"): SOLVER,
        write(tmp_path, "transformers/models/clip/modeling_clip.py", b'__all__ = ["CLIPModel"]'): MODELS,
        write(tmp_path, "transformers/models/clip/convert_clip.py", b""): MODELS,
        write(tmp_path, "scipy/stats/__init__.py", b""): SCIENCE,
        write(tmp_path, "scipy/stats/_stats.py", b""): SCIENCE,
    }

    placeholders = make_placeholders(tmp_path, claimed)

    assert {placeholder.path: placeholder.kind for placeholder in placeholders} == {
        "nvidia/libcusolver.so.12": PlaceholderKind.UNLOADABLE_LIBRARY,
        "nvidia/libcudnn_cnn.so.9": PlaceholderKind.WARNING_LIBRARY,
        "transformers/models/clip/modeling_clip.py": PlaceholderKind.MODULE,
        "scipy/stats/__init__.py": PlaceholderKind.PACKAGE,
    }
    for placeholder in placeholders:
        message = parse_message(placeholder.content.decode("latin-1"))
        assert message is not None
        assert message.rule == claimed[placeholder.path].name


def test_make_placeholders_needs_compiler_for_warning_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = LibrarySpec().build()
    solver, cudnn = write(tmp_path, "libcusolver.so.12", library), write(tmp_path, "libcudnn_cnn.so.9", library)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert len(make_placeholders(tmp_path, {solver: SOLVER})) == 1
    with pytest.raises(CompilerMissing):
        make_placeholders(tmp_path, {cudnn: CUDNN})
