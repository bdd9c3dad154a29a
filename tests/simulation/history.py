"""What happened in a run, as data: every write and marker the cluster took, every producer and generation, in order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from semel.memory.batch import MemoryRecord
from semel.port import TP
from semel.state import positions
from semel.state.positions import Position


@dataclass(slots=True)
class Created:
    """A producer was given out; every earlier one of its transactional id is fenced from here on."""

    at: float
    transactional_id: str
    producer_id: int
    epoch: int


@dataclass(slots=True)
class Appended:
    at: float
    tp: TP
    producer_id: int
    epoch: int
    records: list[MemoryRecord]


@dataclass(slots=True)
class Ended:
    """A marker in one partition's log."""

    at: float
    tp: TP
    producer_id: int
    epoch: int
    commit: bool


@dataclass(slots=True)
class OffsetsSent:
    at: float
    group: str
    generation: int
    member_id: str
    producer_id: int
    epoch: int
    offsets: dict[TP, int]


@dataclass(slots=True)
class OffsetsEnded:
    at: float
    group: str
    producer_id: int
    commit: bool


@dataclass(slots=True)
class Generation:
    at: float
    group: str
    number: int
    members: list[str]


@dataclass(slots=True)
class Deleted:
    at: float
    tp: TP
    before: int


@dataclass(slots=True)
class TopicDeleted:
    """What is written under its name from here on is another topic's."""

    at: float
    topic: str


Event: TypeAlias = Created | Appended | Ended | OffsetsSent | OffsetsEnded | Generation | Deleted | TopicDeleted


@dataclass(slots=True)
class StoreSeen:
    """A running task's store when all was quiet: rows by table, and (bucket, id) of its marks."""

    worker: str
    partition: int
    rows: dict[str, dict[bytes, bytes]]
    marks: list[tuple[int, bytes]]


@dataclass(slots=True)
class Recovery:
    """A worker was killed, or everything became quiet, at `begun`; what it held ran again at `ended`. Virtual seconds."""

    what: str
    begun: float
    ended: float | None
    within_s: float


@dataclass
class History:
    """`app`: group and prefix of its topics. `agent`: its name. `window_ms`, `bucket_ms`: of its dedup.

    `exact_time`: stream time is a function of the records alone, since nobody's clock was turned back.
    `refusals`: a broker was made to refuse records, so that events may have been dead-lettered as refused.
    `stateful`: it has tables and a dedup rule. `reminds`: its agent may have several results of an event, and sends a reminder
    later of each payment that asks for it. `hopeless_attempts`: how many an event gets whose key is of another
    partition; an agent that swallows its error is asked again. `sink_sizes`: how many partitions the sink has had. `holds`: a
    key waits for the letter of an event of its own (`Retry(then="hold")`).

    One history is one life of the app's state: from its first start, or from a reset, to its last commit. `begins`: where
    the reset put each partition of the source, whose records may be older: `source` is where to look for them. `stopped`: a
    topic was changed so that all workers must stop, and may leave records undone; nothing that was written to the source
    after `unsafe_from` may have been done by any of them.
    """

    app: str
    agent: str
    partitions: int
    attempts: int
    window_ms: int
    bucket_ms: int
    exact_time: bool = True
    refusals: bool = False
    stateful: bool = True
    reminds: bool = True
    hopeless_attempts: int = 1
    holds: bool = False
    sink_sizes: set[int] = field(default_factory=set)
    begins: dict[int, int] = field(default_factory=dict)
    source: list[Event] | None = None
    stopped: bool = False
    unsafe_from: float = math.inf
    events: list[Event] = field(default_factory=list)
    stores: list[StoreSeen] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    # Outputs without an event: text -> whether its sender was told that it is committed.
    notes: dict[str, bool | None] = field(default_factory=dict)


class Recorder:
    """The cluster's journal. It notes at once what the run itself wants to know: committed positions, and the input's end."""

    def __init__(self, now: Callable[[], float], app: str, source: str) -> None:
        self.events: list[Event] = []
        self._now = now
        self._app = app
        self._source = source
        self._positions = f"{app}-positions"
        self._open: dict[tuple[TP, int], MemoryRecord] = {}
        self._committed: dict[int, MemoryRecord] = {}
        self.source_ends: dict[int, int] = {}
        self.commits = 0
        self.aborts = 0
        self.generations = 0

    def committed_next(self, partition: int) -> int:
        record = self._committed.get(partition)
        if record is None:
            return 0
        return self.position(record).topics[self._source].next

    def has_committed(self, partitions: int) -> bool:
        """Each of them, something."""
        return all(partition in self._committed for partition in range(partitions))

    def counted(self, *names: str) -> int:
        """By the last committed positions."""
        return sum(self.position(r).counts.get(name, 0) for r in self._committed.values() for name in names)

    @staticmethod
    def position(record: MemoryRecord) -> Position:
        return positions.decode(record.value or b"", "")

    # -- semel.memory.journal.Journal

    def created(self, transactional_id: str, producer_id: int, epoch: int) -> None:
        self.events.append(Created(self._now(), transactional_id, producer_id, epoch))

    def appended(self, tp: TP, producer_id: int, epoch: int, records: Sequence[MemoryRecord]) -> None:
        self.events.append(Appended(self._now(), tp, producer_id, epoch, list(records)))
        if tp.topic == self._positions:
            for record in records:
                if record.key == positions.KEY:
                    self._open[tp, producer_id] = record
        elif tp.topic == self._source:
            if producer_id < 0:
                self.source_ends[tp.partition] = records[-1].offset + 1
            else:
                self._open[tp, producer_id] = records[-1]

    def ended(self, tp: TP, producer_id: int, epoch: int, commit: bool) -> None:
        self.events.append(Ended(self._now(), tp, producer_id, epoch, commit))
        if tp.topic == self._positions:
            position = self._open.pop((tp, producer_id), None)
            if position is not None and commit:
                self._committed[tp.partition] = position
                self.commits += 1
            else:
                self.aborts += 1
        elif tp.topic == self._source:
            last = self._open.pop((tp, producer_id), None)
            if last is not None and commit:
                self.source_ends[tp.partition] = max(last.offset + 1, self.source_ends.get(tp.partition, 0))

    def deleted(self, tp: TP, before: int) -> None:
        self.events.append(Deleted(self._now(), tp, before))

    def topic_deleted(self, topic: str) -> None:
        self.events.append(TopicDeleted(self._now(), topic))
        self._open = {key: record for key, record in self._open.items() if key[0].topic != topic}
        if topic == self._source:
            self.source_ends.clear()

    def offsets_sent(self, group: str, generation: int, member_id: str, producer_id: int, epoch: int,
                     offsets: Mapping[TP, int]) -> None:  # fmt: skip
        self.events.append(OffsetsSent(self._now(), group, generation, member_id, producer_id, epoch, dict(offsets)))

    def offsets_ended(self, group: str, producer_id: int, commit: bool) -> None:
        self.events.append(OffsetsEnded(self._now(), group, producer_id, commit))

    def generation(self, group: str, number: int, members: Sequence[str]) -> None:
        self.generations += 1
        self.events.append(Generation(self._now(), group, number, list(members)))


# ---------------------------------------------------------------------- transactions


@dataclass(slots=True)
class Transaction:
    """All that one producer wrote between two ends. `outcomes`: of each partition written, and of the offsets (None).

    `at`: where in the history its first write to a partition stands. `gone`: partitions whose topic was deleted before its
    end; what it wrote there had the end that the rest has.
    """

    producer_id: int
    epoch: int
    begun: float
    writes: dict[TP, list[MemoryRecord]] = field(default_factory=dict)
    at: dict[TP, int] = field(default_factory=dict)
    gone: set[TP] = field(default_factory=set)
    offsets: dict[TP, int] = field(default_factory=dict)
    outcomes: dict[TP | None, bool] = field(default_factory=dict)

    @property
    def committed(self) -> bool:
        return any(self.outcomes.values())

    def wrote(self, tp: TP, records: list[MemoryRecord], index: int) -> None:
        if tp in self.gone:
            # Written again, to the topic that has the name now.
            self.gone.discard(tp)
            self.writes.pop(tp)
            self.at.pop(tp)
        self.writes.setdefault(tp, []).extend(records)
        self.at.setdefault(tp, index)

    def ended(self, of: TP | None, commit: bool) -> None:
        self.outcomes.setdefault(of, commit)
        for tp in self.gone:
            self.outcomes.setdefault(tp, commit)

    def lost(self, topic: str) -> None:
        self.gone |= {tp for tp in self.writes if tp.topic == topic and tp not in self.outcomes}
        if self.outcomes:
            self.ended(*next(iter(self.outcomes.items())))

    def __str__(self) -> str:
        said = {True: "committed", False: "aborted"}
        ends = ", ".join(f"{'offsets' if tp is None else _name(tp)} {said[c]}" for tp, c in self.outcomes.items())
        wrote = ", ".join(f"{_name(tp)}@{r[0].offset}-{r[-1].offset}" for tp, r in self.writes.items() if r)
        return f"transaction of producer {self.producer_id}/{self.epoch} at {self.begun:.3f}: {wrote}; {ends or 'open'}"


def _name(tp: TP) -> str:
    return f"{tp.topic}[{tp.partition}]"


def transactions(events: Sequence[Event]) -> list[Transaction]:
    """In the order of their ends; those that are open come last."""
    running: dict[int, Transaction] = {}
    ended: dict[int, Transaction] = {}
    done: list[Transaction] = []

    def current(producer_id: int, epoch: int, at: float) -> Transaction:
        ended.pop(producer_id, None)
        found = running.get(producer_id)
        if found is None:
            found = running[producer_id] = Transaction(producer_id, epoch, at)
        return found

    def ending(producer_id: int) -> Transaction | None:
        found = running.pop(producer_id, None)
        if found is not None:
            done.append(found)
            ended[producer_id] = found
        return ended.get(producer_id)

    for index, event in enumerate(events):
        match event:
            case Appended(at, tp, producer_id, epoch, records) if producer_id >= 0:
                current(producer_id, epoch, at).wrote(tp, records, index)
            case OffsetsSent(at, _, _, _, producer_id, epoch, offsets):
                current(producer_id, epoch, at).offsets.update(offsets)
            case Ended(_, tp, producer_id, _, commit):
                transaction = ending(producer_id)
                if transaction is not None and tp in transaction.writes:
                    # One that wrote nothing leaves markers, too, after those of the one before.
                    transaction.ended(tp, commit)
            case OffsetsEnded(_, _, producer_id, commit):
                transaction = ending(producer_id)
                if transaction is not None and transaction.offsets:
                    transaction.ended(None, commit)
            case TopicDeleted(_, topic):
                for transaction in (*running.values(), *ended.values()):
                    transaction.lost(topic)
            case _:
                pass
    return [*done, *running.values()]


class Standing(NamedTuple):
    """A record in a log. `life`: how many topics of that name were deleted before. `at`: when it was written."""

    index: int
    life: int
    at: float
    record: MemoryRecord


@dataclass
class Logs:
    """What stood in each log, by how its transaction ended, in the order in which it was written.

    Also what was compacted away since, and what was deleted with its topic: of what was open there then, the transaction's
    end elsewhere decides.
    """

    committed: dict[TP, list[Standing]] = field(default_factory=dict)
    # Also those whose transaction never ended.
    aborted: dict[TP, list[Standing]] = field(default_factory=dict)


def logs(events: Sequence[Event]) -> Logs:
    found = Logs()
    lives: Counter[str] = Counter()
    pending: dict[int, dict[TP, list[Standing]]] = {}
    lost: dict[int, dict[TP, list[Standing]]] = {}
    # How the transaction that a producer ended last ended.
    ends: dict[int, bool] = {}

    def settle(tp: TP, standing: list[Standing], commit: bool) -> None:
        (found.committed if commit else found.aborted).setdefault(tp, []).extend(standing)

    def end(producer_id: int, commit: bool) -> None:
        ends[producer_id] = commit
        for tp, standing in lost.pop(producer_id, {}).items():
            settle(tp, standing, commit)

    for index, event in enumerate(events):
        match event:
            case Appended(at, tp, producer_id, _, records):
                standing = [Standing(index, lives[tp.topic], at, record) for record in records]
                if producer_id < 0:
                    settle(tp, standing, True)
                    continue
                ends.pop(producer_id, None)
                again = lost.get(producer_id, {}).pop(tp, None)
                if again is not None:
                    settle(tp, again, False)
                pending.setdefault(producer_id, {}).setdefault(tp, []).extend(standing)
            case Ended(_, tp, producer_id, _, commit):
                settle(tp, pending.get(producer_id, {}).pop(tp, []), commit)
                end(producer_id, commit)
            case OffsetsEnded(_, _, producer_id, commit):
                end(producer_id, commit)
            case TopicDeleted(_, topic):
                lives[topic] += 1
                for producer_id, open_there in pending.items():
                    for tp in [tp for tp in open_there if tp.topic == topic]:
                        if producer_id in ends:
                            settle(tp, open_there.pop(tp), ends[producer_id])
                        else:
                            lost.setdefault(producer_id, {})[tp] = open_there.pop(tp)
            case _:
                pass
    for rest in (*pending.values(), *lost.values()):
        for tp, standing in rest.items():
            settle(tp, standing, False)
    for log in (*found.committed.values(), *found.aborted.values()):
        log.sort(key=lambda standing: standing.index)
    return found
