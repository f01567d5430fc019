"""A package that is gone, for what imports names from it at its start: it has every name, and says so when one is used.

Copied into the site-packages of a slimmed tree by signs.py, as each of a rule's `demanded` packages, with its two
constants behind it. What imports a name and does nothing with it but tests of type is served; what calls it or looks
into it gets an ImportError with the name and the rule.
"""

from __future__ import annotations

import importlib

WHERE = ""  # what the error says of a name
PARTS: tuple[str, ...] = ()  # the modules inside that are such packages too

__version__ = "0"  # so that whoever asks for a version at least does without


class _LeftOut(type):
    """The kind of every name: a class, so that it can be tested for, derived from and used in an annotation."""

    said_of: str

    def __call__(cls, *args: object, **kwargs: object) -> object:
        del args, kwargs
        raise ImportError(f"{cls.said_of}{WHERE}", name=__name__)

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
    given = _LeftOut(name, (), {"__module__": __name__, "said_of": f"{__name__}.{name}"})
    return globals().setdefault(name, given)
