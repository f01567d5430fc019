from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit.binary import fatbin
from buildkit.binary.elf import UnsupportedBinary
from buildkit.errors import UsageError
from tests.support.corruption import corrupt_copies
from tests.support.elf import EntrySpec, container
from tests.support.strategies import CONTAINERS, FLAG_A, FLAG_F, TARGETS

# The number of corrupt containers, each with a few bytes changed or cut off; the same in every run.
CORRUPT_INPUTS = 10_000


def spec(name: str) -> EntrySpec:
    """`sm_90a`, `compute_75`, `lto_75` as an entry."""
    prefix, _, rest = name.partition("_")
    flags = 0x11 | (FLAG_A if rest.endswith("a") else 0) | (FLAG_F if rest.endswith("f") else 0)
    kind = {"sm": 2, "compute": 1, "lto": 8}[prefix]
    return EntrySpec(kind=kind, architecture=int(rest.rstrip("af")), flags=flags)


def kept(names: str, *targets: int) -> list[str]:
    (parsed,) = fatbin.parse_containers(container(*(spec(name) for name in names.split())))
    return [entry.name for entry in fatbin.usable_entries(parsed, frozenset(targets))]


@pytest.mark.parametrize(
    ("names", "targets", "expected"),
    [
        # a cubin runs on the same generation, at its own or a higher capability
        ("sm_75 sm_80 sm_86 sm_90", (86,), "sm_86"),
        ("sm_75 sm_80 sm_90", (89,), "sm_80"),
        ("sm_80 sm_90", (75,), ""),
        ("sm_70", (75,), "sm_70"),
        ("sm_80 sm_86", (80,), "sm_80"),
        # all entries of the best architecture stay, plain and specific
        ("sm_90 sm_90a sm_80", (90,), "sm_90 sm_90a"),
        ("sm_75 sm_75 sm_75 sm_80", (75,), "sm_75 sm_75 sm_75"),
        # `a` runs on exactly its own, `f` on its family
        ("sm_90a", (100,), ""),
        ("sm_100a compute_90", (103,), "compute_90"),
        ("sm_100f sm_100a", (103,), "sm_100f"),
        ("sm_100f", (120,), ""),
        ("sm_120f", (121,), "sm_120f"),
        ("sm_100 sm_103", (103,), "sm_103"),
        # Tegra apart from the others, in both directions
        ("sm_87 sm_80", (89,), "sm_80"),
        ("sm_80 sm_86", (87,), ""),
        ("sm_87", (87,), "sm_87"),
        # PTX only where no cubin fits, the highest that is not above
        ("sm_80 compute_90 compute_80", (90,), "compute_90"),
        ("sm_90 compute_90", (90,), "sm_90"),
        ("compute_120", (90,), ""),
        ("compute_75 compute_80 compute_120", (90,), "compute_80"),
        # LTO-IR is a linker's input: it stays in a container that is used
        ("sm_90 sm_80 lto_75", (90,), "sm_90 lto_75"),
        ("lto_75 compute_120", (90,), ""),
        # several targets keep the union
        ("sm_75 sm_80 sm_86 sm_90 sm_100", (75, 90), "sm_75 sm_90"),
        ("sm_80 compute_80 sm_90", (80, 120), "sm_80 compute_80"),
    ],
)
def test_usable_entries_are_those_the_driver_takes(names: str, targets: tuple[int, ...], expected: str) -> None:
    assert kept(names, *targets) == expected.split()


@given(CONTAINERS, TARGETS)
def test_usable_entries_more_targets_keep_more(content: bytes, targets: frozenset[int]) -> None:
    (parsed,) = fatbin.parse_containers(content)
    all_kept = set(fatbin.usable_entries(parsed, targets))

    for target in targets:
        assert set(fatbin.usable_entries(parsed, frozenset({target}))) <= all_kept


@given(st.lists(CONTAINERS, max_size=4))
def test_parse_containers_accounts_for_every_byte(contents: list[bytes]) -> None:
    section = b"".join(contents)

    parsed = fatbin.parse_containers(section)

    assert [item.offset for item in parsed] == [sum(map(len, contents[:index])) for index in range(len(contents))]
    rebuilt = b"".join(
        fatbin.pack_container_header(sum(entry.size_bytes for entry in item.entries))
        + b"".join(section[entry.offset : entry.offset + entry.size_bytes] for entry in item.entries)
        for item in parsed
    )
    assert rebuilt == section


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, b"\x00", "fatbin-magic"),
        (4, b"\x02", "fatbin-version"),
        (6, b"\x18", "fatbin-version"),
        (8, bytes(8), "fatbin-empty"),
        (8, b"\xff\xff\xff", "fatbin-truncated"),
        (16, b"\x04", "fatbin-unknown-kind"),
        (18, b"\x02\x02", "fatbin-entry-version"),
        (20, b"\x20", "fatbin-entry-header"),
        (20, b"\x41", "fatbin-entry-header"),
        (24, bytes(8), "fatbin-truncated"),
        (32, b"\xff\xff", "fatbin-entry-size"),
        (52, b"\x01", "fatbin-named-entry"),
        (56, b"\x51", "fatbin-unknown-flags"),
        (58, b"\x30", "fatbin-unknown-flags"),
    ],
)
def test_parse_containers_unknown_field_raises(offset: int, value: bytes, reason: str) -> None:
    content = bytearray(container(EntrySpec()))
    content[offset : offset + len(value)] = value

    with pytest.raises(UnsupportedBinary) as refusal:
        fatbin.parse_containers(content)

    assert refusal.value.reason == reason


def test_usable_entries_unknown_family_raises() -> None:
    with pytest.raises(UnsupportedBinary, match="fatbin-unknown-family"):
        kept("sm_90f", 90)


def test_corrupt_containers_are_read_completely_or_raise() -> None:
    """Each corrupt container is parsed to its last byte, or raises UnsupportedBinary."""
    intact = b"".join(container(spec("sm_80"), spec("sm_90a"), spec("compute_120"), spec("lto_75")) for _ in range(3))
    refused = 0
    for content in corrupt_copies(intact, CORRUPT_INPUTS, seed=20260, places=range(len(intact))):
        try:
            parsed = fatbin.parse_containers(content)
            assert sum(item.size_bytes for item in parsed) == len(content)
            for item in parsed:
                fatbin.usable_entries(item, frozenset({80, 90}))
        except UnsupportedBinary:
            refused += 1
    assert 0 < refused < CORRUPT_INPUTS


@pytest.mark.parametrize(("value", "target"), [("9.0", 90), ("90", 90), ("sm_90", 90), (" 12.1 ", 121), ("8.6", 86)])
def test_parse_target_accepts_each_notation(value: str, target: int) -> None:
    assert fatbin.parse_target(value) == target
    assert fatbin.parse_target(fatbin.target_name(target)) == target


@pytest.mark.parametrize("value", ["", "9", "9.9", "hopper", "sm_90a", "99", "9.0.0"])
def test_parse_target_unknown_raises(value: str) -> None:
    with pytest.raises(UsageError, match=r"9\.0") as error:
        fatbin.parse_target(value)

    assert error.value.value == value
