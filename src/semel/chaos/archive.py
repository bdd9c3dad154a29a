"""What a run keeps of its input before compaction takes it: for the proof, which cannot do without it. A file, not memory."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from semel.port import TP, Record


@dataclass(frozen=True, slots=True)
class ArchivedRecord:
    """A `semel.port.Record` of which nothing else is left."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


_packed = msgspec.msgpack.Encoder().encode
_unpacked = msgspec.msgpack.Decoder(ArchivedRecord).decode


class Archive:
    """A `semel.proof.Recording` of one topic, in a new file. `upto`: partition -> the offset up to which it has every record;
    `may_be_unread`: partition -> offsets of which nobody knows whether they were read before they went.
    """

    def __init__(self, file: Path, topic: str) -> None:
        self.topic = topic
        self.upto: dict[int, int] = {}
        self.may_be_unread: defaultdict[int, set[int]] = defaultdict(set)
        file.unlink(missing_ok=True)
        self._db = sqlite3.connect(file)
        self._db.execute("CREATE TABLE record (part INT, at INT, record BLOB, PRIMARY KEY (part, at)) WITHOUT ROWID")

    def keep(self, partition: int, records: Iterable[Record], upto: int) -> None:
        """Everything from where it had come to up to that offset."""
        kept = (ArchivedRecord(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in records)
        with self._db:
            rows = ((partition, record.offset, _packed(record)) for record in kept)
            self._db.executemany("INSERT INTO record VALUES (?, ?, ?)", rows)
        self.upto[partition] = upto

    def between(self, tp: TP, start: int, end: int) -> list[Record]:
        if tp.topic != self.topic:
            return []
        rows = self._db.execute(
            "SELECT record FROM record WHERE part = ? AND at >= ? AND at < ? ORDER BY at", (tp.partition, start, end)
        )
        return [_unpacked(packed) for (packed,) in rows]

    def unread(self, tp: TP, start: int, end: int) -> NDArray[np.int64]:
        there = self.may_be_unread[tp.partition] if tp.topic == self.topic else ()
        return np.array(sorted(offset for offset in there if start <= offset < end), np.int64)

    def close(self) -> None:
        self._db.close()
