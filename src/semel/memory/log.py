"""One partition's log: batches, control markers, producer state, the last stable offset, compaction."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from operator import attrgetter

from semel.codes import Code
from semel.memory.batch import BATCH_OVERHEAD, NO_PRODUCER, Batch, MemoryRecord
from semel.memory.journal import Journal
from semel.memory.refused import Refused
from semel.port import NO_TIMESTAMP, TP, Fetched, Record

OPEN, COMMITTED, ABORTED = "open", "committed", "aborted"
MARKER_SIZE = BATCH_OVERHEAD + 17

_NOWHERE = TP("", 0)
_last_offset = attrgetter("last_offset")


class Entry:
    """A batch where it stands in the log. `records` shrinks by compaction, the offsets it covers do not."""

    __slots__ = ("base_offset", "control", "last_offset", "outcome", "producer_id", "records", "size", "timestamp")

    def __init__(
        self,
        base_offset: int,
        producer_id: int,
        outcome: str,
        records: list[MemoryRecord],
        *,
        size: int,
        timestamp: int,
    ) -> None:
        self.base_offset = base_offset
        self.last_offset = base_offset + max(len(records), 1) - 1
        self.producer_id = producer_id
        self.outcome = outcome
        self.records = records
        self.size = size
        self.timestamp = timestamp
        self.control = not records


class _ProducerState:
    __slots__ = ("epoch", "recent")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        # First and last sequence and base offset of the last five batches, as many as a client may have in flight.
        self.recent: deque[tuple[int, int, int]] = deque(maxlen=5)


class PartitionLog:
    """`configs` is the topic's own mapping: a change of it counts at once. `tp` and `journal`: who is told what."""

    def __init__(self, configs: Mapping[str, str], tp: TP = _NOWHERE, journal: Journal | None = None) -> None:
        self.configs = configs
        self._tp = tp
        self._journal = journal
        self.log_start = 0
        self.end = 0
        self._entries: list[Entry] = []
        self._damaged: set[int] = set()
        self._producers: dict[int, _ProducerState] = {}
        self._open: dict[int, list[Entry]] = {}
        # In the order in which they came: who is woken first must not depend on where objects lie.
        self._waiters: dict[asyncio.Future[None], None] = {}

    # -- reading

    @property
    def last_stable_offset(self) -> int:
        return min((entries[0].base_offset for entries in self._open.values()), default=self.end)

    def open_transactions(self) -> dict[int, int]:
        """Producer id -> first offset of its open transaction here."""
        return {producer_id: entries[0].base_offset for producer_id, entries in self._open.items()}

    def has_open(self, producer_id: int, epoch: int) -> bool:
        state = self._producers.get(producer_id)
        return producer_id in self._open and state is not None and state.epoch == epoch

    def read(self, offset: int, *, committed: bool, max_bytes: int, at_least_one: bool) -> tuple[Fetched, int]:
        """What a fetch at `offset` gets, and how many bytes that took."""
        stable = self.last_stable_offset
        if not self.log_start <= offset <= self.end:
            return Fetched([], offset, -1, -1, -1, error=Code.OFFSET_OUT_OF_RANGE), 0
        bound = stable if committed else self.end
        records: list[Record] = []
        next_offset, taken = offset, 0
        for entry in self._from(offset):
            if entry.base_offset >= bound or (taken + entry.size > max_bytes and (taken or not at_least_one)):
                break
            if entry.base_offset in self._damaged:
                if next_offset == offset:
                    return Fetched([], offset, self.end, stable, self.log_start, error=Code.CORRUPT_MESSAGE), 0
                break
            taken += entry.size
            next_offset = entry.last_offset + 1
            if entry.control or (committed and entry.outcome == ABORTED):
                continue
            if entry.base_offset >= offset:
                records.extend(entry.records)
            else:
                records.extend(record for record in entry.records if record.offset >= offset)
        return Fetched(records, next_offset, self.end, stable, self.log_start), taken

    def damage(self, offset: int) -> None:
        """The bytes of the batch that holds it change on the broker's disk: no checksum is right any more."""
        self._damaged.add(next(self._from(offset)).base_offset)

    def mend(self) -> None:
        """A replica that has it whole takes over."""
        self._damaged.clear()

    def offset_at(self, timestamp: int, *, committed: bool) -> int:
        """The first offset whose record is as late as `timestamp`; -1 for none."""
        bound = self.last_stable_offset if committed else self.end
        for entry in self._from(self.log_start):
            if entry.timestamp < timestamp:
                continue
            if entry.control:
                offset = entry.base_offset
            else:
                late = (r.offset for r in entry.records if r.timestamp >= timestamp and r.offset >= self.log_start)
                offset = next(late, -1)
            if offset >= 0:
                return offset if offset < bound else -1
        return -1

    def committed(self) -> list[MemoryRecord]:
        """Every record that a read-committed consumer could ever see by now, in order."""
        stable = self.last_stable_offset
        return [
            record
            for entry in self._entries
            if entry.outcome == COMMITTED and not entry.control and entry.base_offset < stable
            for record in entry.records
            if record.offset >= self.log_start
        ]

    # -- writing

    def append(self, batch: Batch, now_ms: int) -> int:
        """Append a transactional batch and return its base offset; a known duplicate's is its first one's."""
        self._check_batch(batch, now_ms)
        state = self._producers.get(batch.producer_id)
        if state is not None:
            duplicate = self._check_sequence(state, batch)
            if duplicate is not None:
                return duplicate
        if state is None or state.epoch != batch.epoch:
            state = self._producers[batch.producer_id] = _ProducerState(batch.epoch)
        self._stamp(batch.records, now_ms)
        entry = self._add(batch.producer_id, OPEN, batch.records, batch.size, now_ms)
        state.recent.append((batch.base_sequence, batch.last_sequence, entry.base_offset))
        self._open.setdefault(batch.producer_id, []).append(entry)
        if self._journal is not None:
            self._journal.appended(self._tp, batch.producer_id, batch.epoch, batch.records)
        self._wake()
        return entry.base_offset

    def append_plain(self, records: list[MemoryRecord], size: int, now_ms: int) -> int:
        """Append records outside any transaction: how a test's input gets in."""
        batch = Batch(NO_PRODUCER, -1, -1, size, records)
        self._check_batch(batch, now_ms)
        self._stamp(records, now_ms)
        base = self._add(NO_PRODUCER, COMMITTED, records, size, now_ms).base_offset
        if self._journal is not None:
            self._journal.appended(self._tp, NO_PRODUCER, -1, records)
        self._wake()
        return base

    def end_transaction(self, producer_id: int, epoch: int, *, commit: bool, now_ms: int) -> None:
        """Write the control marker: it takes an offset also where the transaction wrote nothing."""
        state = self._producers.get(producer_id)
        if state is not None and epoch < state.epoch:
            raise Refused(Code.INVALID_PRODUCER_EPOCH, f"marker of epoch {epoch}, the log has seen {state.epoch}")
        if state is None or state.epoch != epoch:
            self._producers[producer_id] = _ProducerState(epoch)
        outcome = COMMITTED if commit else ABORTED
        for entry in self._open.pop(producer_id, ()):
            entry.outcome = outcome
        self._add(producer_id, outcome, [], MARKER_SIZE, now_ms)
        if self._journal is not None:
            self._journal.ended(self._tp, producer_id, epoch, commit)
        self._wake()

    def delete_before(self, offset: int) -> int:
        """DeleteRecords; -1 is the high watermark. Returns the new start of the log."""
        if "delete" not in self.configs["cleanup.policy"]:
            raise Refused(Code.POLICY_VIOLATION, "the topic's cleanup.policy is compact only")
        if offset == -1:
            offset = self.end
        if not 0 <= offset <= self.end:
            raise Refused(Code.OFFSET_OUT_OF_RANGE, f"{offset} is beyond the end, {self.end}")
        if offset > self.log_start:
            self.log_start = offset
            if self._journal is not None:
                self._journal.deleted(self._tp, offset)
            self._entries = list(self._from(offset))
            self._wake()
        return self.log_start

    def compact(self, now_ms: int) -> None:
        """Keep the last record of each key below the last stable offset; drop old tombstones and what was aborted.

        A tombstone is old after `delete.retention.ms`: until then readers that were away for a while still meet it.

        Offsets keep their gaps. The last batch stays where it is, if need be empty, as Kafka's cleaner
        leaves it: a reader can always get to the end.
        """
        stable = self.last_stable_offset
        old_ms = now_ms - int(self.configs["delete.retention.ms"])
        cleanable = [entry for entry in self._entries if entry.last_offset < stable]
        last: dict[bytes | None, int] = {}
        for entry in cleanable:
            if entry.outcome == COMMITTED:
                last.update((record.key, record.offset) for record in entry.records)
        for entry in cleanable:
            kept = entry.outcome == COMMITTED
            entry.records = [
                r
                for r in entry.records
                if kept and last[r.key] == r.offset and (r.value is not None or entry.timestamp > old_ms)
            ]
            if not entry.records:
                entry.size = BATCH_OVERHEAD
        tail = self._entries[-1:]
        self._entries = [e for e in self._entries if e.records or e.last_offset >= stable or e in tail]

    # -- waiting

    def watch(self, waiter: asyncio.Future[None]) -> None:
        """Complete the waiter at the next change."""
        self._waiters[waiter] = None

    def unwatch(self, waiter: asyncio.Future[None]) -> None:
        self._waiters.pop(waiter, None)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    # -- within

    def _from(self, offset: int) -> Iterator[Entry]:
        entries = self._entries
        for i in range(bisect_left(entries, offset, key=_last_offset), len(entries)):
            yield entries[i]

    def _add(self, producer_id: int, outcome: str, records: list[MemoryRecord], size: int, now_ms: int) -> Entry:
        timestamp = max((record.timestamp for record in records), default=NO_TIMESTAMP)
        if timestamp == NO_TIMESTAMP:
            timestamp = now_ms
        entry = Entry(self.end, producer_id, outcome, records, size=size, timestamp=timestamp)
        for i, record in enumerate(records):
            record.offset = self.end + i
        self._entries.append(entry)
        self.end = entry.last_offset + 1
        return entry

    def _stamp(self, records: list[MemoryRecord], now_ms: int) -> None:
        if self.configs["message.timestamp.type"] == "LogAppendTime":
            for record in records:
                record.timestamp = now_ms

    def _check_batch(self, batch: Batch, now_ms: int) -> None:
        if not batch.records:
            raise Refused(Code.INVALID_RECORD, "a batch without records")
        if batch.size > int(self.configs["max.message.bytes"]):
            raise Refused(
                Code.MESSAGE_TOO_LARGE, f"{batch.size} bytes, max.message.bytes is {self.configs['max.message.bytes']}"
            )
        late = now_ms + int(self.configs["message.timestamp.after.max.ms"])
        early = now_ms - int(self.configs["message.timestamp.before.max.ms"])
        for record in batch.records:
            stamped = record.timestamp != NO_TIMESTAMP and self.configs["message.timestamp.type"] == "CreateTime"
            if stamped and not early <= record.timestamp <= late:
                raise Refused(
                    Code.INVALID_TIMESTAMP,
                    f"timestamp {record.timestamp} is out of range, the broker's time is {now_ms}",
                )
            if record.key is None and "compact" in self.configs["cleanup.policy"]:
                raise Refused(Code.INVALID_RECORD, "a record without a key in a compacted topic")

    def _check_sequence(self, state: _ProducerState, batch: Batch) -> int | None:
        """The base offset of the batch this one repeats, None where it is the next one."""
        if batch.epoch < state.epoch:
            raise Refused(Code.INVALID_PRODUCER_EPOCH, f"epoch {batch.epoch}, the log has seen {state.epoch}")
        if batch.epoch > state.epoch:
            if batch.base_sequence != 0:
                raise Refused(
                    Code.OUT_OF_ORDER_SEQUENCE_NUMBER, f"a new epoch starts with sequence {batch.base_sequence}"
                )
            return None
        for first, last, base_offset in state.recent:
            if (first, last) == (batch.base_sequence, batch.last_sequence):
                return base_offset
        expected = state.recent[-1][1] + 1 if state.recent else 0
        if batch.base_sequence != expected:
            raise Refused(Code.OUT_OF_ORDER_SEQUENCE_NUMBER, f"sequence {batch.base_sequence}, expected {expected}")
        return None
