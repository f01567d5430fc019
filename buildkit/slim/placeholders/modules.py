"""The table by which a slimmed installation says which rule took a module out, and the files that say it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit.slim.manifest import SlimManifest

__all__ = ["MODULE", "missing_modules", "write_messages"]

MODULE: Final = "slim_messages"
"""What the module is called in site-packages; `slim_messages.pth` starts it."""
_FINDER: Final = Path(__file__).with_name("import_hook.py")
_SITE: Final = re.compile(r"(?:lib/python3\.\d+/site-packages/)?")
_EXTENSION: Final = re.compile(r"\.(?:py|(?:cpython-\w+-[\w-]+|abi3)\.so|so)$")


def missing_modules(manifest: SlimManifest, kept: Iterable[str]) -> dict[str, str]:
    """The modules and packages that are gone, each with the rule that took most of it.

    Of a package that is gone whole, the package only.

    Args:
        manifest: what was taken out.
        kept: paths of what is installed still, relative to the tree.
    """
    left = {folder for path in kept for folder in _folders(_SITE.sub("", path, count=1))}
    taken: dict[str, Counter[str]] = {}
    for removal in manifest.removals:
        for path, size_bytes in removal.removed.items():
            inside = _SITE.sub("", path, count=1)
            module = _EXTENSION.sub("", inside)
            if (
                module == inside
                or "__pycache__" in inside
                or not all(part.isidentifier() for part in module.split("/"))
            ):
                continue
            gone = next((folder for folder in _folders(inside) if folder not in left), module)
            name = gone.replace("/", ".").removesuffix(".__init__")
            taken.setdefault(name, Counter())[removal.rule] += size_bytes
    return {name: rules.most_common(1)[0][0] for name, rules in sorted(taken.items())}


def write_messages(manifest: SlimManifest, site: Path, kept: Iterable[str]) -> None:
    """Writes the module and the .pth file that starts it into a site-packages folder."""
    missing = missing_modules(manifest, kept)
    lost = {removal.rule: removal.lost for removal in manifest.removals if removal.rule in set(missing.values())}
    rows = "".join(f"        {module!r}: {rule!r},\n" for module, rule in missing.items())
    texts = "".join(f"        {rule!r}: {text!r},\n" for rule, text in sorted(lost.items()))
    site.mkdir(parents=True, exist_ok=True)
    finder = _FINDER.read_text("utf-8")
    table = f"\n\ninstall(\n    {{\n{rows}    }},\n    {{\n{texts}    }},\n)\n"
    (site / f"{MODULE}.py").write_text(finder + table, "utf-8")
    (site / f"{MODULE}.pth").write_text(f"import {MODULE}\n", "utf-8")


def _folders(path: str) -> list[str]:
    """The folders that a path lies in, outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
