"""Formats and parses the text that several packages share: distribution names, byte sizes and counts."""

from __future__ import annotations

import re
from typing import Final

from packaging.utils import canonicalize_name

__all__ = ["canonical_name", "format_byte_change", "format_bytes", "format_count", "parse_bytes"]

# Not humanize: it has one number of decimals for all units (53.60 MB beside 7.93 GB), and does not parse.
_SHOWN_UNITS: Final = (("GB", 10**9, 2, 999_950_000), ("MB", 10**6, 1, 999_950), ("kB", 10**3, 1, 999.5))
"""Unit, its bytes, its decimals, and the smallest size that is shown in it: a smaller unit would round up to 1000."""
_UNITS: Final = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}


def canonical_name(distribution: str) -> str:
    """Returns the canonical name of a Python distribution (PyPA specification "Names and normalization").

    >>> canonical_name("Foo._Bar")
    'foo-bar'
    """
    return canonicalize_name(distribution)


def format_bytes(size_bytes: float) -> str:
    """Returns a size in decimal units: 1 GB is 10^9 bytes.

    >>> [format_bytes(size) for size in (7_930_000_000, 53_600_000, 1_100, 12)]
    ['7.93 GB', '53.6 MB', '1.1 kB', '12 B']
    """
    for unit, factor, digits, smallest_bytes in _SHOWN_UNITS:
        if abs(size_bytes) >= smallest_bytes:
            return f"{size_bytes / factor:.{digits}f} {unit}"
    return f"{size_bytes:.0f} B"


def format_byte_change(before_bytes: float, after_bytes: float) -> str:
    """Returns the difference of two sizes with its sign.

    >>> [format_byte_change(1_000_000, after) for after in (2_500_000, 400_000, 1_000_000)]
    ['+1.5 MB', '-600.0 kB', '0 B']
    """
    if before_bytes == after_bytes:
        return "0 B"
    return ("+" if after_bytes > before_bytes else "-") + format_bytes(abs(after_bytes - before_bytes))


def format_count(count: int, noun: str) -> str:
    """Returns a number with its noun, which takes an "s" unless the number is 1.

    >>> [format_count(count, "file") for count in (0, 1, 1234)]
    ['0 files', '1 file', '1,234 files']
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def parse_bytes(text: str) -> int:
    """Returns the bytes of a size in decimal units ("5.5 GB", "1.2kB"), binary units ("5.5 GiB"), or bytes ("12").

    >>> [parse_bytes(size) for size in ("1.5 kB", "1.5 KiB", "12")]
    [1500, 1536, 12]

    Raises:
        ValueError: it is not a number with such a unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f'{text!r} is not a size: write "1.5 GB" (10^9 bytes) or "1.5 GiB" (2^30)')
    return round(float(match[1]) * float(_UNITS[match[2].lower()]))
