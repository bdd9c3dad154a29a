"""Work unit: the records a runner is at, and how far it has come in them."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from semel.port import NO_TIMESTAMP, Record
from semel.stages.sink.destination import ProducerRecord
from semel.state.dedup_marks import DEAD, DONE, with_outcome
from semel.state.parked import Queued
from semel.state.parked_event import ParkedEvent
from semel.state.replay import revision_of
from semel.state.task import Cursor, FetchedBatch


class Release(NamedTuple):
    """A record that ends the hold of a key, if it is for the event that holds it."""

    record: Record


class OpenBatch:
    """A work unit handled as one unit of work. What became of its other records counts only when the batch is done.

    `events`: how many of its records the agent got. `counts`, `letters`, `parked`: the rest; among those that are parked, in
    their order, the records that end the hold of a key.
    """

    __slots__ = ("counts", "events", "letters", "parked")

    def __init__(self) -> None:
        self.events = 0
        self.parked: list[ParkedEvent | Release] = []
        self.counts: Counter[str] = Counter()
        self.letters: list[ProducerRecord] = []


class WorkUnit:
    """Records of one cursor given to a runner: `records[start:end]` of a batch.

    `index`: the record in hand, or the next one. `wall_ms`: the clock when the work unit was taken. `moved`: stream time after
    the event in hand, or the batch; it moves when that is done, not before, and in the same epoch. `batch`: None where its events
    are handled one by one.

    Without a dedup rule, stream time moves for many events at once, when it is asked for: `timed`: up to here it has; `end`
    where nothing is to move it. `times`: of all records, an int where there is one; None: their timestamps.

    `retried`: where its records are parked events, these, one for each record; up to `removed` they are parked no more.
    `unjudged`: a function of the dedup rule has failed on the record at `index`. `ahead`: they are judged and parked, all
    of them, so that their keys are handled side by side. `by_itself`: no other event of its task is to be in hand.
    `taken`: how many records it had when it was taken.
    """

    __slots__ = (
        "ahead", "batch", "by_itself", "cursor", "end", "fetched", "index", "moved", "removed", "retried", "start", "taken",
        "timed", "times", "unjudged", "wall_ms",
    )  # fmt: skip

    def __init__(
        self,
        cursor: Cursor,
        fetched: FetchedBatch,
        end: int,
        wall_ms: int,
        retried: list[tuple[Queued, ParkedEvent]] | None = None,
    ) -> None:
        self.retried = retried
        self.removed = 0
        self.unjudged = self.ahead = self.by_itself = False
        self.cursor = cursor
        self.fetched = fetched
        self.start = self.index = fetched.start
        self.end = self.timed = end
        self.taken = end - fetched.start
        self.wall_ms = wall_ms
        self.moved: tuple[int | None, tuple[int, ...]] | None = None
        self.batch: OpenBatch | None = None
        self.times: list[int | str | None] | None = None

    def leave_out(self, index: int) -> None:
        """A record that has no part in stream time."""
        if self.times is None:
            self.times = [at if (at := r.timestamp) != NO_TIMESTAMP else None for r in self.records]
        self.times[index - self.start] = None

    def times_done(self) -> list[int]:
        """Event times of what was done since they were asked for last."""
        begin, self.timed = self.timed, self.index
        if self.times is None:
            return [at for r in self.fetched.records[begin : self.index] if (at := r.timestamp) != NO_TIMESTAMP]
        times = self.times[begin - self.start : self.index - self.start]
        return [at for at in times if type(at) is int]

    @property
    def failures(self) -> int:
        """How often the event in hand, or the next one, has failed."""
        if self.retried is not None:
            return self.retried[self.index][1].attempts
        return self.cursor.retry_state.failed_before(self.position)

    def waits_for_its_key(self, record: Record) -> bool:
        """Earlier events of its key are parked, and it is not one of them itself."""
        parked = self.cursor.parked
        return self.retried is None and parked is not None and record.key in parked.keys

    def unpark(self) -> None:
        """What is done of parked events is parked no more, and its marks say how it ended."""
        parked, task = self.cursor.parked, self.cursor.task
        assert parked is not None and self.retried is not None
        for queued, event in self.retried[self.removed : self.index]:
            if queued.to_hold:
                parked.hold(event, queued.to_hold, queued)
            else:
                parked.remove(queued)
            if event.mark is not None and event.id is not None and task.marks is not None:
                ended = with_outcome(event.mark, DONE)
                if queued.given_up:
                    ended = with_outcome(event.mark, DEAD, revision_of(event.record.headers))
                task.marks.amend(event.id, ended, task.stream_ms)
            task.touched = True
        self.removed = self.index

    def cut(self, index: int) -> None:
        """It ends there, whatever it was to hold."""
        self.end = index

    @property
    def record(self) -> Record:
        return self.fetched.records[self.index]

    @property
    def records(self) -> list[Record]:
        """All of them, done or not."""
        fetched = self.fetched.records
        return fetched if self.end - self.start == len(fetched) else fetched[self.start : self.end]

    @property
    def position(self) -> int:
        """The next offset to be done."""
        fetched = self.fetched
        return fetched.records[self.index].offset if self.index < len(fetched.records) else fetched.next_offset

    def where(self, record: Record | None) -> str:
        """The record that is in hand, for people; `record`: of the event in hand, where the unit is done but for that."""
        if record is None or self.index < self.end:
            record = self.fetched.records[min(self.index, self.end - 1)]
        tp, others = self.cursor.tp, self.end - self.start - 1
        more = f" and {others} more" if self.batch is not None and others else ""
        return f"{tp.topic}[{tp.partition}]@{record.offset} (key {record.key!r:.80}){more}"
