"""Offsets are kept a bit each, and written as ranges."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from semel.dead_letters.offset_set import OffsetSet, holds, read, written

OFFSETS = st.sets(st.integers(0, 40_000) | st.integers(2**40, 2**40 + 100), max_size=60)


@given(OFFSETS, st.integers(0, 40_000))
def test_it_holds_what_was_added_and_nothing_else(offsets: set[int], other: int) -> None:
    held = OffsetSet([*offsets, *offsets])
    assert held.count == len(offsets)
    assert all(offset in held for offset in offsets)
    assert (other in held) == (other in offsets)


@given(OFFSETS)
def test_what_is_written_is_read_back(offsets: set[int]) -> None:
    text = written(sorted(offsets))
    assert list(read(text)) == sorted(offsets)
    assert all(holds(text, offset) for offset in offsets)
    assert not any(holds(text, offset + 1) for offset in offsets if offset + 1 not in offsets)


def test_ranges_are_written_as_such() -> None:
    assert written([17, 18, 19, 25, 30, 31]) == "17-19,25,30-31"
    assert (written([]), list(read(""))) == ("", [])


def test_a_million_offsets_take_less_than_a_megabyte() -> None:
    tracemalloc.start()
    held = OffsetSet(range(0, 2_000_000, 2))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held.count == 1_000_000
    assert size < 1 << 20
