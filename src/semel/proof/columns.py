"""Records become columns: what stands on the topics about a stretch of one source partition.

Ids and payloads are 64-bit hashes and a row is a few dozen bytes, so that a stretch of any pipeline fits in memory; who
is behind a hash is read again from the log when somebody has to be named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from semel.dedup import Dedup
from semel.errors import SemelError
from semel.port import NO_TIMESTAMP, TP, Record
from semel.stages.fetch.decode import Undecodable, decoder
from semel.topic import Topic

Rows = NDArray[Any]
Offsets = NDArray[np.int64]
Times = NDArray[np.int64]
Which = NDArray[np.bool_]

# A mark: the record at `offset` took effect (DONE) or was dead-lettered (DEAD). Times in ms.
MARK = np.dtype([("offset", "<i8"), ("id", "<u8"), ("filed", "<i8"), ("payload", "<u8"), ("outcome", "u1")])
# An output of the record at `offset`: it stands at `at` in the output partition numbered `where`.
OUTPUT = np.dtype([("offset", "<i8"), ("step", "<i4"), ("agent", "u1"), ("where", "<u4"), ("at", "<i8")])
# A dead letter of the record at `offset`, given up by an agent; it stands at `at` in the partition numbered `where`.
# `content`: a hash of its key and value; 0 where the value was left out.
LETTER = np.dtype([("offset", "<i8"), ("agent", "u1"), ("where", "<u4"), ("at", "<i8"), ("content", "<u8")])
# A source record of which no mark says that it took effect. `kind`: a `Kind`.
UNMARKED = np.dtype([("offset", "<i8"), ("id", "<u8"), ("payload", "<u8"), ("time", "<i8"), ("kind", "u1")])
# As `semel.state.dedup_marks` packs a mark.
_PACKED = np.dtype([("offset", ">i8"), ("time", ">i8"), ("filed", ">i8"), ("payload", ">u8"), ("outcome", "u1")])
# Marked records of a stretch whose ids are read again, to see that the rule is that of the marks.
SAMPLE = 200


class Kind(IntEnum):
    """What could be read of a source record."""

    KEYED = 0
    UNDECODABLE = 1
    MISSING = 2
    UNTIMED = 3


class OtherRule(SemelError):
    """The pipeline's dedup rule is not the one that its marks were made with."""


# -- columns


def empty(dtype: np.dtype[Any]) -> Rows:
    return np.empty(0, dtype)


def columns(dtype: np.dtype[Any], offset: Sequence[int] | Offsets, **others: Any) -> Rows:
    """Rows of these columns, as many as there are offsets; a column that is not given is 0."""
    rows = np.zeros(len(offset), dtype)
    rows["offset"] = offset
    for name, values in others.items():
        rows[name] = values
    return rows


def among(offsets: Offsets, ordered: Offsets) -> Which:
    """Which of `offsets` are among `ordered`, which is sorted."""
    if not len(ordered):
        return np.zeros(len(offsets), np.bool_)
    at = np.minimum(np.searchsorted(ordered, offsets), len(ordered) - 1)
    return ordered[at] == offsets


def distinct(ordered: Offsets) -> int:
    """How many different ones there are; sorted, since numpy's own hashing is several times slower."""
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + (len(ordered) > 0)


def in_order(outputs: Rows, before: tuple[int, int]) -> bool:
    """Whether outputs stand in the order of their events, after one that is of (offset, step) `before`."""
    offset, step = np.append(before[0], outputs["offset"]), np.append(before[1], outputs["step"])
    back = (offset[1:] < offset[:-1]) | ((offset[1:] == offset[:-1]) & (step[1:] < step[:-1]))
    return not back.any()


# -- of records


def offsets_of(records: Sequence[Record]) -> Offsets:
    return np.fromiter((r.offset for r in records), np.int64, len(records))


def marks_of(records: Sequence[Record]) -> tuple[Rows, int]:
    """The marks in a piece of their changelog, in its order, and how far at most an event's own time was ahead of the time it
    was filed under, in ms: producers' clocks may be ahead. ValueError for what is no mark."""
    written = [r for r in records if r.key is not None and r.value is not None]
    packed = np.frombuffer(b"".join(r.value or b"" for r in written), _PACKED)
    if len(packed) != len(written):
        raise ValueError("a record of another length than a mark has")
    ids = np.fromiter((xxhash.xxh3_64_intdigest(r.key or b"") for r in written), np.uint64, len(written))
    rows = columns(MARK, packed["offset"], id=ids, **{name: packed[name] for name in ("filed", "payload", "outcome")})
    return rows, int((packed["time"] - packed["filed"]).max(initial=0))


def content_of(record: Record) -> int:
    """A hash of key and value; never 0."""
    key = b"-" if record.key is None else b"%d:%b" % (len(record.key), record.key)
    return xxhash.xxh3_64_intdigest(key + (b"-" if record.value is None else b"+" + record.value)) or 1


class Source:
    """Reads ids, payloads and times of a source's records, as its pipeline's dedup rule says."""

    def __init__(self, topic: Topic, dedup: Dedup) -> None:
        self._topic = topic
        self._decode = decoder(topic.value)
        self._id_of = dedup.key_reader()
        self._time_of: Callable[[Any, Any], int] | None = dedup.time_reader()
        self._payload_of = dedup.payload_reader()

    def unmarked(self, records: Sequence[Record]) -> Rows:
        """The columns of records that no mark names."""
        found = [self._columns(record, value) for record, value in zip(records, self._decode(records), strict=True)]
        if not found:
            return empty(UNMARKED)
        ids, payloads, times, kinds = zip(*found, strict=True)
        return columns(
            UNMARKED, offsets_of(records), time=times, kind=kinds,
            id=np.array(ids, np.uint64), payload=np.array(payloads, np.uint64),
        )  # fmt: skip

    def _columns(self, record: Record, value: Any) -> tuple[int, int, int, Kind]:
        kind, id = self._id(value, record)
        at = payload = 0
        if kind is Kind.KEYED:
            kind, at = self._time(value, record)
            payload = self._payload_of(value, record)
        return xxhash.xxh3_64_intdigest(id), payload, at, kind

    def _id(self, value: Any, record: Record) -> tuple[Kind, bytes]:
        if type(value) is Undecodable:
            return Kind.UNDECODABLE, b""
        try:
            found = self._id_of(value, record)
        except Exception:
            return Kind.MISSING, b""
        return (Kind.KEYED, found) if type(found) is bytes else (Kind.MISSING, b"")

    def _time(self, value: Any, record: Record) -> tuple[Kind, int]:
        if self._time_of is None:
            # As the worker has it: where the timestamp is the event time, a record without one is missing something.
            return (Kind.KEYED, record.timestamp) if record.timestamp != NO_TIMESTAMP else (Kind.MISSING, 0)
        try:
            return Kind.KEYED, self._time_of(value, record)
        except Exception:
            return Kind.UNTIMED, 0

    def id_text(self, record: Record) -> str | None:
        """The dedup id as a person knows it."""
        kind, id = self._id(self._decode([record])[0], record)
        return id.decode(errors="backslashreplace") if kind == Kind.KEYED else None

    def check(self, tp: TP, records: Sequence[Record], marks: Rows) -> None:
        """OtherRule where most of the marks in a sample are not of the ids that this rule reads."""
        ids = self.unmarked(records[:SAMPLE])
        by_offset = {int(m["offset"]): int(m["id"]) for m in marks[: 4 * SAMPLE]}
        pairs = [(by_offset[int(r["offset"])], int(r["id"])) for r in ids if int(r["offset"]) in by_offset]
        wrong = sum(marked != read for marked, read in pairs)
        if wrong * 2 > len(pairs):
            raise OtherRule(
                f"the dedup rule of this pipeline reads other ids from {tp.topic} than its marks have ({wrong} of {len(pairs)} "
                "looked at): the rule or the event's type was changed since. Prove it with the code that ran"
            )


# -- of a stretch


@dataclass(slots=True)
class Stretch:
    """Everything recorded about the records of one source partition between two offsets, `start` and `end` (exclusive).

    `marks`: by offset. `records`: the offsets that are there, of committed records; `unmarked`: those of them that are
    neither marked DONE nor dead-lettered (of a pipeline without dedup: none, there are no marks). `contents`: by offset, of
    those that are dead-lettered. What stood below `gone` was deleted before it could be read. `unread`: offsets of records
    that compaction may have taken before they were read.
    """

    start: int
    end: int
    marks: Rows
    letters: Rows = field(default_factory=lambda: empty(LETTER))
    outputs: Rows = field(default_factory=lambda: empty(OUTPUT))
    records: Offsets = field(default_factory=lambda: np.empty(0, np.int64))
    unmarked: Rows = field(default_factory=lambda: empty(UNMARKED))
    contents: dict[int, int] = field(default_factory=dict[int, int])
    gone: int = 0
    unread: Offsets = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def silent(self) -> Offsets:
        """Those of `unread` that led to nothing: whether they were read, nobody can say."""
        if not len(self.unread):
            return self.unread
        told = np.sort(np.concatenate((self.marks["offset"], self.letters["offset"], self.outputs["offset"])))
        return self.unread[~among(self.unread, told)]


class Known:
    """The marks that may still protect: sorted by id, then offset. Immutable; `later` gives the next one."""

    __slots__ = ("rows",)

    def __init__(self, rows: Rows | None = None) -> None:
        self.rows = empty(MARK) if rows is None else rows

    def later(self, marks: Rows) -> Known:
        """With more marks."""
        if not len(marks):
            return self
        marks = marks[np.lexsort((marks["offset"], marks["id"]))]
        held = self.rows
        if not len(held):
            return Known(marks)
        at = np.searchsorted(held["id"], marks["id"], side="right")
        neighbour = held[np.maximum(at - 1, 0)]
        if not ((neighbour["id"] == marks["id"]) & (neighbour["offset"] > marks["offset"])).any():
            # As mostly: what comes later stands later. Putting it in place is much less than sorting all.
            return Known(np.insert(held, at, marks))
        rows = np.concatenate((held, marks))
        return Known(rows[np.lexsort((rows["offset"], rows["id"]))])

    def protecting(self, since_ms: int) -> Known:
        """Without those filed before, as soon as they are many: they change nothing but memory."""
        keep = self.rows["filed"] >= since_ms
        return self if np.count_nonzero(keep) * 8 > len(keep) * 7 else Known(self.rows[keep])

    def before(self, ids: Rows, offsets: Offsets) -> NDArray[np.intp]:
        """For each (id, offset): the row of the last mark of that id at a lower offset; -1 for none."""
        held = self.rows
        if not len(held):
            return np.full(len(ids), -1)
        at = np.searchsorted(held["id"], ids, side="right") - 1
        while True:
            same = (at >= 0) & (held["id"][at] == ids)
            too_late = same & (held["offset"][at] >= offsets)
            if not too_late.any():
                return np.where(same, at, -1)
            at = at - too_late
