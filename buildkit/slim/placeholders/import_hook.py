"""Explains failed imports of removed modules: the error names the slim rule, and not only the missing module.

This file is copied into the site-packages of a slimmed tree, with its tables appended, and started by a .pth file. (A
`sitecustomize` module would not do: Debian's Python has its own, which hides the environment's.) The finder is the last
one, so it costs nothing until an import fails. It changes only the text of the error, so programs that try an optional
module and continue without it still do. Queries without an import (importlib.util.find_spec, pkgutil) find nothing, as
before.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # a constant, because importing `typing` would slow down every start of the interpreter
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

__all__ = ["RemovedModuleFinder", "install"]


class RemovedModuleFinder:
    """A finder that finds no module, and raises an explanation for removed ones.

    Attributes:
        rules: removed module or package -> the rule that removed it.
        messages: rule -> the end of the error message.
    """

    def __init__(self, rules: Mapping[str, str], messages: Mapping[str, str]) -> None:
        """Stores the tables."""
        self.rules = rules
        self.messages = messages

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """Raises ModuleNotFoundError for the import of a removed module, and otherwise finds nothing."""
        del path, target
        # CPython 3.11 to 3.14: find_spec <- _find_spec <- _find_and_load_unlocked, which raises if nothing is found.
        if sys._getframe(2).f_code.co_name != "_find_and_load_unlocked":  # noqa: SLF001 - there is no public way
            return
        package = name
        while package:
            rule = self.rules.get(package)
            if rule is not None:
                raise ModuleNotFoundError(f"No module named {name!r}: {self.messages[rule]}", name=name)
            package = package.rpartition(".")[0]


def install(rules: Mapping[str, str], messages: Mapping[str, str]) -> None:
    """Appends the finder to `sys.meta_path`, if it is not there."""
    if not any(type(finder).__name__ == RemovedModuleFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.append(RemovedModuleFinder(rules, messages))
