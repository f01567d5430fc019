"""Tells whoever imports a module that the diet took out which rule it was, instead of only that there is none.

Copied into the site-packages of a dieted tree, with its table behind it, and started by a .pth file: the one way that
works in every interpreter (Debian's has a `sitecustomize` of its own, which hides the environment's). It stands last
among the finders, so it costs nothing until an import has failed, and then changes the text of the error only: its
type and name stay, so whoever tries an optional module and does without it still does. Who asks without importing
(importlib.util.find_spec, pkgutil) is told as ever that there is nothing.
"""

import sys

__all__ = ["LeftOut", "install"]


class LeftOut:
    """A finder that finds nothing.

    Attributes:
        rules: module or package that is gone -> the rule that took it.
        lost: rule -> what is lost by it.
    """

    def __init__(self, rules, lost):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204 - runs where typing costs
        """Takes the table."""
        self.rules = rules
        self.lost = lost

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, ARG002
        """Raises for an import of what the table holds; None for everything else."""
        # CPython 3.11 to 3.14: find_spec <- _find_spec <- _find_and_load_unlocked, which would raise without us.
        if sys._getframe(2).f_code.co_name != "_find_and_load_unlocked":  # noqa: SLF001 - no other way to know
            return
        wanted = name
        while wanted:
            rule = self.rules.get(wanted)
            if rule is not None:
                message = (
                    f"No module named {name!r}: this installation leaves it out (diet rule {rule}). "
                    f"Lost by that rule: {self.lost[rule]}."
                )
                raise ModuleNotFoundError(message, name=name)
            wanted = wanted.rpartition(".")[0]


def install(rules, lost):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Puts the finder last, once."""
    if not any(type(finder).__name__ == LeftOut.__name__ for finder in sys.meta_path):
        sys.meta_path.append(LeftOut(rules, lost))
