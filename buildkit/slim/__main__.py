"""`python -m buildkit.slim TREE` slims an installed tree in place and says what it did; `--prove` proves a slim."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit.binary.fatbin import parse_target
from buildkit.slim.manifest import explain, join, load, save
from buildkit.slim.placeholders.modules import write_messages
from buildkit.slim.placeholders.stubs import CompilerMissing, choose_stubs
from buildkit.slim.prove import WorkloadFailed, proof_summary, prove, save_proof
from buildkit.slim.rules.profiles import PROFILES, choose_profile
from buildkit.slim.rules.rule_sets import RULE_SETS, choose_rules
from buildkit.slim.slim import SlimOptions, slim_tree, worker_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit.slim.manifest import Alteration, SlimManifest

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 where a proof failed, or 2 where the tree or a choice is not one."""
    options = _parser().parse_args(arguments)
    started_seconds = time.monotonic()
    try:
        if options.prove:
            return _prove(options)
        if options.join or options.explain:
            return _read_manifests(options)
        if options.tree is None:
            raise MissingTree
        manifest = slim_tree(options.tree, _choice(options), manifest_path=options.manifest, workers=options.workers)
    except (CompilerMissing, OSError, ValueError, WorkloadFailed) as error:
        sys.stderr.write(f"slim: {error}\n")
        return 2
    sys.stderr.write(_summary(manifest, time.monotonic() - started_seconds))
    return 0


class MissingTree(ValueError):
    """A command without the folder or file that it is about."""

    def __init__(self) -> None:
        super().__init__("name the tree to slim, or with --join and --explain the --manifest")


def _prove(options: argparse.Namespace) -> int:
    """Proves a slim on a copy; a proof without a GPU passes, unless one is required, and says that it has none."""
    site = options.tree
    if site is None:
        found = importlib.util.find_spec("torch")
        if found is None or found.origin is None:
            raise MissingTree
        site = Path(found.origin).parents[1]
    for folder in (options.work, options.report and options.report.parent):  # now, and not after ten minutes of work
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="slim-proof-") as work:
        proof = prove(
            site.resolve(),
            Path(work),
            profile=options.profile or "single",
            target=options.targets,
            log=lambda step: _say(f"{step}\n"),
        )
    if options.report is not None:
        save_proof(proof, options.report)
    _say(proof_summary(proof))
    return 1 if proof.failures or (options.require_device and not proof.is_verified_on_device) else 0


def _read_manifests(options: argparse.Namespace) -> int:
    """Joins manifests into the one named, or explains a name from that one; 1 where nothing was done to it."""
    if options.manifest is None:
        raise MissingTree
    if options.join:
        joined = join([load(path) for path in options.join])
        save(joined, options.manifest)
        if options.messages is not None:
            kept = (path.relative_to(tree).as_posix() for tree in options.kept for path in tree.rglob("*"))
            write_messages(joined, options.messages, kept)
        return 0
    lines = explain(load(options.manifest), options.explain)
    sys.stdout.write("".join(f"{line}\n" for line in lines) or f"the slim did nothing to {options.explain}\n")
    return 0 if lines else 1


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _choice(options: argparse.Namespace) -> SlimOptions:
    """The steps asked for: those of the profile, or each by its own option."""
    targets = (
        frozenset(parse_target(target) for target in options.targets.split(",")) if options.targets else frozenset()
    )
    if options.profile is not None:
        choice = choose_profile(options.profile, targets)
    else:
        choice = SlimOptions(
            rules=choose_rules(options.files),
            strips=options.strip,
            targets=targets or None,
            stubs=choose_stubs(options.stubs),
        )
    return dataclasses.replace(choice, is_atomic=options.atomic, is_loaded=options.load)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m buildkit.slim", description=__doc__)
    parser.add_argument("tree", type=Path, nargs="?", help="a virtual environment or a site-packages folder")
    parser.add_argument("--profile", choices=PROFILES, help="the steps by one name, instead of each by its option")
    parser.add_argument("--strip", action="store_true", help="take symbols and debug information out")
    parser.add_argument(
        "--files",
        default="none",
        metavar="SET[,SET]",
        help=f"files to take out: {', '.join(RULE_SETS)}, or single rules",
    )
    parser.add_argument(
        "--targets", metavar="X.Y[,X.Y]", help="keep GPU code for these compute capabilities only: 8.0,9.0"
    )
    parser.add_argument("--stubs", default="none", metavar="NAME[,NAME]", help="stand-ins for libraries, or `all`")
    parser.add_argument("--manifest", type=Path, metavar="PATH", help="write what was done as JSON, or continue it")
    parser.add_argument("--atomic", action="store_true", help="replace changed files instead of writing in place")
    parser.add_argument("--load", action="store_true", help="load each changed library before it replaces the old one")
    parser.add_argument("--workers", type=int, default=worker_count(), metavar="N", help="processes (default: cores)")
    reading = parser.add_argument_group("manifests", "of trees that were slimmed before; no tree is read")
    reading.add_argument("--join", type=Path, nargs="+", metavar="PATH", help="write these as one, for the merged tree")
    reading.add_argument(
        "--messages", type=Path, metavar="SITE", help="with --join: write what names the rule to who misses a module"
    )
    reading.add_argument(
        "--kept", type=Path, nargs="+", default=[], metavar="TREE", help="with --messages: the trees that are merged"
    )
    reading.add_argument("--explain", metavar="NAME", help="say which rule took a package or library out, and why")
    proof = parser.add_argument_group(
        "proof", "of a profile (`single`) on a copy; the tree is this Python's own if none is named"
    )
    proof.add_argument("--prove", action="store_true", help="slim a copy and compare it with the original in every way")
    proof.add_argument("--work", type=Path, metavar="DIR", help="where there is room for a copy (default: TMPDIR)")
    proof.add_argument("--report", type=Path, metavar="PATH", help="write the proof as JSON")
    proof.add_argument("--require-device", action="store_true", help="fail where no GPU verified it")
    return parser


def _summary(manifest: SlimManifest, seconds: float) -> str:
    lines = [f"slim: {_megabytes(manifest.bytes_before)} before, {_megabytes(manifest.bytes_after)} after"]
    for removal in manifest.removals:
        size = _megabytes(sum(removal.removed.values()))
        lines.append(f"  {removal.rule:<16} {size:>11} in {len(removal.removed)} files; lost: {removal.lost}")
    for step in ("stub", "strip", "architectures", "record", "sign"):
        changes = [change for change in manifest.alterations if step in change.steps]
        if changes:
            size = _megabytes(sum(_saved_bytes(change, step) for change in changes))
            lines.append(f"  {step:<16} {size:>11} in {len(changes)} files")
    lines += [
        f"  left as it was: {refusal.path}: {refusal.step}: {refusal.reason}: {refusal.detail}"
        for refusal in manifest.refusals
    ]
    return "\n".join([*lines, f"  {seconds:.1f} s\n"])


def _saved_bytes(change: Alteration, step: str) -> int:
    """What one step took out of a file: GPU code is counted by entry, the rest is the other step's."""
    code_bytes = sum(size_bytes for _, size_bytes in change.left_out.values())
    return code_bytes if step == "architectures" else change.bytes_before - change.bytes_after - code_bytes


def _megabytes(size_bytes: int) -> str:
    """Bytes as MB, 10^6 bytes."""
    return f"{size_bytes / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
