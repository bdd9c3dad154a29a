"""Marks: filed by the bucket of their time, found in any, gone a bucket at a time."""

from __future__ import annotations

import random

import pytest

from semel.state.dedup_marks import DEAD, DONE, OUTCOMES, PARKED, Mark, Marks, filed_at, pack, unpack, with_outcome
from semel.state.store import Store
from semel.state.write_set import WriteSet


def mark(filed: int, *, offset: int = 0, payload: int = 1) -> bytes:
    return pack(offset, filed, filed, payload, DONE)


@pytest.fixture
def marks(store: Store) -> Marks:
    return Marks(store, 3, window_ms=100, bucket_ms=25)


def find(marks: Marks, id: bytes) -> bytes | None:
    return marks.known([id]).get(id)


def land(marks: Marks, found: dict[bytes, bytes], first_offset: int = 0) -> None:
    batch = marks.store.batch()
    marks.file(batch, found.items(), first_offset)
    marks.store.write(batch)


def drop(marks: Marks, stream_ms: int) -> list[int]:
    expired = marks.expired(stream_ms)
    batch = marks.store.batch()
    marks.drop_buckets(batch, expired)
    marks.store.write(batch)
    return expired


@pytest.mark.parametrize(
    "written", [Mark(0, 0, 0, 0, DONE), Mark(2**62, -1, -(2**62), 2**64 - 1, DEAD), Mark(5, 2**40, 2**41, 7, DONE),
     Mark(5, 1, 2, 7, DONE, 63), Mark(5, 1, 2, 7, DEAD, 1)],
)  # fmt: skip
def test_a_mark_is_read_back_as_it_was(written: Mark) -> None:
    assert unpack(written.pack()) == written
    assert filed_at(written.pack()) == written.filed_at
    assert written.outcome in OUTCOMES


def test_a_mark_of_a_version_without_replays_is_of_no_revision() -> None:
    assert unpack(bytes.fromhex("00000000000000070000000000000005000000000000000600000000000000ff01")) == Mark(
        7, 5, 6, 255, DEAD
    )
    assert Mark(7, 5, 6, 255, DEAD).pack() == pack(7, 5, 6, 255, DEAD)


def test_the_mark_of_a_dead_event_takes_the_revision_of_its_record() -> None:
    assert unpack(with_outcome(pack(7, 5, 6, 255, DONE), DEAD, 3)) == Mark(7, 5, 6, 255, DEAD, 3)
    assert unpack(with_outcome(Mark(7, 5, 6, 255, DONE, 3).pack(), DEAD, 3)) == Mark(7, 5, 6, 255, DEAD, 3)
    assert unpack(with_outcome(Mark(7, 5, 6, 255, DONE, 3).pack(), DEAD)) == Mark(7, 5, 6, 255, DEAD, 3)


def test_the_open_epoch_is_seen_before_the_sealed_one_before_the_store(marks: Marks) -> None:
    stored, sealed, opened = mark(1), mark(2), mark(3)
    land(marks, {b"a": stored, b"b": stored, b"c": stored})
    marks.open = {b"b": sealed, b"c": sealed}
    assert dict(marks.seal()) == {b"b": sealed, b"c": sealed}
    marks.open[b"c"] = opened
    assert [find(marks, key) for key in (b"a", b"b", b"c", b"d")] == [stored, sealed, opened, None]
    assert [marks.find_committed(key) for key in (b"a", b"b", b"c", b"d")] == [stored, stored, stored, None]
    marks.drop()
    assert find(marks, b"c") == stored


def test_of_two_stored_marks_of_one_id_the_one_filed_later_counts(marks: Marks) -> None:
    land(marks, {b"a": mark(300)})
    land(marks, {b"a": mark(10), b"b": mark(10)})
    assert marks.stored([b"a", b"b", b"c"]) == {b"a": mark(300), b"b": mark(10)}


def test_a_bucket_expires_when_no_mark_in_it_can_protect_any_more(marks: Marks) -> None:
    # A mark filed at 24, the last of its bucket, protects up to and including 124.
    land(marks, {b"a": mark(0), b"b": mark(24), b"c": mark(25)})
    assert drop(marks, 124) == []
    assert drop(marks, 125) == [0]
    assert [find(marks, key) for key in (b"a", b"b", b"c")] == [None, None, mark(25)]
    assert drop(marks, 150) == [1]
    assert marks.buckets == {}


def test_marks_from_before_1970_expire_like_others(marks: Marks) -> None:
    land(marks, {b"a": mark(-1), b"b": mark(-26), b"c": mark(0)})
    assert sorted(marks.buckets) == [-2, -1, 0]
    assert find(marks, b"a") == mark(-1)
    assert drop(marks, 75) == [-2]
    assert drop(marks, 100) == [-1]
    assert [find(marks, key) for key in (b"a", b"b", b"c")] == [None, None, mark(0)]


def test_the_changelog_may_be_trimmed_to_the_first_mark_of_any_live_bucket(marks: Marks) -> None:
    assert marks.first_live_offset() is None
    land(marks, {b"a": mark(0), b"b": mark(30)}, 10)
    land(marks, {b"c": mark(1), b"d": mark(60)}, 20)
    assert marks.buckets == {0: 10, 1: 10, 2: 20}
    assert marks.first_live_offset() == 10
    drop(marks, 150)
    assert marks.first_live_offset() == 20


@pytest.mark.parametrize("offsets", [(-1, 500), (500, -1)])
def test_nothing_is_trimmed_while_it_is_not_known_where_the_marks_of_a_live_bucket_begin(
    marks: Marks, offsets: tuple[int, int]
) -> None:
    # A broker that answers a repeated Produce may leave out where the records went.
    for n, offset in enumerate(offsets):
        land(marks, {bytes([n]): mark(0)}, offset)
    land(marks, {b"x": mark(30)}, 600)
    assert marks.first_live_offset() is None
    drop(marks, 125)
    assert marks.first_live_offset() == 600


def test_marks_of_a_batch_that_is_left_out_of_an_epoch_are_all_in_the_next(marks: Marks) -> None:
    """Seed 830115: of an id that came again after its window, within one batch, the first mark was not written."""
    writes, first, again = WriteSet(), mark(0), mark(300, offset=3)
    writes.marks += [(b"id", first), (b"id", again)]
    assert marks.seal() == []
    writes.fold(marks)
    assert find(marks, b"id") == again
    assert marks.seal() == [(b"id", first), (b"id", again)]


def test_marks_of_a_batch_that_fails_leave_no_trace(marks: Marks) -> None:
    writes = WriteSet()
    writes.marks += [(b"id", mark(0)), (b"id", mark(300, offset=3))]
    writes.drop()
    writes.fold(marks)
    assert marks.seal() == []


def test_events_of_random_times_ahead_share_few_buckets_and_are_protected_as_long(store: Store) -> None:
    rng = random.Random(5)
    marks = Marks(store, 3, window_ms=60_000, bucket_ms=15_000)
    stream, most = 1_600_000_000_000, 0
    ahead = 365 * 86_400_000
    filed: dict[bytes, int] = {}
    for n in range(400):
        stream += rng.randrange(30_000)
        found: dict[bytes, bytes] = {}
        for m in range(5):
            at = stream + (rng.randrange(ahead) if m % 2 else 0)
            found[b"%d-%d" % (n, m)] = mark(at)
            filed[b"%d-%d" % (n, m)] = at
        batch = store.batch()
        marks.file(batch, found.items(), n, stream)
        marks.drop_buckets(batch, marks.expired(stream))
        store.write(batch)
        most = max(most, len(marks.buckets))
    assert most < 80
    protected = [key for key, at in filed.items() if stream <= at + 60_000]
    assert len(protected) > 700
    assert marks.stored(protected).keys() == set(protected)
    drop(marks, stream + 2 * ahead)
    assert marks.buckets == {}


@pytest.mark.parametrize("filed", [60, 50])
@pytest.mark.parametrize("outcome", [PARKED, DONE, DEAD])
@pytest.mark.parametrize("in_order", [True, False])
def test_the_mark_of_a_replay_counts_and_not_that_of_the_dead_event_whatever_buckets_they_are_in(
    marks: Marks, filed: int, outcome: int, in_order: bool
) -> None:
    """One that was filed while stream time was far behind it is in a later bucket than its time's."""
    dead, replayed = Mark(1, 50, 50, 1, DEAD).pack(), Mark(2, 50, filed, 1, outcome, 1).pack()
    for raw, stream_ms in ((dead, -2_000), (replayed, 50)) if in_order else ((replayed, -2_000), (dead, 50)):
        batch = marks.store.batch()
        marks.file(batch, [(b"a", raw)], 0, stream_ms)
        marks.store.write(batch)
    assert len(marks.buckets) == 2
    assert find(marks, b"a") == replayed


@pytest.mark.parametrize("outcome", [DONE, DEAD])
@pytest.mark.parametrize("in_order", [True, False])
def test_how_a_parked_event_ended_counts_whatever_buckets_its_marks_are_in(
    marks: Marks, outcome: int, in_order: bool
) -> None:
    parked, ended = Mark(1, 50, 50, 1, PARKED).pack(), Mark(1, 50, 50, 1, outcome).pack()
    for raw, stream_ms in ((parked, -2_000), (ended, 50)) if in_order else ((ended, -2_000), (parked, 50)):
        batch = marks.store.batch()
        marks.file(batch, [(b"a", raw)], 0, stream_ms)
        marks.store.write(batch)
    assert find(marks, b"a") == ended


def test_of_two_marks_the_one_filed_later_counts_whatever_bucket_they_share(marks: Marks) -> None:
    """The first was far ahead when it was filed, in a wide bucket; the second when time had come there."""
    batch = marks.store.batch()
    marks.file(batch, [(b"a", mark(100_001))], 0, 0)
    marks.file(batch, [(b"a", mark(100_300))], 1, 100_250)
    marks.store.write(batch)
    first, second = sorted(marks.buckets, key=marks.buckets.__getitem__)
    assert first > second
    assert find(marks, b"a") == mark(100_300)
