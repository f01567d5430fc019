from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.rewrite import CopyRange, Rewrite
from buildkit.slim.libraries import strip
from buildkit.slim.libraries.loadcheck import check_loads, load_error
from tests.support.elf import Library


@pytest.fixture
def library(tmp_path: Path, gcc: str) -> Path:
    (tmp_path / "lib.c").write_text("int answer(void) { return 42; }")
    subprocess.run([gcc, "-g", "-shared", "-fPIC", "-o", "lib.so", "lib.c"], cwd=tmp_path, check=True)
    return tmp_path / "lib.so"


def test_a_library_that_loads_has_no_error(library: Path) -> None:
    assert load_error(library) is None


def test_a_program_is_checked_by_the_loader_without_being_run() -> None:
    assert load_error(Path(sys.executable).resolve()) is None


def test_a_library_that_lost_its_dependency_is_refused(tmp_path: Path, library: Path) -> None:
    changed = tmp_path / "changed.so"
    changed.write_bytes(Library().build())  # needs libneeded.so.1, which is nowhere

    with pytest.raises(UnsupportedBinary, match=r"load-failed: .*libneeded\.so\.1"):
        check_loads(library, changed)


def test_what_did_not_load_before_need_not_load_after(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(Library().build())

    check_loads(path, path)


def test_a_strip_that_breaks_a_library_is_undone(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = library.read_bytes()
    real = strip.plan_strip

    def plan_wrongly(whole: bytes) -> strip.StripPlan | None:
        plan = real(whole)
        assert plan is not None
        runs = plan.rewrite.runs
        wrong = CopyRange(runs[0].old_offset, runs[0].new_offset, runs[0].size_bytes // 2)
        rewrite = Rewrite(plan.rewrite.bytes_before, plan.rewrite.bytes_after, (wrong,), plan.rewrite.patches)
        return strip.StripPlan(rewrite, plan.removed)

    monkeypatch.setattr(strip, "plan_strip", plan_wrongly)
    with pytest.raises(UnsupportedBinary, match="load-failed"):
        strip.strip_file(library, check=check_loads)

    assert library.read_bytes() == content
