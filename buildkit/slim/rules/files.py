"""Matches installed files with the rules that remove them.

A folder of Python modules such as `tests` stays if a module outside imports it: the sources and entry points of the
tree are searched for imports. Bytecode is removed with its source.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Final

from buildkit.slim.rules.import_list import has_recorded_versions, imported_paths
from buildkit.slim.rules.rule_sets import RULES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from buildkit.slim.rules.rule_sets import Rule

__all__ = ["is_left_uncompiled", "match_files"]

_GUARDED_FOLDERS: Final = frozenset(folder for rule in RULES if rule.keeps_imported for folder in rule.folders)
# Folders with a distribution's metadata and licences, which no rule removes. Licences lie in folders named like those
# of sources.
_METADATA: Final = ".dist-info"
# Sources that load their stubs at run time (the lazy_loader package: `attach_stub` reads the .pyi beside the module).
_READS_ITS_STUB: Final = b"attach_stub"
# An import statement at any indentation, with the names in its parentheses: a fast test before parsing.
_IMPORT: Final = re.compile(
    rb"^[ \t]*((?:from[ \t]+[.\w]+[ \t]+import|import)[ \t]+(?:\([^)]*\)|[^\n(]*))", re.MULTILINE
)
_WORD: Final = re.compile(rb"\w+")
# Up to this many words, searching every source for each is faster than finding its import statements (measured).
_FEW_WORDS: Final = 8
# Entry points that only a test suite loads: networkx ignores its `nx_loopback` backend otherwise (networkx 3.7,
# networkx/utils/backends.py, `_get_backends`).
_TEST_ENTRY_POINTS: Final = frozenset({"networkx.classes.tests.dispatch_interface"})
_ENTRY_POINT: Final = re.compile(r"^[^#=\n]+=\s*([\w.]+)", re.MULTILINE)


def match_files(root: Path, paths: Sequence[str], rules: Iterable[Rule]) -> dict[str, Rule]:
    """Returns the files below `root` that are removed: path to the first rule that claims it.

    Args:
        root: a site-packages folder, or the tree for the files outside all of them.
        paths: every file below it, relative, with `/`.
        rules: the rules in the order in which they claim files.
    """
    rules = tuple(rules)
    compiled = {path: source for path in paths if (source := _source_of(path)) is not None}
    installed = [path for path in paths if path not in compiled]
    matched: dict[str, Rule] = {}
    for path in installed:
        claiming = next((rule for rule in rules if not rule.is_bytecode_only and rule.claims(path)), None)
        if claiming is not None and not path.partition("/")[0].endswith(_METADATA):
            matched[path] = claiming
    _keep_imported(root, installed, matched)
    if any(rule.keeps_recorded for rule in rules) and not has_recorded_versions(installed):
        _keep_loaded(root, installed, matched)
        # Rules for bytecode remove every module that is not listed, and the list is of other versions.
        rules = tuple(rule for rule in rules if not rule.is_bytecode_only)
    _keep_stubs_read_at_run_time(root, matched)
    for path, source in compiled.items():
        claiming = matched.get(source) or next((rule for rule in rules if is_left_uncompiled(source, [rule])), None)
        if claiming is not None:
            matched[path] = claiming
    return matched


def is_left_uncompiled(path: str, rules: Iterable[Rule]) -> bool:
    """Returns whether a rule removes the bytecode of this source, which itself stays."""
    return any(rule.is_bytecode_only and rule.claims(path) for rule in rules)


def _source_of(path: str) -> str | None:
    """Returns the source of a file in `__pycache__` (PEP 3147); None for any other file."""
    folder, _, name = path.rpartition("/")
    if not name.endswith(".pyc") or folder.rpartition("/")[2] != "__pycache__":
        return None
    return f"{folder.removesuffix('__pycache__')}{name.partition('.')[0]}.py"


def _keep_imported(root: Path, paths: Sequence[str], matched: dict[str, Rule]) -> None:
    """Keeps the folders and modules that modules outside of them import, for rules with `keeps_imported`."""
    guarded: dict[str, list[str]] = {}
    for path, rule in matched.items():
        if rule.keeps_imported:
            guarded.setdefault(_module_root(path), []).append(path)
    if not guarded:
        return
    words = {name.rsplit(".", 1)[-1].encode() for name in guarded}
    # The modules that are kept import others, so this is repeated until no more are kept.
    importers = [path for path in paths if path not in matched]
    while importers and guarded:
        reached = _with_parents(set().union(*(_imported_by(root, path, words) for path in importers)))
        importers = [path for name in sorted(reached.intersection(guarded)) for path in guarded.pop(name)]
        for path in importers:
            del matched[path]


def _keep_loaded(root: Path, paths: Sequence[str], matched: dict[str, Rule]) -> None:
    """Keeps the modules that the listed modules import when they load, for rules with `keeps_recorded`."""
    pending = list(imported_paths().intersection(paths).difference(matched))
    unread: dict[str, set[str]] = {}  # module to its files: a source, a package's source, extension modules
    for path in set(paths).difference(pending):
        if path.endswith((".py", ".so")) and (path not in matched or matched[path].keeps_recorded):
            unread.setdefault(_module_name(path), set()).add(path)
    while pending:
        path = pending.pop()
        if path.endswith(".so"):
            continue
        for module in _with_parents(_imports((root / path).read_bytes(), path)):
            found = unread.pop(module, set())
            for file in found:
                matched.pop(file, None)
            pending += found


def _module_name(path: str) -> str:
    """Returns `a.b` for `a/b.py`, `a/b/__init__.py` and `a/b.cpython-313-x86_64-linux-gnu.so`."""
    folder, _, name = path.rpartition("/")
    module = name.partition(".")[0]
    return ".".join([*folder.split("/"), *([] if module == "__init__" else [module])]).lstrip(".")


def _imported_by(root: Path, path: str, words: set[bytes]) -> set[str]:
    """Returns the modules that a source imports or entry points name; none if no import has one of these words."""
    if path.endswith(".dist-info/entry_points.txt"):
        return set(_ENTRY_POINT.findall((root / path).read_text("utf-8", "replace"))) - _TEST_ENTRY_POINTS
    if not path.endswith(".py"):
        return set()
    source = (root / path).read_bytes()
    if len(words) <= _FEW_WORDS and not any(word in source for word in words):
        return set()
    if words.isdisjoint(_WORD.findall(b"\n".join(_IMPORT.findall(source)))):
        return set()
    return _imports(source, path)


def _module_root(path: str) -> str:
    """Returns the dotted name of the outermost folder that a rule names, or of the module; it stays as one unit."""
    parts = path.removesuffix(".py").split("/")
    for depth, part in enumerate(parts[:-1], start=1):
        if part in _GUARDED_FOLDERS:
            return ".".join(parts[:depth])
    return ".".join(parts)


def _with_parents(modules: Iterable[str]) -> set[str]:
    """Returns the modules and their parent packages, which importing them imports first."""
    return {
        ".".join(parts[:depth])
        for parts in (module.split(".") for module in modules)
        for depth in range(1, len(parts) + 1)
    }


def _imports(source: bytes, path: str) -> set[str]:
    """Returns every dotted name that importing this module could import, with relative names resolved.

    Imports inside functions are ignored: a package's `test()` function imports the tests that a rule removes. Imports
    for type checkers are ignored too.
    """
    package = path.split("/")[:-1]
    try:
        pending: list[ast.AST] = list(ast.parse(source).body)
    except (SyntaxError, ValueError):
        return set()  # it cannot be imported
    names: set[str] = set()
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            pending.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return names


def _keep_stubs_read_at_run_time(root: Path, matched: dict[str, Rule]) -> None:
    """Keeps the type stubs that their module reads when it is imported."""
    for path in [path for path in matched if path.endswith(".pyi")]:
        module = root / path.removesuffix("i")
        if module.is_file() and _READS_ITS_STUB in module.read_bytes():
            del matched[path]
