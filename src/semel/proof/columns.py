"""Records become columns: marks, outputs, dead letters, and the source records that no mark names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xxhash

from semel.dedup import Dedup
from semel.errors import SemelError
from semel.port import TP, Record
from semel.proof.history import LETTER, MARK, OUTPUT, UNMARKED, Kind, Offsets, Rows, Stretch
from semel.stages.fetch.decode import Undecodable, decoder
from semel.topic import Topic

# As `semel.state.dedup_marks` packs a mark.
_PACKED = np.dtype([("offset", ">i8"), ("time", ">i8"), ("filed", ">i8"), ("payload", ">u8"), ("outcome", "u1")])
# Marked records of a stretch whose ids are read again, to see that the rule is that of the marks.
_SAMPLE = 200


class OtherRule(SemelError):
    """The pipeline's dedup rule is not the one that its marks were made with."""


def offsets_of(records: Sequence[Record]) -> Offsets:
    return np.fromiter((r.offset for r in records), np.int64, len(records))


def marks_of(records: Sequence[Record]) -> tuple[Rows, int]:
    """The marks in a piece of their changelog, in its order, and how far at most an event's own time was ahead of the time it
    was filed under, in ms: producers' clocks may be ahead. ValueError for what is no mark."""
    written = [r for r in records if r.key is not None and r.value is not None]
    packed = np.frombuffer(b"".join(r.value or b"" for r in written), _PACKED)
    if len(packed) != len(written):
        raise ValueError("a record of another length than a mark has")
    rows = np.empty(len(written), MARK)
    for name in ("offset", "filed", "payload", "outcome"):
        rows[name] = packed[name]
    rows["id"] = _hashes([r.key for r in written])
    return rows, int((packed["time"] - packed["filed"]).max(initial=0))


def _hashes(ids: Sequence[Any]) -> Rows:
    return np.fromiter(map(xxhash.xxh3_64_intdigest, ids), np.uint64, len(ids))


def outputs_of(offsets: Sequence[int], steps: Sequence[int], agent: int, at: Sequence[int], where: int) -> Rows:
    """Outputs of events at `offsets`; they stand at the offsets `at` of the partition numbered `where`."""
    rows = np.empty(len(offsets), OUTPUT)
    rows["offset"], rows["step"], rows["agent"], rows["at"], rows["where"] = offsets, steps, agent, at, where
    return rows


def in_order(outputs: Rows, before: tuple[int, int]) -> bool:
    """Whether outputs stand in the order of their events, after one that is of (offset, step) `before`."""
    offset, step = outputs["offset"], outputs["step"]
    if (int(offset[0]), int(step[0])) < before:
        return False
    return not ((offset[1:] < offset[:-1]) | ((offset[1:] == offset[:-1]) & (step[1:] < step[:-1]))).any()


def content_of(record: Record) -> int:
    """A hash of key and value; never 0."""
    key = b"-" if record.key is None else b"%d:%b" % (len(record.key), record.key)
    return xxhash.xxh3_64_intdigest(key + (b"-" if record.value is None else b"+" + record.value)) or 1


def letters_of(
    offsets: Sequence[int], agents: Sequence[int], at: Sequence[int], contents: Sequence[int], where: int
) -> Rows:
    """Dead letters of events at `offsets`; they stand at the offsets `at` of the partition numbered `where`."""
    rows = np.empty(len(offsets), LETTER)
    rows["offset"], rows["agent"], rows["at"], rows["content"], rows["where"] = offsets, agents, at, contents, where
    return rows


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
        rows = np.zeros(len(records), UNMARKED)
        if not records:
            return rows
        kinds: list[Kind] = []
        ids: list[int] = []
        times: list[int] = []
        payloads: list[int] = []
        for record, value in zip(records, self._decode(records), strict=True):
            kind, id = self._id(value, record)
            at = payload = 0
            if kind is Kind.KEYED:
                kind, at = self._time(value, record)
                payload = self._payload_of(value, record)
            kinds.append(kind)
            ids.append(xxhash.xxh3_64_intdigest(id))
            times.append(at)
            payloads.append(payload)
        rows["offset"], rows["kind"], rows["time"] = offsets_of(records), kinds, times
        rows["id"], rows["payload"] = np.array(ids, np.uint64), np.array(payloads, np.uint64)
        return rows

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
            return Kind.KEYED, record.timestamp
        try:
            return Kind.KEYED, self._time_of(value, record)
        except Exception:
            return Kind.UNTIMED, 0

    def id_text(self, record: Record) -> str | None:
        """The dedup id as a person knows it."""
        kind, id = self._id(self._decode([record])[0], record)
        return id.decode(errors="backslashreplace") if kind == Kind.KEYED else None

    def check(self, tp: TP, records: Sequence[Record], stretch: Stretch) -> None:
        """OtherRule where most of the marks in a sample are not of the ids that this rule reads."""
        sample = records[:_SAMPLE]
        ids = self.unmarked(sample)
        by_offset = {int(m["offset"]): int(m["id"]) for m in stretch.marks[: 4 * _SAMPLE]}
        pairs = [(by_offset[int(r["offset"])], int(r["id"])) for r in ids if int(r["offset"]) in by_offset]
        wrong = sum(marked != read for marked, read in pairs)
        if wrong * 2 > len(pairs):
            raise OtherRule(
                f"the dedup rule of this pipeline reads other ids from {tp.topic} than its marks have ({wrong} of {len(pairs)} "
                "looked at): the rule or the event's type was changed since. Prove it with the code that ran"
            )
