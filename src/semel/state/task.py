"""Task: an app on one partition number; its cursors, its state, its place in the world."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from semel.dedup import Dedup
from semel.plan import AgentPlan
from semel.port import TP, Record
from semel.state.crash_notes import Suspect
from semel.state.dedup_marks import Marks
from semel.state.parked import ParkedLog, ParkedQueue
from semel.state.positions import COUNTS, Position, Sink, StreamTime, TopicPosition
from semel.state.state_log import StateLog
from semel.state.table_rows import Rows
from semel.state.timers import TimerLog

# Of a work unit, and of one after a failure.
UNIT_RECORDS, UNIT_RECORDS_FAILING = 256, 8
# A partition whose next record finds no room among the parked events asks again so often.
ROOM_S = 0.05


class TaskState(Enum):
    RESTORING = "restoring"
    RUNNING = "running"


class FetchedBatch:
    """Records fetched together, freed together. `next_offset`: the position when all of them are done.

    `size`: what they take in memory, in bytes.
    """

    __slots__ = ("next_offset", "records", "size", "start")

    def __init__(self, records: list[Record], next_offset: int, size: int = 0) -> None:
        self.records = records
        self.start = 0
        self.next_offset = next_offset
        self.size = size

    def end(self, most: int, most_bytes: int) -> int:
        """Where a work unit from `start` ends: so many records or bytes further, with one record at least."""
        start, records = self.start, self.records
        end = min(start + most, len(records))
        if self.size > most_bytes:
            left = most_bytes
            for at in range(start, end):
                left -= len(records[at].value or b"")
                if left < 0:
                    return max(at, start + 1)
        return end


class RetryState:
    """How often the event at `offset` of a source partition has failed for an agent; -1: none has.

    It outlives cursors and tasks: an epoch that is dropped and an assignment do not begin the count anew. `lost`: how many of
    them because the event held the loop for longer than the session. Events up to `isolate_until` go one by one. `suspects`:
    those that earlier processes of this worker may have died of. `first_ms`: when it failed for the first time, as far as this
    process knows; 0: it has not.
    """

    __slots__ = ("count", "first_ms", "isolate_until", "lost", "offset", "suspects")

    def __init__(self, suspects: Sequence[Suspect] = ()) -> None:
        self.offset = -1
        self.count = 0
        self.first_ms = 0
        self.lost = 0
        self.suspects = list(suspects)
        self.isolate_until = max((s.last for s in suspects), default=-1)

    def failed_before(self, offset: int) -> int:
        """How often the event there has failed."""
        return self.count if self.offset == offset else 0

    def failed(self, offset: int, now_ms: int) -> int:
        """One more failed attempt; how many there were."""
        if self.offset != offset:
            self.offset, self.count, self.lost, self.first_ms = offset, 0, 0, now_ms
        self.count += 1
        return self.count

    def given_up(self) -> None:
        """It goes to the dead letters. If that is not committed it has its attempts again, unless they cost sessions."""
        if not self.lost:
            self.offset = -1

    def died(self, offset: int, times: int) -> None:
        self.first_ms = self.first_ms if self.offset == offset else 0
        self.offset, self.count = offset, times

    def suspect(self, record: Record) -> Suspect | None:
        """The record, if it is one that a process may have died of; of several, the one with most deaths."""
        return max((s for s in self.suspects if s.includes(record)), key=lambda s: s.crashes, default=None)

    def isolate(self, offset: int) -> None:
        """Events up to this one go one by one."""
        self.isolate_until = max(self.isolate_until, offset)

    def lost_session(self, offset: int, now_ms: int) -> int:
        self.failed(offset, now_ms)
        self.lost += 1
        self.isolate(offset)
        return self.count


@dataclass(frozen=True, slots=True)
class ParkedTask:
    """How many events of a task are parked; `held_up`: what keeps its partition from taking more, empty where nothing does.
    `held`: how many keys wait for a dead letter of theirs."""

    events: int
    held_up: str
    held: int = 0


class Cursor:
    """How far one agent has come in one source partition.

    `position`: the next offset to be done; what lies before it has taken effect in the open or an earlier epoch.
    `buffered` and `bytes`: how many records wait in `queue`, and what they take in memory.
    `due`: when the record at `position` may be tried again. `parked`: events before `position` that are not done.
    `retried_last`: the work unit before was of parked events. `held_up`: why the record at `position` waits for room there.
    `unit_records`: how many records its next work unit may have.
    """

    __slots__ = (
        "agent",
        "buffered",
        "bytes",
        "due",
        "held_up",
        "parked",
        "poisoned",
        "position",
        "queue",
        "queued",
        "retried_last",
        "retry_state",
        "task",
        "tp",
        "unit_records",
    )

    def __init__(self, task: Task, tp: TP, agent: AgentPlan, retry_state: RetryState | None = None) -> None:
        self.task = task
        self.tp = tp
        self.agent = agent
        self.position = 0
        self.queue: deque[FetchedBatch] = deque()
        self.buffered = 0
        self.bytes = 0
        self.due = 0.0
        self.parked: ParkedQueue | None = task.parked and task.parked.queue(tp.topic, agent.state_name, agent.retry)
        self.retried_last = False
        self.held_up = ""
        self.retry_state = retry_state or RetryState()
        self.poisoned: dict[int, str] = {}
        self.queued = False
        self.unit_records = UNIT_RECORDS

    @property
    def first(self) -> bool:
        """Of the agents that read this partition, its agent is the first that is declared."""
        return next(cursor for cursor in self.task.cursors.values() if cursor.tp == self.tp) is self

    def seek(self, offset: int) -> None:
        self.position = offset
        self.queue.clear()
        self.buffered = 0
        self.bytes = 0
        self.due = 0.0
        self.held_up = ""

    def hold_up(self, why: str, now: float) -> None:
        """The record at `position` finds no room among the parked events; it is asked again soon."""
        self.held_up, self.due = why, now + ROOM_S

    def failed(self) -> None:
        """What lies behind a failed event is decoded and judged once more: where events fail often, few are taken at a time."""
        self.unit_records = UNIT_RECORDS_FAILING

    def went_through(self) -> None:
        """A work unit was done to its end."""
        self.unit_records = min(UNIT_RECORDS, self.unit_records * 4)

    def push(self, fetched: FetchedBatch) -> None:
        self.queue.append(fetched)
        self.buffered += len(fetched.records)
        self.bytes += fetched.size


class Task:
    """`counts` and `stream` belong to the open epoch; `committed` is what the last committed position record says."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.state = TaskState.RESTORING
        self.tables: dict[str, Rows] = {}
        self.marks: Marks | None = None
        self.parked: ParkedLog | None = None
        self.timers: TimerLog | None = None
        self.dedup: Dedup | None = None
        self.cursors: dict[tuple[str, str], Cursor] = {}
        self.committed = Position({})
        self.stream_ms: int | None = None
        self.pending: tuple[int, ...] = ()
        self.counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        # Outputs with lineage, by topic.
        self.outputs: dict[str, int] = {}
        self.topics: dict[str, tuple[str, int]] = {}
        # What its rows are of while they are migrated, and how far that came (rule 24).
        self.shape = self.types = ""
        self.migrating: dict[str, tuple[str, str]] = {}
        self.logs: dict[str, dict[str, Any]] = {}
        # The offset of the last committed position record; -1: not known.
        self.stamp_offset = -1
        # Logs of state that the app is to claim before it writes there, and the claims of the epoch being sealed.
        self.unclaimed: set[str] = set()
        self.claims: dict[str, int] = {}
        self.holder: object | None = None
        # How many of its events are in hand, where these may be several.
        self.in_hand = 0
        self.touched = False
        # The group has no offset of one of its partitions.
        self.unseen = False
        # Its last position record is of another declaration, or of a version that noted less of it.
        self.redeclared = False
        self.restored = 0
        self.to_restore = 0
        self.restoring_since = 0.0
        # While it is restored: the time, by the wall clock, that what its store holds is of.
        self.as_of_ms = 0
        self.why = ""

    @property
    def stream(self) -> StreamTime:
        return StreamTime(self.stream_ms, self.pending)

    @stream.setter
    def stream(self, value: StreamTime) -> None:
        self.stream_ms, self.pending = value.ms, value.pending

    def open_anew(self) -> None:
        """Forget everything that is not committed."""
        for log in self.state_logs:
            log.drop()
        for name, rows in self.tables.items():
            rows.noted_kind = self.committed.kinds.get(name, "")
        self.stream = self.committed.stream_time
        self.counts = {**dict.fromkeys(COUNTS, 0), **self.committed.counts}
        self.outputs = dict(self.committed.outputs)
        if self.timers is not None:
            self.timers.count, self.timers.sent = self.committed.timers, dict(self.committed.sent_later)
        self.shape, self.types, self.migrating = self.committed.shape, self.committed.types, self.committed.migrating
        self.touched = False
        self.holder = None
        self.in_hand = 0
        for cursor in self.cursors.values():
            at = self.committed.topics.get(cursor.tp.topic)
            if at is not None:
                cursor.seek(at.stands(cursor.agent.name))

    def position(
        self,
        generation: int,
        writer: str,
        epoch: int,
        at_ms: int,
        logs: dict[str, str] | None = None,
        sinks: dict[str, Sink] | None = None,
    ) -> Position:
        """The position record of the epoch being sealed. `logs`: the ids of the topics that its state goes to; `sinks`: what
        its outputs go to."""
        topics: dict[str, TopicPosition] = {}
        for topic, (topic_id, partitions) in self.topics.items():
            at = {c.agent.name: c.position for (t, _), c in self.cursors.items() if t == topic}
            lowest = min(at.values())
            ahead = {name: offset for name, offset in at.items() if offset > lowest}
            before = self.committed.topics.get(topic)
            before = before if before is not None else TopicPosition(topic_id, partitions, -1, born=partitions)
            former = {name: offset for name, offset in before.former.items() if name not in at}
            topics[topic] = replace(
                before, id=topic_id, partitions=partitions, next=lowest, cursors=ahead, done=(), former=former
            )
        committed = self.committed
        return Position(
            topics, self.stream, dict(self.counts), generation, writer, epoch, at_ms, self.shape, logs or {}, dict(self.outputs),
            committed.readers, committed.passed, {**committed.sinks, **(sinks or {})}, self.types, self.migrating,
            committed.left, self.claims, {name: rows.kind for name, rows in self.tables.items() if rows.kind}, self.trimmed,
            committed.letters, self.parked_events, *self._timers(),
        )  # fmt: skip

    @property
    def parked_events(self) -> int:
        """How many events are behind the position, and not done."""
        parked = self.parked
        return parked.count if parked is not None and parked.loaded else self.committed.parked

    @property
    def held_keys(self) -> int:
        """How many keys wait for what becomes of a dead letter."""
        return self.parked.held if self.parked is not None else 0

    @property
    def waiting_for_letters(self) -> int:
        """How many parked events wait behind a dead one, until something is done with its letter."""
        queues = self.parked.queues.values() if self.parked is not None else ()
        return sum(len(queue.keys[held.key or b""]) - 1 for queue in queues for held in queue.held.values())

    def _timers(self) -> tuple[int, dict[str, int]]:
        """How many are pending, and how many were sent to each topic, in the epoch being sealed."""
        timers = self.timers
        return (0, {}) if timers is None else (timers.count, dict(timers.sent))

    @property
    def held_up(self) -> str:
        """Why one of its partitions takes no further events; empty where they do."""
        for cursor in self.cursors.values():
            parked = cursor.parked
            if parked is not None and parked.stops:
                return (
                    f"{cursor.tp.topic}[{cursor.tp.partition}]@{min(parked.used_up)} has failed as often as it may, and "
                    "Retry(then='stop') says that its partition waits for it"
                )
            if cursor.held_up:
                return cursor.held_up
        return ""

    @property
    def trimmed(self) -> int:
        """Up to here the log of marks holds nothing that is needed, as of the last commit."""
        live = self.marks.first_live_offset() if self.marks is not None else None
        return max(self.committed.trimmed, -1 if live is None else live)

    def hashed_from(self, topic: str) -> int:
        """Marks of records of the topic before this offset have payload hashes of another `compare=`."""
        at = self.committed.topics.get(topic)
        return 0 if at is None else at.hashed_from

    def source_tps(self) -> list[TP]:
        return [TP(topic, self.partition) for topic in self.topics]

    @property
    def state_logs(self) -> tuple[StateLog, ...]:
        """Its state, of whatever kind."""
        return (*self.tables.values(), *(log for log in (self.marks, self.parked, self.timers) if log is not None))

    @property
    def holds_state(self) -> bool:
        """The store holds something of it."""
        return any(log.holds_any for log in self.state_logs)


def task_meta(task: Task, position: Position | None, at_ms: int) -> dict[str, Any]:
    """What the store keeps of a task beside its rows: how far each log is in it, and the position that goes with that."""
    return {
        "v": 1,
        "logs": task.logs,
        "position": position.to_json() if position is not None else None,
        **{name: value for log in task.state_logs for name, value in log.noted().items()},
        "at": at_ms,
        "stamp": task.stamp_offset,
    }
