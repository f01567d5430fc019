"""Tells whoever imports a module that the slim took out which rule it was, instead of only that there is none.

Copied into the site-packages of a slimmed tree, with its table behind it, and started by a .pth file: the one way that
works in every interpreter (Debian's has a `sitecustomize` of its own, which hides the environment's). It stands last
among the finders, so it costs nothing until an import has failed, and then changes the text of the error only: its
type and name stay, so whoever tries an optional module and does without it still does. Who asks without importing
(importlib.util.find_spec, pkgutil) is told as ever that there is nothing.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in `typing`, which no interpreter should have to load at its start for this
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

__all__ = ["LeftOut", "install"]


class LeftOut:
    """A finder that finds nothing.

    Attributes:
        rules: module or package that is gone -> the rule that took it.
        lost: rule -> what is lost by it.
    """

    def __init__(self, rules: Mapping[str, str], lost: Mapping[str, str]) -> None:
        """Takes the table."""
        self.rules = rules
        self.lost = lost

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """Raises for an import of what the table holds; finds nothing else either."""
        del path, target
        # CPython 3.11 to 3.14: find_spec <- _find_spec <- _find_and_load_unlocked, which would raise without us.
        if sys._getframe(2).f_code.co_name != "_find_and_load_unlocked":  # noqa: SLF001 - no other way to know
            return
        wanted = name
        while wanted:
            rule = self.rules.get(wanted)
            if rule is not None:
                message = (
                    f"No module named {name!r}: this installation leaves it out (slim rule {rule}). "
                    f"Lost by that rule: {self.lost[rule]}."
                )
                raise ModuleNotFoundError(message, name=name)
            wanted = wanted.rpartition(".")[0]


def install(rules: Mapping[str, str], lost: Mapping[str, str]) -> None:
    """Puts the finder last, once."""
    if not any(type(finder).__name__ == LeftOut.__name__ for finder in sys.meta_path):
        sys.meta_path.append(LeftOut(rules, lost))
