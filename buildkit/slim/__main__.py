"""Slims an installed Python environment in place, and records every change in a manifest."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit.binary.fatbin import parse_target
from buildkit.errors import BuildkitError, UsageError
from buildkit.slim.manifest import count_files, explain, join, load, save
from buildkit.slim.placeholders.import_messages import install_import_hook
from buildkit.slim.proof.prove import prove
from buildkit.slim.proof.result import proof_summary, save_proof
from buildkit.slim.rules.options import SlimOptions
from buildkit.slim.rules.profiles import PROFILES, choose_profile
from buildkit.slim.rules.rule_sets import RULE_SETS, choose_rules
from buildkit.slim.rules.stub_rules import choose_stubs
from buildkit.slim.slim import slim_tree, worker_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit.slim.manifest import FileChange, SlimManifest

__all__ = ["main"]

_DESCRIPTION: Final = "Remove files, GPU code and symbols that an image does not use from an installed tree, in place."
_EXAMPLES: Final = """\
examples:
  slim a virtual environment for one kind of GPU, and record the changes:
    python -m buildkit.slim /opt/venv --profile single --targets 9.0 --manifest /opt/venv/slim/slim.json
  find the rule that removed a package:
    python -m buildkit.slim --explain triton --manifest /opt/venv/slim/slim.json
  prove on a copy of this Python's torch that results stay the same:
    python -m buildkit.slim --prove --profile single --report proof.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 if a proof failed, 2 for a wrong argument, 3 if a step could not be done."""
    options = _parser().parse_args(arguments)
    try:
        if options.prove:
            return _prove(options)
        if options.join or options.explain:
            return _read_manifests(options)
        return _slim(options)
    except BuildkitError as error:
        sys.stderr.write(f"slim: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"slim: {error}\n")
        return 3


def _slim(options: argparse.Namespace) -> int:
    """Slims the tree and writes a summary."""
    started_seconds = time.monotonic()
    if options.tree is None:
        raise UsageError("TREE", "", "name the virtual environment or site-packages folder to slim")
    steps = _slim_options(options)
    manifest = slim_tree(options.tree, steps, manifest_path=options.manifest, workers=options.workers)
    sys.stderr.write(_summary(manifest, time.monotonic() - started_seconds))
    return 0


def _prove(options: argparse.Namespace) -> int:
    """Runs the proof; without a GPU it can succeed too, unless one is required, and names what is not verified."""
    site = options.tree or _torch_site()
    for folder in (options.work_dir, options.report and options.report.parent):  # fail now, not after ten minutes
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work_dir, prefix="slim-proof-") as work:
        proof = prove(
            site.resolve(),
            Path(work),
            profile=options.profile or "single",
            target=options.targets,
            log=lambda step: _log(f"{step}\n"),
        )
    if options.report is not None:
        save_proof(proof, options.report)
    _log(proof_summary(proof))
    return 1 if proof.failures or (options.require_gpu and not proof.is_verified_on_device) else 0


def _torch_site() -> Path:
    """Returns the site-packages folder of this Python's torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise UsageError("TREE", "", "this Python has no torch: name the site-packages folder to prove")
    return Path(found.origin).parents[1]


def _read_manifests(options: argparse.Namespace) -> int:
    """Joins manifests into one, or explains a name from one; returns 1 if the manifest does not have the name."""
    if options.manifest is None:
        raise UsageError("--manifest", "", "name the manifest to write with --join, or to read with --explain")
    if options.join:
        joined = join([load(path) for path in options.join])
        save(joined, options.manifest)
        if options.import_hook is not None:
            install_import_hook(joined, options.import_hook, _installed_paths(options.installed))
        return 0
    lines = explain(load(options.manifest), options.explain)
    sys.stdout.write("".join(f"{line}\n" for line in lines) or f"slim changed nothing named {options.explain}\n")
    return 0 if lines else 1


def _installed_paths(trees: list[Path]) -> Iterator[str]:
    """Yields the path of everything in these trees, relative to its tree."""
    for tree in trees:
        for path in tree.rglob("*"):
            yield path.relative_to(tree).as_posix()


def _log(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _slim_options(options: argparse.Namespace) -> SlimOptions:
    """Returns the steps of the profile, or those of the single options."""
    targets = (
        frozenset(parse_target(target) for target in options.targets.split(",")) if options.targets else frozenset()
    )
    if options.profile is not None:
        steps = choose_profile(options.profile, targets)
    else:
        steps = SlimOptions(
            rules=choose_rules(options.rules),
            strips=options.strip,
            targets=targets or None,
            stubs=choose_stubs(options.stubs),
        )
    return dataclasses.replace(steps, is_atomic=options.atomic, is_load_checked=options.check_loading)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m buildkit.slim",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tree", type=Path, nargs="?", help="a virtual environment or a site-packages folder")
    _add_step_arguments(parser)
    parser.add_argument("--manifest", type=Path, metavar="PATH", help="record the changes as JSON")
    parser.add_argument("--atomic", action="store_true", help="replace changed files instead of writing in place")
    parser.add_argument(
        "--check-loading", action="store_true", help="load each changed library before it replaces the old one"
    )
    parser.add_argument(
        "--workers", type=int, default=worker_count(), metavar="N", help="number of processes (default: all cores)"
    )
    reading = parser.add_argument_group("manifests", "read manifests of slimmed trees; no tree is read")
    reading.add_argument("--join", type=Path, nargs="+", metavar="PATH", help="join these into --manifest")
    reading.add_argument(
        "--import-hook", type=Path, metavar="SITE", help="with --join: install the hook that explains failed imports"
    )
    reading.add_argument(
        "--installed", type=Path, nargs="+", default=[], metavar="TREE", help="with --import-hook: the slimmed trees"
    )
    reading.add_argument("--explain", metavar="NAME", help="print the rules that removed a package or library, and why")
    proof = parser.add_argument_group(
        "proof", "compare a slimmed copy with the original; the default TREE is this Python's"
    )
    proof.add_argument("--prove", action="store_true", help="run the proof of --profile (default: single)")
    proof.add_argument("--work-dir", type=Path, metavar="DIR", help="where to copy the tree, twice (default: TMPDIR)")
    proof.add_argument("--report", type=Path, metavar="PATH", help="write the proof as JSON")
    proof.add_argument("--require-gpu", action="store_true", help="fail without a GPU that verifies the proof")
    return parser


def _add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that choose the steps."""
    parser.add_argument("--profile", choices=PROFILES, help="a named choice of --rules, --strip and --stubs")
    parser.add_argument(
        "--rules",
        default="none",
        metavar="NAME[,NAME]",
        help=f"sets of rules for files to remove ({', '.join(RULE_SETS)}), or single rules (default: none)",
    )
    parser.add_argument("--strip", action="store_true", help="remove symbols and debug information")
    parser.add_argument(
        "--targets",
        metavar="X.Y[,X.Y]",
        help="keep GPU code for these compute capabilities only, such as 8.0,9.0 (default: keep all)",
    )
    parser.add_argument(
        "--stubs",
        default="none",
        metavar="NAME[,NAME]",
        help="libraries to replace by stubs, or all; needs gcc (default: none)",
    )


def _summary(manifest: SlimManifest, seconds: float) -> str:
    """Returns the bytes that each rule and each step removed, and the files that a step does not support."""
    lines = [f"slim: {_megabytes(manifest.bytes_before)} before, {_megabytes(manifest.bytes_after)} after"]
    for removal in manifest.removals:
        size = _megabytes(sum(removal.removed.values()))
        lines.append(f"  {removal.rule:<16} {size:>11} in {count_files(len(removal.removed))}; lost: {removal.lost}")
    for step in ("stub", "prune", "strip", "record", "placeholder"):
        changes = [change for change in manifest.changes if step in change.steps]
        if changes:
            size = _megabytes(sum(_saved_bytes(change, step) for change in changes))
            lines.append(f"  {step:<16} {size:>11} in {count_files(len(changes))}")
    lines += [
        f"  unchanged: {refusal.path}: {refusal.step}: {refusal.reason}: {refusal.detail}"
        for refusal in manifest.refusals
    ]
    return "\n".join([*lines, f"  {seconds:.1f} s\n"])


def _saved_bytes(change: FileChange, step: str) -> int:
    """Returns the bytes that one step removed from a file: GPU code for `prune`, and the rest for the other step."""
    code_bytes = sum(size_bytes for _, size_bytes in change.removed_code.values())
    return code_bytes if step == "prune" else change.bytes_before - change.bytes_after - code_bytes


def _megabytes(size_bytes: int) -> str:
    """Returns bytes as MB, 10^6 bytes."""
    return f"{size_bytes / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
