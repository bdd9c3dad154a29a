"""A recorded history in columns: what stands on the topics about a stretch of one source partition.

Ids and payloads are 64-bit hashes and a row is a few dozen bytes, so that a stretch of any pipeline fits in memory; who
is behind a hash is read again from the log when somebody has to be named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]
Offsets = NDArray[np.int64]

# A mark: the record at `offset` took effect (DONE) or was dead-lettered (DEAD). Times in ms.
MARK = np.dtype([("offset", "<i8"), ("id", "<u8"), ("filed", "<i8"), ("payload", "<u8"), ("outcome", "u1")])
# An output of the record at `offset`: it stands at `at` in the output partition numbered `where`.
OUTPUT = np.dtype([("offset", "<i8"), ("step", "<i4"), ("agent", "u1"), ("where", "<u4"), ("at", "<i8")])
# A dead letter of the record at `offset`, given up by an agent; it stands at `at` in the partition numbered `where`.
# `content`: a hash of its key and value; 0 where the value was left out.
LETTER = np.dtype([("offset", "<i8"), ("agent", "u1"), ("where", "<u4"), ("at", "<i8"), ("content", "<u8")])
# A source record of which no mark says that it took effect. `kind`: a `Kind`.
UNMARKED = np.dtype([("offset", "<i8"), ("id", "<u8"), ("payload", "<u8"), ("time", "<i8"), ("kind", "u1")])


class Kind(IntEnum):
    """What could be read of a source record."""

    KEYED = 0
    UNDECODABLE = 1
    MISSING = 2
    UNTIMED = 3


def among(offsets: Offsets, ordered: Offsets) -> NDArray[np.bool_]:
    """Which of `offsets` are among `ordered`, which is sorted."""
    if not len(ordered):
        return np.zeros(len(offsets), np.bool_)
    at = np.minimum(np.searchsorted(ordered, offsets), len(ordered) - 1)
    return ordered[at] == offsets


def distinct(ordered: Offsets) -> int:
    """How many different ones there are; sorted, since numpy's own hashing is several times slower."""
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + (len(ordered) > 0)


def empty(dtype: np.dtype[Any]) -> Rows:
    return np.empty(0, dtype)


@dataclass(slots=True)
class Stretch:
    """Everything recorded about the records of one source partition between two offsets, `start` and `end` (exclusive).

    `records`: the offsets that are there, of committed records; `unmarked`: those of them that are neither marked DONE nor
    dead-lettered (of a pipeline without dedup: none, there are no marks). `contents`: by offset, of those that are
    dead-lettered. What stood below `gone` was deleted before it could be read. `unread`: offsets of records that compaction
    may have taken before they were read.
    """

    start: int
    end: int
    records: Offsets
    marks: Rows = field(default_factory=lambda: empty(MARK))
    letters: Rows = field(default_factory=lambda: empty(LETTER))
    outputs: Rows = field(default_factory=lambda: empty(OUTPUT))
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

    def __len__(self) -> int:
        return len(self.rows)

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
        at = np.searchsorted(held["id"], ids, side="right") - 1
        while True:
            inside = at >= 0
            same = inside & (held["id"][at] == ids) if len(held) else inside
            too_late = same & (held["offset"][at] >= offsets) if len(held) else same
            if not too_late.any():
                return np.where(same, at, -1)
            at = at - too_late
