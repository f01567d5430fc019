"""Generates containers and libraries for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support.elf import EntrySpec, LibrarySpec, container

FLAG_A = 0x100000
FLAG_F = 0x200000

ARCHITECTURES = (52, 70, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
TARGETS = st.frozensets(st.sampled_from((75, 80, 86, 87, 89, 90, 100, 103, 120, 121)), min_size=1, max_size=4)


@st.composite
def entries(draw: st.DrawFn) -> EntrySpec:
    """Draws an entry of any kind, with a payload of some bytes to some pages."""
    kind = draw(st.sampled_from((1, 2, 2, 2, 8)))
    architecture = draw(st.sampled_from(ARCHITECTURES))
    specific = draw(st.sampled_from((0, 0, 0, FLAG_A, FLAG_F))) if kind != 8 else 0
    if specific == FLAG_F and architecture not in {100, 103, 110, 120, 121}:
        specific = FLAG_A
    seed = draw(st.binary(min_size=1, max_size=8))
    return EntrySpec(
        kind=kind,
        architecture=architecture,
        flags=0x11 | specific | draw(st.sampled_from((0, 0x2000, 0x8000))),
        header_bytes=draw(st.sampled_from((64, 72, 80, 96, 104, 112, 128))),
        payload=seed * draw(st.sampled_from((1, 7, 300, 1500))),
    )


CONTAINERS = st.lists(entries(), min_size=1, max_size=5).map(lambda specs: container(*specs))


@st.composite
def libraries(draw: st.DrawFn) -> LibrarySpec:
    """Draws a shared object with GPU code, in any of the layouts of real libraries."""
    fatbin = draw(st.lists(CONTAINERS, min_size=1, max_size=6))
    return LibrarySpec(
        fatbin=fatbin,
        relocatable=draw(st.lists(CONTAINERS, max_size=3)),
        unwrapped=draw(st.integers(0, 1)) if len(fatbin) > 1 else 0,
        page_bytes=draw(st.sampled_from((0x1000, 0x10000))),
        has_symbols=draw(st.booleans()),
        is_extended=draw(st.booleans()),
        has_table_segment=draw(st.booleans()),
    )
