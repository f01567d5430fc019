from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from buildkit.binary import elf
from tests.support.elf import LibrarySpec


def test_parse_reads_tables_and_dynamic_names() -> None:
    content = LibrarySpec(is_extended=True, has_table_segment=True).build()

    parsed = elf.parse(content)

    assert [section.name for section in parsed.sections if section.is_allocated] == [
        ".dynsym",
        ".dynstr",
        ".rela.dyn",
        ".text",
        ".rodata",
        ".dynamic",
        ".data",
        ".moved",
    ]
    assert len(parsed.loads) == 3
    assert elf.read_dynamic_names(content, parsed) == elf.DynamicNames(
        needed=("libneeded.so.1",), soname="libsynthetic.so", runpath="$ORIGIN"
    )


def test_parse_reads_this_interpreter() -> None:
    """A real file of an unknown linker, which needs a C library."""
    path = Path(sys.executable).resolve()
    content = elf.map_file(path)

    parsed = elf.parse(content)

    assert any(name.startswith(("libc.so", "libpython")) for name in elf.read_dynamic_names(content, parsed).needed)
    assert parsed.file_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, b"\x7fELG", "elf-magic"),
        (4, b"\x01", "elf-class"),
        (5, b"\x02", "elf-byte-order"),
        (6, b"\x02", "elf-version"),
        (18, b"\x03\x00", "elf-machine"),
        (54, b"\x20\x00", "elf-table-entry-size"),
        (56, b"\xff\xff", "elf-extended-numbering"),
        (60, b"\x00\x00", "elf-extended-numbering"),
        (62, b"\xff\xfe", "elf-section-names"),
        (40, b"\xff\xff\xff\xff", "elf-truncated"),
        (32, b"\xff\xff\xff\xff", "elf-truncated"),
    ],
)
def test_parse_unknown_feature_raises(offset: int, value: bytes, reason: str) -> None:
    content = bytearray(LibrarySpec().build())
    content[offset : offset + len(value)] = value

    with pytest.raises(elf.UnsupportedBinary) as refusal:
        elf.parse(content)

    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("alignment", 3, "elf-alignment"), ("offset", 8, "elf-alignment"), ("memory", 1, "elf-segment")],
)
def test_parse_segment_no_loader_accepts_raises(field: str, value: int, reason: str) -> None:
    content = bytearray(LibrarySpec().build())
    offset = elf.ELF_HEADER_BYTES + {"offset": 8, "memory": 40, "alignment": 48}[field]
    struct.pack_into("<Q", content, offset, value)

    with pytest.raises(elf.UnsupportedBinary) as refusal:
        elf.parse(content)

    assert refusal.value.reason == reason


def test_file_offset_of_unmapped_address_raises() -> None:
    parsed = elf.parse(LibrarySpec().build())

    assert parsed.file_offset_of(0x40) == 0x40
    with pytest.raises(elf.UnsupportedBinary, match="elf-unmapped-address"):
        parsed.file_offset_of(1 << 40)
