"""Reads the sessions of noxfile.py, without running it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

__all__ = ["sessions"]

NOXFILE = Path(__file__).resolve().parents[2] / "noxfile.py"


@cache
def sessions() -> dict[str, str | None]:
    """Returns each session with the command of `python -m buildkit` that it runs, or None if it runs none."""
    found: dict[str, str | None] = {}
    for node in ast.parse(NOXFILE.read_text()).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            call = decorator if isinstance(decorator, ast.Call) else None
            if ast.unparse(call.func if call else decorator) != "nox.session":
                continue
            names = {word.arg: ast.literal_eval(word.value) for word in (call.keywords if call else ())}
            commands = re.findall(r"toolkit\(session, '([a-z-]+)'", ast.unparse(node))
            found[str(names.get("name", node.name))] = commands[0] if commands else None
    return found
