"""Removes the files that rules match, and writes their placeholders."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit.slim.manifest import FileChange, Removal, describe_change
from buildkit.slim.placeholders.kinds import Placeholder, is_placeholder_file
from buildkit.slim.placeholders.plan import make_placeholders
from buildkit.slim.rules.files import match_files
from buildkit.slim.tree import remove_files

if TYPE_CHECKING:
    from buildkit.slim.rules.rule_sets import Rule
    from buildkit.slim.tree import Tree

__all__ = ["RemovalPlan", "plan_removal", "remove_planned"]


@dataclass(frozen=True, slots=True)
class RemovalPlan:
    """The files to remove, by rule, and the placeholders that replace some of them."""

    removals: tuple[Removal, ...]
    placeholders: tuple[Placeholder, ...]

    def removed_paths(self) -> set[str]:
        """Returns the paths of all files to remove, those with placeholders included."""
        return {path for removal in self.removals for path in removal.removed}


def plan_removal(tree: Tree, rules: tuple[Rule, ...]) -> RemovalPlan:
    """Matches the files of a tree with rules and makes the placeholders; changes nothing.

    Raises:
        CompilerMissing: a placeholder must be compiled, and there is no compiler.
        UnsupportedBinary: the compiler cannot make a placeholder.
    """
    sizes = {file.path: 0 if file.is_link else file.size_bytes for file in tree.files}
    removed: dict[str, dict[str, int]] = {rule.name: {} for rule in rules}
    placeholders: dict[str, Placeholder] = {}
    for site, paths in tree.by_site():
        root = tree.root / site
        prefix = "" if site == "." else f"{site}/"
        claimed = {
            path: rule
            for path, rule in match_files(root, paths, rules).items()
            if rule.placeholder is None or not is_placeholder_file(root / path)
        }
        for path, rule in claimed.items():
            removed[rule.name][f"{prefix}{path}"] = sizes[f"{prefix}{path}"]
        for placeholder in make_placeholders(root, claimed):
            path = f"{prefix}{placeholder.path}"
            placeholders[path] = dataclasses.replace(placeholder, path=path)
    removals = tuple(
        Removal(rule=rule.name, reason=rule.reason, lost=rule.lost, removed=dict(sorted(removed[rule.name].items())))
        for rule in rules
        if removed[rule.name]
    )
    return RemovalPlan(removals, tuple(placeholder for _, placeholder in sorted(placeholders.items())))


def remove_planned(tree: Tree, plan: RemovalPlan) -> list[FileChange]:
    """Removes the files, writes the placeholders, and returns an entry for each placeholder."""
    replaced = {placeholder.path for placeholder in plan.placeholders}
    remove_files(tree.root, sorted(plan.removed_paths() - replaced))
    changes = []
    for placeholder in plan.placeholders:
        placeholder.write(tree.root)
        sha256_before = tree.recorded.get(placeholder.path)
        changes.append(
            describe_change(tree.root, placeholder.path, ("placeholder",), bytes_before=0, sha256_before=sha256_before)
        )
    return changes
