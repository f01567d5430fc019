"""Placeholder for a removed package: every name can be imported from it, and using one raises an ImportError.

This file is copied into the site-packages of a slimmed tree, with its two constants appended, for each of a rule's
`placeholder_packages`. A program that only imports names and uses them in type tests works. Calling a name, or reading
an attribute of it, raises an ImportError with the name and the rule.
"""

from __future__ import annotations

import importlib

MESSAGE = ""  # the error message, without the name
PARTS: tuple[str, ...] = ()  # the modules inside that have placeholders too

__version__ = "0"  # lower than any version that a program requires


class _RemovedName(type):
    """The type of every name: a metaclass, so that names can be used in isinstance, as bases and in annotations."""

    full_name: str

    def __call__(cls, *args: object, **kwargs: object) -> object:
        del args, kwargs
        raise ImportError(f"{cls.full_name}{MESSAGE}", name=__name__)

    def __getattr__(cls, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls()


def __getattr__(name: str) -> object:
    if name in PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    if name.startswith("__"):
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    removed = _RemovedName(name, (), {"__module__": __name__, "full_name": f"{__name__}.{name}"})
    return globals().setdefault(name, removed)
