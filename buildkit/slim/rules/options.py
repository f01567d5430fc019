"""Defines the options of slimming: the rules for files, the libraries to replace, and the GPU targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit.slim.placeholders.stubs import StubRule
    from buildkit.slim.rules.rule_sets import Rule

__all__ = ["SlimOptions"]


@dataclass(frozen=True, slots=True)
class SlimOptions:
    """The steps of slimming one tree.

    Attributes:
        rules: the files that are removed.
        strips: whether symbols and debug information are removed.
        targets: the compute capabilities whose GPU code stays, as 90 for 9.0; None keeps all of it.
        stubs: the libraries that are replaced by stub libraries.
        is_atomic: whether each changed file is written beside the old one and renamed over it.
        is_load_checked: whether each changed library is loaded in a new process before it replaces the old one.
    """

    rules: tuple[Rule, ...]
    strips: bool
    targets: frozenset[int] | None = None
    stubs: tuple[StubRule, ...] = ()
    is_atomic: bool = False
    is_load_checked: bool = False

    @property
    def changes_libraries(self) -> bool:
        """Whether any step changes libraries."""
        return self.strips or self.targets is not None or bool(self.stubs)

    def stub_for(self, path: str) -> StubRule | None:
        """Returns the rule that replaces the library at this path by a stub, or None."""
        return next((rule for rule in self.stubs if rule.claims(path)), None)
