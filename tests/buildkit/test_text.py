"""Formats and parses sizes and names, for any value."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit import text
from buildkit.text import canonical_name, format_byte_change, format_bytes, parse_bytes

SIZES = st.integers(0, 10**13)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(text)
    assert result.failed == 0
    assert result.attempted >= 4


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("Foo._Bar", "foo-bar"), ("a__b", "a-b"), ("zope.interface", "zope-interface"), ("torch", "torch")],
)
def test_name_is_canonical(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical


@given(st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", fullmatch=True))
def test_canonical_name_stays_the_same(name: str) -> None:
    assert canonical_name(canonical_name(name)) == canonical_name(name)


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (53_649_999, "53.6 MB"),
        (7_930_000_000, "7.93 GB"),
        (5 * 10**12, "5000.00 GB"),
        (-1500, "-1.5 kB"),
        (0.4, "0 B"),
    ],
)
def test_size_is_shown_in_decimal_units(size_bytes: float, shown: str) -> None:
    assert format_bytes(size_bytes) == shown


@given(SIZES)
def test_size_is_never_shown_as_a_thousand_of_a_unit(size_bytes: int) -> None:
    assert not format_bytes(size_bytes).startswith("1000") or size_bytes >= 10**12


@pytest.mark.parametrize(
    ("size_bytes", "shown"), [(999_949, "999.9 kB"), (999_950, "1.0 MB"), (999_999_999, "1.00 GB"), (999, "999 B")]
)
def test_size_just_below_a_unit_is_rounded_to_it(size_bytes: int, shown: str) -> None:
    assert format_bytes(size_bytes) == shown


@given(SIZES)
def test_shown_size_is_parsed_to_nearly_the_same(size_bytes: int) -> None:
    assert parse_bytes(format_bytes(size_bytes)) == pytest.approx(size_bytes, rel=0.05)


@given(SIZES, SIZES)
def test_change_has_the_sign_of_the_difference(before_bytes: int, after_bytes: int) -> None:
    shown = format_byte_change(before_bytes, after_bytes)
    expected = "+" if after_bytes > before_bytes else "-" if after_bytes < before_bytes else ""
    assert shown.startswith(expected)
    assert shown.removeprefix(expected) == format_bytes(abs(after_bytes - before_bytes))


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [
        ("12", 12),
        ("12 B", 12),
        ("1.2kB", 1200),
        ("1.5 MB", 1_500_000),
        ("5.5 GB", 5_500_000_000),
        ("2 TB", 2 * 10**12),
        ("1 KiB", 1024),
        ("1.5gib", 3 << 29),
        (" 3 mb ", 3_000_000),
    ],
)
def test_size_is_parsed(size: str, size_bytes: int) -> None:
    assert parse_bytes(size) == size_bytes


@pytest.mark.parametrize("wrong", ["", "MB", "-1", "1.2.3", "1 PB", "1,5 GB", "1e9", "five GB", ".5 GB"])
def test_text_that_is_not_a_size_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a size: write"):
        parse_bytes(wrong)
