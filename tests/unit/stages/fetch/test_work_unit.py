"""Records that a runner is at: which, up to where, and the event times of those that are done."""

from __future__ import annotations

from typing import Any

from semel.memory.batch import MemoryRecord
from semel.port import NO_TIMESTAMP, TP
from semel.stages.fetch.work_unit import WorkUnit
from semel.state.task import Cursor, FetchedBatch, Task


def unit_of(*timestamps: int, start: int = 0, end: int | None = None) -> WorkUnit:
    """Of records at offsets 10, 20, ..., followed by something that is no record."""
    records: list[Any] = [MemoryRecord(at, b"k", b"v", offset=10 * n) for n, at in enumerate(timestamps, 1)]
    fetched = FetchedBatch(records, 10 * len(records) + 5)
    fetched.start = start
    agent: Any = None
    return WorkUnit(Cursor(Task(0), TP("payments", 0), agent), fetched, len(records) if end is None else end, 0)


def test_its_position_is_the_record_in_hand_and_after_the_last_what_comes_behind_all_of_them() -> None:
    unit = unit_of(1, 2, 3)
    assert unit.position == unit.record.offset == 10
    unit.index = 2
    assert unit.position == unit.record.offset == 30
    unit.index = 3
    assert unit.position == 35


def test_a_part_of_a_batch_has_its_own_records_and_the_next_position_is_in_the_batch() -> None:
    unit = unit_of(1, 2, 3, 4, start=1, end=3)
    assert [record.offset for record in unit.records] == [20, 30]
    unit.index = unit.end
    assert unit.position == 40


def test_times_are_those_of_what_was_done_since_they_were_asked_for() -> None:
    unit = unit_of(100, NO_TIMESTAMP, 300, 400, 500, start=1)
    unit.timed = unit.start
    assert unit.times_done() == []
    unit.index = 4
    assert unit.times_done() == [300, 400]
    assert unit.times_done() == []
    unit.index = 5
    assert unit.times_done() == [500]


def test_where_nothing_is_to_move_stream_time_there_are_no_times() -> None:
    unit = unit_of(100, 200)
    unit.index = 2
    assert unit.times_done() == []


def test_a_record_that_is_left_out_has_no_time_and_the_others_keep_theirs() -> None:
    unit = unit_of(100, 200, NO_TIMESTAMP, 400, start=1)
    unit.timed = unit.start
    unit.leave_out(1)
    unit.index = 4
    assert unit.times_done() == [400]


def test_times_that_cannot_be_read_are_left_out() -> None:
    unit = unit_of(1, 1, 1, start=1)
    unit.timed, unit.times = unit.start, ["no time", 77]
    unit.index = 3
    assert unit.times_done() == [77]


def test_a_work_unit_ends_after_so_many_records_or_bytes_with_one_at_least() -> None:
    records: list[Any] = [MemoryRecord(0, b"k", bytes(size), offset=n) for n, size in enumerate((10, 10, 50, 10))]
    fetched = FetchedBatch(records, 4, 80)
    assert fetched.end(2, 100) == 2
    assert fetched.end(100, 100) == 4
    assert fetched.end(100, 25) == 2
    fetched.start = 2
    assert fetched.end(100, 25) == 3
