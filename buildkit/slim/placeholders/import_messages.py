"""Installs the import hook: a module and a .pth file that explain failed imports of removed modules."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit.slim.placeholders.kinds import removal_message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit.slim.manifest import SlimManifest

__all__ = ["HOOK_MODULE", "install_import_hook", "missing_modules"]

HOOK_MODULE: Final = "slim_import_hook"
"""The name of the hook in site-packages; `slim_import_hook.pth` starts it."""
_HOOK_TEMPLATE: Final = Path(__file__).with_name("import_hook.py")
_SITE: Final = re.compile(r"(?:lib/python3\.\d+/site-packages/)?")
_EXTENSION: Final = re.compile(r"\.(?:py|(?:cpython-\w+-[\w-]+|abi3)\.so|so)$")


def missing_modules(manifest: SlimManifest, installed: Iterable[str]) -> dict[str, str]:
    """Returns the removed modules and packages, each with the rule that removed most of its bytes.

    A package without any file left is one entry, without its modules.

    Args:
        manifest: the changes to the tree.
        installed: paths of the files that are left, relative to the tree.
    """
    left = {folder for path in installed for folder in _folders(_SITE.sub("", path, count=1))}
    removed: dict[str, Counter[str]] = {}
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
            missing = next((folder for folder in _folders(inside) if folder not in left), module)
            name = missing.replace("/", ".").removesuffix(".__init__")
            removed.setdefault(name, Counter())[removal.rule] += size_bytes
    return {name: rules.most_common(1)[0][0] for name, rules in sorted(removed.items())}


def install_import_hook(manifest: SlimManifest, site: Path, installed: Iterable[str]) -> None:
    """Writes the hook and the .pth file that starts it into a site-packages folder.

    Args:
        manifest: the changes to the tree.
        site: the folder; it is made if it does not exist.
        installed: paths of the files that are left, relative to the tree.
    """
    missing = missing_modules(manifest, installed)
    messages = {
        removal.rule: removal_message("it", removal.rule, removal.lost)
        for removal in manifest.removals
        if removal.rule in set(missing.values())
    }
    rules = "".join(f"        {module!r}: {rule!r},\n" for module, rule in missing.items())
    texts = "".join(f"        {rule!r}: {text!r},\n" for rule, text in sorted(messages.items()))
    table = f"\n\ninstall(\n    {{\n{rules}    }},\n    {{\n{texts}    }},\n)\n"
    site.mkdir(parents=True, exist_ok=True)
    (site / f"{HOOK_MODULE}.py").write_text(_HOOK_TEMPLATE.read_text("utf-8") + table, "utf-8")
    (site / f"{HOOK_MODULE}.pth").write_text(f"import {HOOK_MODULE}\n", "utf-8")


def _folders(path: str) -> list[str]:
    """Returns the folders of a path, outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
