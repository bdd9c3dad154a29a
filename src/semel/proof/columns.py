"""Records become columns: what stands on the topics about a stretch of one source partition.

Ids and payloads are 64-bit hashes and a row is a few dozen bytes, so that a stretch of any pipeline fits in memory; who
is behind a hash is read again from the log when somebody has to be named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from semel.state import replay
from semel.state.dedup_marks import DEAD, DONE, OUTCOME_BITS, PARKED, REVISION_BIT
from semel.topic import Topic

Rows = NDArray[Any]
Offsets = NDArray[np.int64]
Times = NDArray[np.int64]
Which = NDArray[np.bool_]

# A mark: the record at `offset` took effect (DONE) or was dead-lettered (DEAD). `revision`: of a replay, else 0. Times in ms.
MARK = np.dtype([
    ("offset", "<i8"), ("id", "<u8"), ("filed", "<i8"), ("payload", "<u8"), ("outcome", "u1"), ("revision", "u1"),
])  # fmt: skip
# An output of the record at `offset`: it stands at `at` in the output partition numbered `where`.
OUTPUT = np.dtype([("offset", "<i8"), ("step", "<i4"), ("agent", "u1"), ("where", "<u4"), ("at", "<i8")])
# The steps of outputs that were to be sent at a time, numbered from here.
LATER = 1 << 30
# Of these, the steps of those with a name, of which some are never there.
NAMED = LATER + 1_000_000_000
# A record of a log of timers, at `at` in the partition numbered `where`: the output of these was set, else it was sent.
TIMER = np.dtype([*OUTPUT.descr, ("set", "?")])
# A dead letter of the record at `offset`, given up by an agent; it stands at `at` in the partition numbered `where`.
# `content`: a hash of its key and value; 0 where the value was left out.
LETTER = np.dtype([("offset", "<i8"), ("agent", "u1"), ("where", "<u4"), ("at", "<i8"), ("content", "<u8")])
# A source record of which no mark says that it took effect. `kind`: a `Kind`. `output`: whether it has outputs. `silent`: it
# may have been compacted away before it was read. `revision`: of a replay, and whether its value was `edited`. What stream time
# was when it was decided: at least `floor`, at most `ceiling`. `calm`: a clock of event times that no single one can move.
UNMARKED = np.dtype([
    ("offset", "<i8"), ("id", "<u8"), ("payload", "<u8"), ("time", "<i8"), ("kind", "u1"),
    ("output", "?"), ("silent", "?"), ("revision", "u1"), ("edited", "?"), ("floor", "<i8"), ("ceiling", "<i8"), ("calm", "<i8"),
])  # fmt: skip
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
    # No event, but what lets a held key go on.
    SKIP = 4


class OtherRule(SemelError):
    """The pipeline's dedup rule is not the one that its marks were made with."""


# -- columns


def columns(dtype: np.dtype[Any], offset: Sequence[int] | Offsets = (), **others: Any) -> Rows:
    """Rows of these columns, as many as there are offsets; a column that is not given is 0."""
    rows = np.zeros(len(offset), dtype)
    for name, values in {"offset": offset, **others}.items():
        rows[name] = values
    return rows


def between(rows: Rows, low: int, high: int) -> Rows:
    return rows[(rows["offset"] >= low) & (rows["offset"] < high)]


def among(offsets: Offsets, ordered: Offsets) -> Which:
    """Which of `offsets` are among `ordered`, which is sorted."""
    if not len(ordered):
        return np.zeros(len(offsets), np.bool_)
    at = np.minimum(np.searchsorted(ordered, offsets), len(ordered) - 1)
    return ordered[at] == offsets


def distinct(ordered: Offsets) -> int:
    """How many different ones there are; sorted, since numpy's own hashing is several times slower."""
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + (len(ordered) > 0)


def events_of(rows: Rows) -> Offsets:
    """For each output or dead letter a number that is its event's, as its agent handled it."""
    return (rows["offset"] << 8) | rows["agent"]


def still_pending(timers: Rows, sent: Rows) -> Rows:
    """As outputs, those timers that were set last and not sent, and of which no output is there. `timers`: TIMER rows of some
    events, `sent`: outputs of the same."""
    timers = timers[np.lexsort((timers["at"], timers["step"], events_of(timers)))]
    event = events_of(timers)
    last = np.append((event[1:] != event[:-1]) | (timers["step"][1:] != timers["step"][:-1]), True)[: len(timers)]
    pending = timers[last & timers["set"]]
    there = {*zip(events_of(sent).tolist(), sent["step"].tolist(), strict=True)} if len(pending) else set[Any]()
    places = zip(events_of(pending).tolist(), pending["step"].tolist(), strict=True)
    pending = pending[np.fromiter((place not in there for place in places), np.bool_, len(pending))]
    return columns(OUTPUT, pending["offset"], **{name: pending[name] for name in ("step", "agent", "where", "at")})


def in_order(outputs: Rows, before: tuple[int, int]) -> bool:
    """Whether outputs stand in the order of their events, after one that is of (offset, step) `before`."""
    offset, step = np.append(before[0], outputs["offset"]), np.append(before[1], outputs["step"])
    back = (offset[1:] < offset[:-1]) | ((offset[1:] == offset[:-1]) & (step[1:] < step[:-1]))
    return not back.any()


def settled(marks: Rows, lettered: Offsets, parked: Offsets) -> Rows:
    """Marks (by offset, those of one event in the order of their log) with one for each event that was parked: as it ended, or
    PARKED where it has not. One that ended when its window was over was left as it was. `lettered`: offsets of dead letters."""
    if not len(marks) or (not len(parked) and not (marks["outcome"] == PARKED).any()):
        return marks
    same = (marks["offset"][1:] == marks["offset"][:-1]) & (marks["id"][1:] == marks["id"][:-1])
    marks = marks[~np.append(same & (marks["outcome"][:-1] == PARKED), False)]
    ended = marks["outcome"] == PARKED
    marks["outcome"][ended] = np.where(among(marks["offset"], lettered), DEAD, DONE)[ended]
    marks["outcome"][among(marks["offset"], parked)] = PARKED
    return marks


# -- of records


def offsets_of(records: Sequence[Record]) -> Offsets:
    return np.fromiter((r.offset for r in records), np.int64, len(records))


def chosen(records: Sequence[Record], which: Which) -> list[Record]:
    return [records[i] for i in np.flatnonzero(which).tolist()]


def marks_of(records: Sequence[Record]) -> tuple[Rows, int]:
    """The marks in a piece of their changelog, in its order, and how far at most an event's own time was ahead of the time it
    was filed under, in ms: producers' clocks may be ahead. ValueError for what is no mark."""
    written = [r for r in records if r.key is not None and r.value is not None]
    packed = np.frombuffer(b"".join(r.value or b"" for r in written), _PACKED)
    if len(packed) != len(written):
        raise ValueError("a record of another length than a mark has")
    ids = np.fromiter((xxhash.xxh3_64_intdigest(r.key or b"") for r in written), np.uint64, len(written))
    rows = columns(
        MARK, packed["offset"], id=ids, filed=packed["filed"], payload=packed["payload"],
        outcome=packed["outcome"] & OUTCOME_BITS, revision=packed["outcome"] >> REVISION_BIT,
    )  # fmt: skip
    return rows, int((packed["time"] - packed["filed"]).max(initial=0))


def content_of(record: Record) -> int:
    """A hash of key and value; never 0."""
    key = b"-" if record.key is None else b"%d:%b" % (len(record.key), record.key)
    return xxhash.xxh3_64_intdigest(key + (b"-" if record.value is None else b"+" + record.value)) or 1


class Source:
    """Reads ids, payloads and times of a source's records, as its pipeline's dedup rule says."""

    def __init__(self, topic: Topic, dedup: Dedup) -> None:
        self._decode = decoder(topic.value)
        self._id_of = dedup.key_reader()
        self._time_of = dedup.time_reader()
        self._payload_of = dedup.payload_reader()

    def unmarked(self, records: Sequence[Record]) -> Rows:
        if not records:
            return columns(UNMARKED)
        read = (self._columns(value, record) for record, value in zip(records, self._decode(records), strict=True))
        ids, payloads, times, kinds = zip(*read, strict=True)
        rows = columns(
            UNMARKED, offsets_of(records), time=times, kind=kinds,
            id=np.array(ids, np.uint64), payload=np.array(payloads, np.uint64),
        )  # fmt: skip
        for nth, record in enumerate(records):
            if record.headers and (replayed := replay.of(record.headers)) is not None:
                rows[nth]["revision"], rows[nth]["edited"] = replayed
            if record.headers and replay.is_skip(record.headers):
                rows[nth]["kind"] = Kind.SKIP
        return rows

    def _columns(self, value: Any, record: Record) -> tuple[int, int, int, Kind]:
        id = self._id(value, record)
        if id is None:
            return 0, 0, 0, Kind.UNDECODABLE if type(value) is Undecodable else Kind.MISSING
        at, kind = record.timestamp, Kind.KEYED
        if self._time_of is not None:
            at, kind = _read(self._time_of, value, record), Kind.KEYED
            if at is None:
                at, kind = 0, Kind.UNTIMED
        elif at == NO_TIMESTAMP:
            # As the worker has it: where the timestamp is the event time, a record without one is missing something.
            kind = Kind.MISSING
        # A payload that cannot be compared is a failed event, and nobody's duplicate.
        return xxhash.xxh3_64_intdigest(id), _read(self._payload_of, value, record) or 0, at, kind

    def _id(self, value: Any, record: Record) -> bytes | None:
        id = None if type(value) is Undecodable else _read(self._id_of, value, record)
        return id if type(id) is bytes else None

    def id_text(self, record: Record) -> str | None:
        id = self._id(self._decode([record])[0], record)
        return None if id is None else id.decode(errors="backslashreplace")

    def check(self, tp: TP, records: Sequence[Record], marks: Rows) -> None:
        """OtherRule where most of the marks in a sample are not of the ids that this rule reads."""
        read, marks = self.unmarked(records), marks[: 4 * SAMPLE]
        by_offset = dict(zip(marks["offset"].tolist(), marks["id"].tolist(), strict=True))
        pairs = [(by_offset.get(at), id) for at, id in zip(read["offset"].tolist(), read["id"].tolist(), strict=True)]
        wrong = sum(marked not in (None, id) for marked, id in pairs)
        known = sum(marked is not None for marked, _ in pairs)
        if wrong * 2 > known:
            raise OtherRule(
                f"the dedup rule of this pipeline reads other ids from {tp.topic} than its marks have ({wrong} of {known} "
                "looked at): the rule or the event's type was changed since. Prove it with the code that ran"
            )


def _read(read: Callable[[Any, Any], Any], value: Any, record: Record) -> Any:
    """None where a function of the rule raises, whatever it is, as a worker has it."""
    try:
        return read(value, record)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None


# -- of a stretch


@dataclass(frozen=True, slots=True)
class Stretch:
    """Everything recorded about the records of one source partition between two offsets.

    `judged`: False where only what they led to counts. `marks`: by offset. `records`: the offsets that are there, of
    committed records; `unmarked`: those of them that are neither marked DONE nor dead-lettered (of a pipeline without dedup:
    none, there are no marks). `contents`: by offset, of those that are dead-lettered. What stood below `gone` was deleted
    before it could be read. `silent`: offsets of records that led to nothing and that compaction may have taken before they
    were read; `parked`: of events that are parked. `skips`: how many are no events, but let a held key go on.
    """

    judged: bool
    marks: Rows
    outputs: Rows
    letters: Rows
    records: Offsets
    unmarked: Rows = field(default_factory=lambda: columns(UNMARKED))
    contents: Mapping[int, int] = field(default_factory=dict[int, int])
    gone: int = 0
    silent: Offsets = field(default_factory=lambda: np.empty(0, np.int64))
    parked: Offsets = field(default_factory=lambda: np.empty(0, np.int64))
    skips: int = 0


class Known:
    """The marks that may still protect: sorted by id, then offset. Immutable; `later` gives the next one."""

    __slots__ = ("rows",)

    def __init__(self, rows: Rows | None = None) -> None:
        self.rows = columns(MARK) if rows is None else rows

    def later(self, marks: Rows) -> Known:
        """With more marks. Putting them in place is much less than sorting all."""
        marks = marks[np.lexsort((marks["offset"], marks["id"]))]
        return Known(np.insert(self.rows, self._place(marks["id"], marks["offset"])[0], marks)) if len(marks) else self

    def protecting(self, since_ms: int) -> Known:
        """Without those filed before, as soon as they are many: they change nothing but memory."""
        keep = self.rows["filed"] >= since_ms
        return self if np.count_nonzero(keep) * 8 > len(keep) * 7 else Known(self.rows[keep])

    def before(self, ids: Rows, offsets: Offsets) -> NDArray[np.intp]:
        """For each (id, offset): the row of the last mark of that id at a lower offset; -1 for none."""
        at, same = self._place(ids, offsets)
        return np.where(same, at - 1, -1)

    def _place(self, ids: Rows, offsets: Offsets) -> tuple[NDArray[np.intp], Which]:
        """Behind which rows each (id, offset) belongs, and whether the last of them is of the same id."""
        held = self.rows
        if not len(held):
            return np.zeros(len(ids), np.intp), np.zeros(len(ids), np.bool_)
        at = np.searchsorted(held["id"], ids, side="right")
        while True:
            same = (at > 0) & (held["id"][at - 1] == ids)
            too_late = same & (held["offset"][at - 1] >= offsets)
            if not too_late.any():
                return at, same
            at = at - too_late
