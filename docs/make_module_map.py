"""Writes the module map of docs/architecture.md from the modules' docstrings: `python docs/make_module_map.py`."""

from __future__ import annotations

import ast
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "architecture.md"
HEADING = "## Module map\n"
# In the order of the import contracts: a package imports only packages further down.
PACKAGES = ("cli", "staging", "report", "check", "timing", "build", "diff", "slim", "image", "engine", "binary")


def first_paragraph(module: Path) -> str:
    """Returns the first paragraph of the module's docstring, as one line."""
    docstring = ast.get_docstring(ast.parse(module.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def section(folder: Path, modules: list[Path]) -> list[str]:
    """Returns the lines of one package: its heading, its docstring, and a row for each module."""
    rows = [f"| `{module.relative_to(folder)}` | {first_paragraph(module)} |" for module in modules]
    heading = [f"### `{folder.relative_to(PROJECT)}`", "", first_paragraph(folder / "__init__.py"), ""]
    return [*heading, "| module | does |", "| --- | --- |", *rows, ""]


def module_map() -> str:
    """Returns the section of the page, from its heading to the end."""
    lines = [HEADING]
    for folder in [*(PROJECT / "buildkit" / name for name in PACKAGES), PROJECT / "checks", PROJECT / "service"]:
        lines += section(folder, sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py"))
    shared = sorted(path for path in (PROJECT / "buildkit").glob("*.py") if path.name != "__init__.py")
    return "\n".join([*lines, *section(PROJECT / "buildkit", shared)])


def updated_page() -> str:
    """Returns the text of the page with the present module map."""
    before, _, _ = PAGE.read_text().partition(HEADING)
    return before + module_map()


if __name__ == "__main__":
    PAGE.write_text(updated_page())
