"""The changes of the scenarios: one each, in a copy of the project."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from buildkit import spec as specs
from buildkit.build.locks import Requirement
from buildkit.errors import UsageError
from buildkit.timing import changes

PROJECT = Path(__file__).resolve().parents[3]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    changes.copy_project(PROJECT, tmp_path / "copy")
    return tmp_path / "copy"


def test_copy_has_the_files_that_git_does_not_ignore(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("known", "new", "ignored", "deleted"):
        (project / name).write_text(name)
    (project / ".gitignore").write_text("ignored\n")
    for arguments in (("init", "--quiet"), ("add", "known", "deleted")):
        subprocess.run(["git", "-C", str(project), *arguments], check=True)
    (project / "deleted").unlink()

    changes.copy_project(project, tmp_path / "copy")

    assert set(contents(tmp_path / "copy")) == {"known", "new", ".gitignore"}


def test_copy_outside_a_checkout_has_all_but_caches(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "build").mkdir(parents=True)
    (project / "build" / "big").write_text("x")
    (project / "a.py").write_text("x")

    changes.copy_project(project, tmp_path / "copy")

    assert set(contents(tmp_path / "copy")) == {"a.py"}


def test_code_change_is_one_file_and_differs_in_each_run(copy: Path) -> None:
    before = contents(copy)

    change = changes.change_code(copy, 1)
    first = contents(copy)
    changes.change_code(copy, 2)

    assert {name for name in first if first[name] != before.get(name)} == {changes.CODE_FILE}
    assert contents(copy)[changes.CODE_FILE] != first[changes.CODE_FILE]
    assert changes.CODE_FILE in change
    compile(first[changes.CODE_FILE], "app.py", "exec")


def test_code_change_without_application_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no service/app\.py to change"):
        changes.change_code(tmp_path, 1)


def test_dependency_change_is_one_locked_requirement(copy: Path) -> None:
    before = contents(copy)
    other = Requirement("tqdm", "1.2.3", "tqdm==1.2.3 \\\n    --hash=sha256:" + "0" * 64)

    change = changes.change_dependency(specs.load(copy), other)

    after = contents(copy)
    assert {name for name in after if after[name] != before[name]} == {"docker/lock/models.txt"}
    lines = set(after["docker/lock/models.txt"].decode().splitlines())
    assert lines - set(before["docker/lock/models.txt"].decode().splitlines()) == set(other.text.splitlines())
    assert change.endswith(" to 1.2.3")
    assert contents(PROJECT / "docker") == {
        name.removeprefix("docker/"): content for name, content in before.items() if name.startswith("docker/")
    }


def test_dependency_that_is_not_locked_is_refused(copy: Path) -> None:
    with pytest.raises(UsageError, match="no-such-thing"):
        changes.earlier_releases(specs.load(copy), "no-such-thing", 1)


def test_torch_change_without_a_pin_is_refused(copy: Path) -> None:
    path = copy / "pyproject.toml"
    path.write_text(path.read_text().replace('"torch==', '"torch>='))

    with pytest.raises(UsageError, match="torch"):
        changes.change_torch(copy)
