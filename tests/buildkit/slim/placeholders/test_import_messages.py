"""Imports removed modules, with the import hook installed."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from buildkit.slim.__main__ import main
from buildkit.slim.manifest import Removal, SlimManifest
from buildkit.slim.placeholders.import_messages import HOOK_MODULE, install_import_hook, missing_modules
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
INSTALLED = (f"{SITE}/kept/__init__.py", f"{SITE}/kept/_slow.py", "bin/python")


def run(site: Path, program: str) -> str:
    """Returns the output of a program; `site` is a folder whose .pth files are read."""
    start = f"import site; site.addsitedir({str(site)!r})\n"
    command = [sys.executable, "-S", "-c", start + program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def slimmed(tmp_path: Path) -> Path:
    """A site-packages folder with one package that lost modules, and another that was removed completely."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/__init__.py").write_text("")
    install_import_hook(MANIFEST, tmp_path, INSTALLED)
    return tmp_path


def test_missing_modules_removed_package_is_one_entry() -> None:
    assert missing_modules(MANIFEST, INSTALLED) == {"graphs": "graphs", "kept._fast": "fast", "kept.tests": "tests"}


@pytest.mark.parametrize(
    ("module", "missing", "rule", "lost"),
    [
        ("graphs", "graphs", "graphs", "cutting graphs"),
        ("graphs.cut", "graphs", "graphs", "cutting graphs"),
        ("kept.tests.test_it", "kept.tests", "tests", "running tests"),
        ("kept._fast", "kept._fast", "fast", "speed"),
    ],
)
def test_import_of_removed_module_names_rule_and_loss(
    slimmed: Path, module: str, missing: str, rule: str, lost: str
) -> None:
    program = f"try:\n    import {module}\nexcept ModuleNotFoundError as error:\n    print(error.name, error)"

    message = f"it was removed from this installation (slim rule {rule}). Lost: {lost}."
    assert run(slimmed, program) == f"{missing} No module named {missing!r}: {message}"


def test_import_of_unknown_module_keeps_its_message(slimmed: Path) -> None:
    program = "try:\n    import kept.nowhere\nexcept ModuleNotFoundError as error:\n    print(error)"

    assert run(slimmed, program) == "No module named 'kept.nowhere'"


def test_find_spec_of_removed_module_is_none(slimmed: Path) -> None:
    program = "from importlib.util import find_spec\nprint(find_spec('graphs'), find_spec('kept._fast'))"

    assert run(slimmed, program) == "None None"


def test_import_of_reinstalled_module_works(slimmed: Path) -> None:
    (slimmed / "graphs.py").write_text("answer = 42")

    assert run(slimmed, "import graphs\nprint(graphs.answer)") == "42"


def test_finder_is_last_and_only_once(slimmed: Path) -> None:
    again = f"import importlib, sys, {HOOK_MODULE}\nimportlib.reload({HOOK_MODULE})\n"

    finders = run(slimmed, again + "print(*(type(finder).__name__ for finder in sys.meta_path))").split()

    assert finders.count("RemovedModuleFinder") == 1
    assert finders[-1] == "RemovedModuleFinder"


def test_main_join_installs_the_hook(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    install(tree, "kept", {"kept/__init__.py": b"", "kept/tests/test_it.py": b"assert True\n"})
    assert main([str(tree), "--rules", "tests", "--manifest", str(tmp_path / "kept.json"), "--workers", "1"]) == 0
    site = tmp_path / "out" / SITE

    arguments = ["--join", str(tmp_path / "kept.json"), "--manifest", str(tmp_path / "slim.json")]
    assert main([*arguments, "--import-hook", str(site), "--installed", str(tree)]) == 0

    assert "'kept.tests': 'tests'" in (site / f"{HOOK_MODULE}.py").read_text()
    assert (site / f"{HOOK_MODULE}.pth").read_text() == f"import {HOOK_MODULE}\n"
