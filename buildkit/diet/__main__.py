"""`python -m buildkit.diet TREE`: diets an installed tree in place and says what it did."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit.diet.diet import Choice, diet_tree
from buildkit.diet.files import RULE_SETS, UnknownRule, choose_rules
from buildkit.diet.manifest import UnknownManifest
from buildkit.diet.tree import NotATree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit.diet.manifest import Manifest

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 2 where the tree or a choice is not one."""
    options = _parser().parse_args(arguments)
    started_seconds = time.monotonic()
    try:
        choice = Choice(rules=choose_rules(options.files), strips=options.strip, is_atomic=options.atomic)
        manifest = diet_tree(options.tree, choice, manifest_path=options.manifest)
    except (NotATree, UnknownManifest, UnknownRule) as error:
        sys.stderr.write(f"diet: {error}\n")
        return 2
    sys.stderr.write(_summary(manifest, time.monotonic() - started_seconds))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m buildkit.diet", description=__doc__)
    parser.add_argument("tree", type=Path, help="a virtual environment or a site-packages folder")
    parser.add_argument("--strip", action="store_true", help="take symbols and debug information out")
    parser.add_argument(
        "--files",
        default="none",
        metavar="SET[,SET]",
        help=f"files to take out: {', '.join(RULE_SETS)}, or single rules",
    )
    parser.add_argument("--manifest", type=Path, metavar="PATH", help="write what was done as JSON, or continue it")
    parser.add_argument("--atomic", action="store_true", help="replace changed files instead of writing in place")
    return parser


def _summary(manifest: Manifest, seconds: float) -> str:
    lines = [f"diet: {_megabytes(manifest.bytes_before)} before, {_megabytes(manifest.bytes_after)} after"]
    for removal in manifest.removals:
        size = _megabytes(sum(removal.removed.values()))
        lines.append(f"  {removal.rule:<16} {size:>11} in {len(removal.removed)} files; lost: {removal.lost}")
    for step in sorted({step for change in manifest.alterations for step in change.steps}):
        changes = [change for change in manifest.alterations if step in change.steps]
        size = _megabytes(sum(change.bytes_before - change.bytes_after for change in changes))
        lines.append(f"  {step:<16} {size:>11} in {len(changes)} files")
    lines += [
        f"  left as it was: {refusal.path}: {refusal.step}: {refusal.reason}: {refusal.detail}"
        for refusal in manifest.refusals
    ]
    return "\n".join([*lines, f"  {seconds:.1f} s\n"])


def _megabytes(size_bytes: int) -> str:
    """Bytes as MB, 10^6 bytes."""
    return f"{size_bytes / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
