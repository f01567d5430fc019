"""Writes the Python placeholders: modules that raise on import, and packages that raise when a name is used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit.slim.placeholders.kinds import removal_message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit.slim.placeholders.kinds import RemovalRule


__all__ = ["module_placeholder", "package_placeholder"]

_PACKAGE_TEMPLATE: Final = Path(__file__).with_name("package.py")
_NAMES: Final = re.compile(rb"^__all__ = \[(.*?)\]", re.MULTILINE | re.DOTALL)
_NAME: Final = re.compile(rb"""["'](\w+)["']""")


def module_placeholder(sources: Iterable[bytes], folder: str, rule: RemovalRule) -> bytes:
    """Returns a module with the names that these modules of a folder export; importing it raises."""
    names = sorted({name.decode() for source in sources for name in _exported(source)})
    message = removal_message(folder.replace("/", "."), rule.name, rule.lost)
    listed = ", ".join(f'"{name}"' for name in names)
    return (
        f'"""Placeholder for removed modules."""\n\n__all__ = [{listed}]\n\n'
        f"raise ModuleNotFoundError({message!r}, name=__name__)\n"
    ).encode()


def package_placeholder(package: str, rule: RemovalRule) -> bytes:
    """Returns a package with every name; calling one raises.

    Args:
        package: one of the rule's `placeholder_packages`, as a path.
        rule: the rule that removes it.
    """
    prefix = f"{package}/"
    parts = tuple(part.removeprefix(prefix) for part in rule.placeholder_packages if part.startswith(prefix))
    constants = f"\n\nMESSAGE = {removal_message('', rule.name, rule.lost)!r}\nPARTS = {parts!r}\n"
    return _PACKAGE_TEMPLATE.read_bytes() + constants.encode()


def _exported(source: bytes) -> list[bytes]:
    return [name for listed in _NAMES.findall(source) for name in _NAME.findall(listed)]
