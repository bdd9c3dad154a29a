"""Compaction of the run's input: on for as long as the brokers need, over events that were kept for the proof before.

A broker compacts what lies before the segment that it writes to. So the run has it begin a new segment, keeps what lies
before, and only then asks for compaction; what comes meanwhile goes to the new segment, which nothing touches.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from semel.chaos.cluster import Cluster
from semel.chaos.observed import Observed
from semel.errors import SemelError
from semel.kafka.admin import set_topic_configs
from semel.port import TP, Broker, Record, RpcError, RpcLost
from semel.runtime.clock import SystemClock
from semel.task.read_committed import CommittedLogs, Unreadable

PLAIN: Mapping[str, str] = {"retention.ms": "-1"}
_ROLLING = {**PLAIN, "segment.ms": "1"}
_COMPACTED = {**PLAIN, "cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.0"}

# The load writes to each partition several times a second.
ROLL_S = 3.0
# Brokers hear of a setting at once; where one is busy, not much later.
APPLIED_S = 0.5
CLEANED_S = 15.0
LOOK_S = 0.2

# Of one partition: offset -> key.
Keys = Mapping[int, bytes | None]


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
    """What was kept, in a file and not in memory: a `semel.proof.Recording` of one topic.

    `upto`: partition -> the offset up to which it has every record; `may_be_unread`: partition -> offsets of which nobody
    knows whether they were read before they went.
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


class Taken(NamedTuple):
    """What compaction took: `gone` events of `there`, `unread` of which lay beyond the last known position."""

    there: int = 0
    gone: int = 0
    unread: int = 0

    def __str__(self) -> str:
        return f"{self.gone:,} of {self.there:,} events compacted away, {self.unread:,} of them unread"


class Compaction:
    """`archive`: what it keeps before. `observed`: how far the input is known to be read and committed. `taken`: by all so
    far.
    """

    def __init__(self, broker: Broker, cluster: Cluster, archive: Archive, observed: Observed) -> None:
        self.archive = archive
        self._cluster = cluster
        self._observed = observed
        self._logs = CommittedLogs(broker, SystemClock(), "compaction")
        self.taken = Taken()
        # By partition, the events before the segment that is written to.
        self._before: dict[int, Keys] = {}

    async def prepare(self) -> None:
        """Begin new segments and keep what lies before. No broker may be away. Unreadable, RpcError, RpcLost."""
        self._before = {}
        bases = self._bases()
        await self._configure(_ROLLING)
        deadline = time.monotonic() + ROLL_S
        while time.monotonic() < deadline and any(self._bases()[p] == base for p, base in bases.items()):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        await self._configure(PLAIN)
        bases = {}
        while bases != self._bases():
            bases = self._bases()
            await asyncio.sleep(APPLIED_S)
        for partition, base in bases.items():
            first = self.archive.upto.get(partition, 0)
            self.archive.keep(partition, await self._records(partition, first, base), max(first, base))
            self._before[partition] = await self._keys(partition)

    async def strike(self) -> Taken:
        """Compaction on, until all is gone that a later event of its key stands for, and off again."""
        read, before = self._observed.positions, self._before
        surplus = {partition: superseded(keys) for partition, keys in before.items()}
        unread = {p: {at for at in offsets if at >= read.get(p, 0)} for p, offsets in surplus.items()}
        for partition, offsets in unread.items():
            self.archive.may_be_unread[partition] |= offsets
        left = before
        try:
            await self._configure(_COMPACTED)
            deadline = time.monotonic() + CLEANED_S
            while time.monotonic() < deadline and any(surplus[p] & there.keys() for p, there in left.items()):
                await asyncio.sleep(LOOK_S)
                left = await self._left(left)
        finally:
            await self._configure(PLAIN)
        if any(base > self.archive.upto[partition] for partition, base in self._bases().items()):
            # Settings reach a broker in their order: it began no segment after it had heard of compaction.
            raise SemelError(
                f"a broker began a segment of {self.archive.topic!r} more than {APPLIED_S:g} s after it was asked not to, and "
                "compacted events that this run had not kept: there can be no proof. Run it again"
            )
        left = await self._left(left)
        gone = {p: keys.keys() - left[p].keys() for p, keys in before.items()}
        taken = Taken(
            sum(map(len, before.values())), sum(map(len, gone.values())), sum(len(unread[p] & gone[p]) for p in gone)
        )
        self.taken = Taken(*map(sum, zip(self.taken, taken, strict=True)))
        return taken

    def _bases(self) -> dict[int, int]:
        topic = self.archive.topic
        return {p: self._cluster.kafka.active_segment(topic, p) for p in range(self._observed.partitions)}

    async def _left(self, before: Mapping[int, Keys]) -> Mapping[int, Keys]:
        """What is there of it now; what was there at the last look where no broker answers."""
        try:
            return {partition: await self._keys(partition) for partition in before}
        except (RpcError, RpcLost, Unreadable):
            return before

    async def _keys(self, partition: int) -> Keys:
        """Of what is there of the part that is kept."""
        return {r.offset: r.key for r in await self._records(partition, 0, self.archive.upto[partition])}

    async def _records(self, partition: int, start: int, end: int) -> list[Record]:
        pieces = self._logs.read(TP(self.archive.topic, partition), start, end)
        return [record async for piece in pieces for record in piece.records]

    async def _configure(self, settings: Mapping[str, str]) -> None:
        """Set these of the topic, and nothing else. SemelError where the brokers do not come to it."""
        topic = self.archive.topic
        await self._cluster.ask(f"topic {topic!r}", lambda at: set_topic_configs(at, topic, settings))


def superseded(records: Keys) -> set[int]:
    """The offsets (given with their keys) of which compaction keeps none: a later one has the same key."""
    last = {key: offset for offset, key in sorted(records.items())}
    return records.keys() - set[int](last.values())
