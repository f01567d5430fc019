"""What an import of something that the slim took out says."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from buildkit.slim.__main__ import main
from buildkit.slim.manifest import Removal, SlimManifest
from buildkit.slim.placeholders.modules import MODULE, missing_modules, write_messages
from tests.support.installed import SITE, install

if TYPE_CHECKING:
    from pathlib import Path

GRAPHS = Removal(
    "graphs",
    "nothing imports it",
    "cutting graphs",
    {f"{SITE}/graphs/__init__.py": 100, f"{SITE}/graphs/cut.py": 200, f"{SITE}/graphs/__pycache__/cut.x.pyc": 50},
)
TESTS = Removal(
    "tests",
    "tests",
    "running tests",
    {f"{SITE}/graphs/tests/test_cut.py": 10, f"{SITE}/kept/tests/__init__.py": 5, f"{SITE}/kept/tests/data.json": 9},
)
FAST = Removal("fast", "two ways", "speed", {f"{SITE}/kept/_fast.cpython-313-x86_64-linux-gnu.so": 9, "bin/fast": 1})
MANIFEST = SlimManifest(1000, 600, (GRAPHS, TESTS, FAST), (), ())
KEPT = (f"{SITE}/kept/__init__.py", f"{SITE}/kept/_slow.py", "bin/python")


def run(site: Path, program: str) -> str:
    """What a program prints with `site` as a folder whose .pth files are read."""
    start = f"import site; site.addsitedir({str(site)!r})\n"
    command = [sys.executable, "-S", "-c", start + program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def slimmed(tmp_path: Path) -> Path:
    """A site-packages folder with one package whose parts are gone and another that is gone whole."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/__init__.py").write_text("")
    write_messages(MANIFEST, tmp_path, KEPT)
    return tmp_path


def test_a_package_that_is_gone_whole_is_one_name_under_the_rule_that_took_most_of_it() -> None:
    assert missing_modules(MANIFEST, KEPT) == {"graphs": "graphs", "kept._fast": "fast", "kept.tests": "tests"}


@pytest.mark.parametrize(
    ("module", "rule", "lost"),
    [
        ("graphs", "graphs", "cutting graphs"),
        ("graphs.cut", "graphs", "cutting graphs"),
        ("kept.tests.test_it", "tests", "running tests"),
        ("kept._fast", "fast", "speed"),
    ],
)
def test_an_import_of_what_is_gone_names_the_rule_and_what_is_lost(
    slimmed: Path, module: str, rule: str, lost: str
) -> None:
    program = f"try:\n    import {module}\nexcept ModuleNotFoundError as error:\n    print(error.name, error)"

    said = run(slimmed, program)

    assert f"slim rule {rule}" in said
    assert lost in said


def test_an_import_of_what_never_was_says_what_it_always_says(slimmed: Path) -> None:
    program = "try:\n    import kept.nowhere\nexcept ModuleNotFoundError as error:\n    print(error)"

    assert run(slimmed, program) == "No module named 'kept.nowhere'"


def test_who_only_asks_is_told_that_there_is_nothing(slimmed: Path) -> None:
    program = "from importlib.util import find_spec\nprint(find_spec('graphs'), find_spec('kept._fast'))"

    assert run(slimmed, program) == "None None"


def test_what_is_installed_after_all_is_imported(slimmed: Path) -> None:
    (slimmed / "graphs.py").write_text("answer = 42")

    assert run(slimmed, "import graphs\nprint(graphs.answer)") == "42"


def test_the_finder_is_the_last_and_there_once(slimmed: Path) -> None:
    again = f"import importlib, sys, {MODULE}\nimportlib.reload({MODULE})\n"

    said = run(slimmed, again + "print(*(type(finder).__name__ for finder in sys.meta_path))").split()

    assert said.count("LeftOut") == 1
    assert said[-1] == "LeftOut"


def test_the_command_joins_and_writes_the_messages(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    install(tree, "kept", {"kept/__init__.py": b"", "kept/tests/test_it.py": b"assert True\n"})
    assert main([str(tree), "--files", "tests", "--manifest", str(tmp_path / "kept.json"), "--workers", "1"]) == 0
    site = tmp_path / "out" / SITE

    arguments = ["--join", str(tmp_path / "kept.json"), "--manifest", str(tmp_path / "slim.json")]
    assert main([*arguments, "--messages", str(site), "--kept", str(tree)]) == 0

    assert "'kept.tests': 'tests'" in (site / f"{MODULE}.py").read_text()
    assert (site / f"{MODULE}.pth").read_text() == f"import {MODULE}\n"
