"""Dedup marks of one task: what is known of the ids seen within the window (protocol rules 19-21).

A mark is filed under the stream time after its record moved it and protects until that plus the window. It is stored
by bucket of that time, so that expiry is the removal of whole buckets; whether a mark still counts is always decided by
comparing times, never by what has been removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from struct import Struct
from typing import Any, ClassVar, NamedTuple

from semel.dedup import Ids
from semel.port import Record
from semel.state.state_log import KEPT
from semel.state.store import Store, StoreBatch, bucket_prefix

_MARK = Struct(">qqqQB")

READINGS_MAX = 100  # a page of a person
# Among so many marks in a row one at least is of an event that was not ahead: three that are move stream time.
LATEST_MARKS = 100
# 2 stands for a mark that a proof does not find any more.
DONE, DEAD, PARKED = 0, 1, 3
# Of the last byte of a mark: what is the outcome's, and from where on the revision stands.
OUTCOME_BITS, REVISION_BIT = 3, 2
OUTCOMES = {DONE: "accepted", DEAD: "dead-lettered", PARKED: "parked"}


class Mark(NamedTuple):
    """`offset`: the first record's position in the task's source partition, or that of the replay which was accepted last; times
    in ms. `payload`: the first record's. `revision`: of that replay, 0 where there was none.

    Packed, the revision stands above the two bits of the outcome, in the same byte: marks of versions that knew of no replays
    have 0 there.
    """

    offset: int
    event_time: int
    filed_at: int
    payload: int
    outcome: int
    revision: int = 0

    def pack(self) -> bytes:
        return _MARK.pack(*self[:4], self.outcome | self.revision << REVISION_BIT)


def unpack(raw: bytes) -> Mark:
    offset, event_time, filed_at, payload, last = _MARK.unpack(raw)
    return Mark(offset, event_time, filed_at, payload, last & OUTCOME_BITS, last >> REVISION_BIT)


# Offset, event time, filed at, payload, and of an event without a replay the outcome.
pack = _MARK.pack


def with_outcome(raw: bytes, outcome: int, revision: int = 0) -> bytes:
    """The same mark. Duplicates of an event that is DEAD follow it to the dead letters; of one that is PARKED nobody knows yet
    how it ends, and its duplicates are what those of one that is DONE are. `revision`: of its record."""
    mark = unpack(raw)
    return mark._replace(outcome=outcome, revision=max(mark.revision, revision)).pack()


def filed_at(raw: bytes) -> int:
    return int.from_bytes(raw[16:24], "big", signed=True)


def succeeds(one: bytes, other: bytes) -> bool:
    """Whether the first mark of two of one id is the one that counts. What is judged later is filed later, or at the same time:
    then it is a replay with a higher revision, or how that event ended which the other says is parked."""
    filed, before = filed_at(one), filed_at(other)
    if filed != before:
        return filed > before
    mark, known = unpack(one), unpack(other)
    return (mark.revision, mark.outcome != PARKED) > (known.revision, known.outcome != PARKED)


class Marks:
    """Reads see the open epoch's marks, then the sealed epoch's, then the store's.

    `replaced`: marks of the open epoch whose window ended within it, so that their id has another one now. They protect
    no more, and go to the changelog all the same: it says of every event that it took effect.
    """

    __slots__ = ("bucket_ms", "buckets", "open", "partition", "replaced", "sealed", "store", "topic", "window_ms")

    def __init__(self, store: Store, partition: int, *, window_ms: int, bucket_ms: int, topic: str = "") -> None:
        self.store = store
        self.topic = topic
        self.partition = partition
        self.window_ms = window_ms
        self.bucket_ms = bucket_ms
        self.open: dict[bytes, bytes] = {}
        self.sealed: dict[bytes, bytes] = {}
        self.replaced: dict[tuple[bytes, bytes], None] = {}
        # bucket -> the smallest changelog offset of a mark in it (-1: not known); only buckets in the store
        self.buckets: dict[int, int] = {}

    def stored(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """The marks of `ids` that the store holds, of each the one that counts, by one lookup per bucket."""
        marks: dict[bytes, bytes] = {}
        for bucket in sorted(self.buckets):
            for key, value in zip(ids, self.store.get_marks(bucket_prefix(self.partition, bucket), ids), strict=True):
                if value is not None:
                    before = marks.get(key)
                    if before is None or succeeds(value, before):
                        marks[key] = value
        return marks

    def known(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """The marks of `ids` that there are, committed or not."""
        marks = self.stored(ids) if self.buckets else {}
        for newer in (self.sealed, self.open):
            if newer:
                for id in [id for id in ids if id in newer]:
                    marks[id] = newer[id]
        return marks

    def find_committed(self, key: bytes) -> bytes | None:
        return self.stored((key,)).get(key)

    def find_readings(self, ids: Ids) -> list[tuple[bytes, bytes]]:
        """The committed marks of what may be meant, and of keys that begin so: at most `READINGS_MAX` of them."""
        readings = self.stored(ids.keys)
        for bucket in sorted(self.buckets):
            for beginning in ids.beginnings:
                marks = self.store.scan_ids(bucket_prefix(self.partition, bucket), beginning)
                readings.update(islice(marks, READINGS_MAX - len(readings)))
        return list(readings.items())

    def mark(self, key: bytes, value: bytes) -> None:
        """The mark of an event in the open epoch. One of the same id whose window ended within it is written, too."""
        if key in self.open:
            self.replaced[(key, self.open[key])] = None
        self.open[key] = value

    def amend(self, key: bytes, value: bytes, stream_ms: int | None) -> None:
        """How an event ended that was parked; `value`: its mark. One whose window is over protects no more: its id may have
        another one by now."""
        if stream_ms is None or filed_at(value) + self.window_ms >= stream_ms:
            self.open[key] = value

    # -- as a state log

    topic_config: ClassVar[Mapping[str, str]] = {"cleanup.policy": "delete", **KEPT, "segment.bytes": str(16 << 20)}

    @property
    def touched(self) -> bool:
        return bool(self.open)

    def seal(self) -> list[tuple[bytes, bytes | None]]:
        written: list[tuple[bytes, bytes | None]] = [*self.replaced, *self.open.items()]
        self.sealed, self.open, self.replaced = self.open, {}, {}
        return written

    def land(self, batch: StoreBatch, first_offset: int, stream_ms: int | None) -> None:
        if self.sealed:
            self.file(batch, self.sealed.items(), first_offset, stream_ms)
        self.expire(batch, stream_ms)

    def landed(self) -> None:
        self.sealed = {}

    def drop(self) -> None:
        self.open, self.sealed, self.replaced = {}, {}, {}

    def replay(self, batch: StoreBatch, records: Sequence[Record]) -> None:
        marks = {r.key: r.value for r in records if r.key is not None and r.value is not None}
        if records:
            # The position, with the stream time, comes last. Marks are filed under it, or ahead of it, and it never goes
            # back: so it was the least of the latest, or not much later.
            stream_ms = min(map(filed_at, list(marks.values())[-LATEST_MARKS:]), default=None)
            self.file(batch, marks.items(), records[0].offset, stream_ms)

    def noted(self) -> dict[str, Any]:
        return {"buckets": {str(b): o for b, o in self.buckets.items()}, "window_ms": self.window_ms}

    def recall(self, noted: Mapping[str, Any]) -> None:
        self.buckets = {int(b): o for b, o in noted.get("buckets", {}).items()}

    def expire(self, batch: StoreBatch, stream_ms: int | None) -> None:
        if stream_ms is not None:
            self.drop_buckets(batch, self.expired(stream_ms))

    @property
    def holds_any(self) -> bool:
        return bool(self.buckets)

    # -- in the store

    def file(
        self, batch: StoreBatch, marks: Iterable[tuple[bytes, bytes]], first_offset: int, stream_ms: int | None = None
    ) -> None:
        """File marks by their bucket. `first_offset` is the changelog offset of the first of them.

        Each bucket costs every lookup. Marks of events far ahead of stream time (`stream_ms`) share buckets that are the
        wider the further ahead they are, so that there are two for each doubling of the distance, whatever times events
        bear. A mark is in the bucket of its own time or in a later one: it is never gone too early.
        """
        by_bucket: dict[int, dict[bytes, bytes]] = {}
        size = self.bucket_ms
        near = None if stream_ms is None else (stream_ms + 2 * self.window_ms) // size
        number = int.from_bytes
        for key, value in marks:
            # As `filed_at`, without its call.
            bucket = number(value[16:24], "big", signed=True) // size
            if near is not None and bucket > near:
                width = 1 << max(0, (bucket - near).bit_length() - 2)
                bucket = -(-bucket // width) * width
            by_bucket.setdefault(bucket, {})[key] = value
        for bucket, changes in by_bucket.items():
            batch.marks(bucket_prefix(self.partition, bucket), changes)
            # One that is not known stays so: the log is not trimmed past it.
            self.buckets[bucket] = min(self.buckets.get(bucket, first_offset), first_offset)

    def expired(self, stream_time_ms: int) -> list[int]:
        """Buckets in which no mark can protect any more at this stream time."""
        horizon = stream_time_ms - self.window_ms
        return sorted(b for b in self.buckets if (b + 1) * self.bucket_ms <= horizon)

    def drop_buckets(self, batch: StoreBatch, buckets: Iterable[int]) -> None:
        for bucket in buckets:
            batch.drop_bucket(self.partition, bucket)
            del self.buckets[bucket]

    def first_live_offset(self) -> int | None:
        """Up to here the marks changelog may be trimmed; None where that is not known."""
        offsets = self.buckets.values()
        return min(offsets) if offsets and min(offsets) >= 0 else None
