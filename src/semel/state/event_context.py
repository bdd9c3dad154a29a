"""Event context: the event in hand, the one ambient value. Tables named by closure need it; nothing else may use it.

An `EventContext` belongs to one runner (one running agent). While an event is in hand it collects the event's write set,
which joins the open epoch when the event is done, or is dropped when it fails.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar, copy_context
from enum import Enum
from threading import get_ident
from typing import Any

from semel.errors import HandlingError, OutputRefused, OutsideEvent, StaleIncarnation
from semel.state import lineage
from semel.state.store import StoreError
from semel.state.table_rows import MISSING, Rows
from semel.state.timers import TIMER_BYTES, DelayedOutput, EventTimers, TimerPlace
from semel.state.write_set import DirtyValue, WriteSet

current_context: ContextVar[EventContext | None] = ContextVar("semel_event_context", default=None)
# The event a context was made in. Tasks, threads and callbacks that a handler starts inherit it; one that outlives its
# event still finds the context, with another event in it, and is told apart by this.
event_number: ContextVar[int] = ContextVar("semel_event_number", default=0)


def refuse_waiting_for_commit(what: str) -> None:
    """HandlingError where an event is in hand: a last commit waits for it to end (protocol rule 5)."""
    context = current_context.get()
    if context is not None and context.mine:
        raise HandlingError(
            f"the commit of {what} was waited for inside an event: the last commit before a partition goes waits for running "
            "events, so each would wait for the other. Send within the event, which needs no waiting: what it sends commits with "
            "it"
        )


class OutputNumbers:
    """The outputs of a batch by the record that each comes from.

    `ids`: the dedup ids of its records, by offset; `counts`: how many outputs each has; `offsets`: whose each output is.
    """

    __slots__ = ("counts", "ids", "offsets")

    def __init__(self, ids: dict[int, Any]) -> None:
        self.ids = ids
        self.counts: dict[int, int] = {}
        self.offsets: list[int] = []

    def taken(self, offset: int) -> None:
        self.counts[offset] = self.counts.get(offset, 0) + 1
        self.offsets.append(offset)

    def in_order(self, outputs: list[Any]) -> list[Any]:
        """The outputs in the order in which the agent was given their events, whatever the order in which it gave them: by their
        offsets, but for a replay that comes before those that waited for it."""
        nth = {offset: number for number, offset in enumerate(self.ids)}
        numbers = (nth[offset] for offset in self.offsets)
        return [out for _, out in sorted(zip(numbers, outputs, strict=True), key=_first)]


def _first(pair: tuple[int, Any]) -> int:
    return pair[0]


# The numbers of failed attempts that are kept, 8 bytes each and more: what a task may be outlived by and still be known.
FAILED_ATTEMPTS = 10_000


class EventStatus(Enum):
    """What became of an event that code is from which has outlived it."""

    OPEN = "done, in the open epoch"
    SEALED = "done, its epoch has no answer yet"
    COMMITTED = "committed"
    VOID = "undone"


class EventHistory:
    """What became of the events that a context has held, by their numbers.

    `sealed`, `committed`: the last number in an epoch that was cut, that was committed. `after`: outputs that wait for the
    answer of the epoch in between, None where there is none on its way. `told`: what to call when an event is committed.
    """

    __slots__ = ("_failed", "_failures", "_forgotten", "after", "committed", "sealed", "told")

    def __init__(self) -> None:
        self.sealed = self.committed = self._forgotten = 0
        self.after: list[Any] | None = None
        self.told: list[tuple[int, Callable[[], None]]] = []
        self._failures: deque[int] = deque()
        self._failed: set[int] = set()

    def failed(self, number: int) -> None:
        if self.told:
            self.told = [(event, tell) for event, tell in self.told if event != number]
        self._failures.append(number)
        self._failed.add(number)
        if len(self._failures) > FAILED_ATTEMPTS:
            self._forgotten = self._failures.popleft()
            self._failed.discard(self._forgotten)

    def commit(self, number: int) -> None:
        """All up to this one that have not failed are committed."""
        self.committed = max(self.committed, number)
        if self.told:
            told, self.told = self.told, []
            for event, tell in told:
                if event <= number:
                    tell()
                else:
                    self.told.append((event, tell))

    def status(self, number: int, *, alive: bool) -> EventStatus:
        if number in self._failed or number <= self._forgotten:
            return EventStatus.VOID
        if number <= self.committed:
            return EventStatus.COMMITTED
        if number <= self.sealed:
            return EventStatus.VOID if self.after is None else EventStatus.SEALED
        return EventStatus.OPEN if alive else EventStatus.VOID


class EventContext:
    """What a runner has in hand.

    `unit`: the work unit it is at, None between two; `task`: its task; `wall_ms`: the clock when it was taken. `tables`: name ->
    rows of the task in hand. `event`: the number of the event. `alive` turns false when the context's
    incarnation is over (protocol rule 5). `record`: of the event; of a batch, the one its loop is at, else None. `id`: its
    dedup id. `origin`: what the lineage of its partition's outputs begins with, None where they get none. `steps`: the
    outputs of a batch so far. `batch`: its values and records. `entered`: it is being iterated over; `told`: the run that it
    belongs to has been told that it is over. `store_failed` hears of a store that cannot be read before the agent does.
    `current`: gives the event in hand, as its agent would have it. `thread`, `body`, `variables`: what the agent's code runs
    in. `writes`: what the event in hand has written. `lost`: the number of the event whose loss of the session has been counted.
    """

    __slots__ = (
        "alive",
        "batch",
        "body",
        "current",
        "entered",
        "event",
        "history",
        "holding",
        "id",
        "lost",
        "origin",
        "record",
        "steps",
        "store_failed",
        "tables",
        "task",
        "thread",
        "told",
        "unit",
        "variables",
        "wall_ms",
        "writes",
    )  # fmt: skip

    def __init__(
        self, store_failed: Callable[[StoreError], None] | None = None, current: Callable[[], Any] | None = None
    ) -> None:
        self.alive = True
        self.entered = self.told = False
        self.store_failed = store_failed
        self.current = current
        self.thread = get_ident()
        self.body: asyncio.Task[Any] | None = None
        self.variables = copy_context()
        self.batch: Sequence[tuple[Any, Any]] = ()
        self.history = EventHistory()
        self.holding = False
        self.event = 0
        self.lost = -1
        self.unit: Any = None
        self.task: Any = None
        self.wall_ms = 0
        self.tables: dict[str, Rows] = {}
        self.record: Any = None
        self.id: Any = None
        self.origin: bytes | None = None
        self.steps: OutputNumbers | None = None
        self.writes = WriteSet()

    def begin(self) -> None:
        """An event is in hand from now on, for whatever runs in this context or is started from it."""
        self.holding = True
        id = self.id
        self.writes.bytes = len(id) if type(id) is bytes else 0
        self.event = number = self.event + 1
        event_number.set(number)

    def begun_elsewhere(self) -> None:
        """A task of the agent's asked for the event in hand, as `wait_for` makes one: the agent's own code has it, too."""
        # Somebody may be at work in that very context: then it knows by itself.
        with suppress(RuntimeError):
            self.variables.run(event_number.set, self.event)

    @property
    def mine(self) -> bool:
        """Whether the event in hand is the one that the running code belongs to."""
        return self.holding and (event_number.get() == self.event or self._in_body())

    def _in_body(self) -> bool:
        """Whether the running code is the agent's own, which handles what is in hand, whatever its context says."""
        try:
            if self.body is None or asyncio.current_task() is not self.body:
                return False
        except RuntimeError:
            return False
        event_number.set(self.event)
        return True

    # -- tables

    @property
    def stale(self) -> bool:
        """Another event has changed a row that the one in hand has seen. StoreError where the store cannot be read."""
        return any(rows.stale for rows in self.tables.values())

    def rows(self, name: str) -> Rows:
        """The rows of a table in hand. OutsideEvent, StaleIncarnation where the running code may not use them."""
        if get_ident() == self.thread and self.alive and self.mine:
            rows = self.tables.get(name)
            if rows is not None:
                return rows
        raise self._refused(name)

    def _refused(self, name: str) -> BaseException:
        if get_ident() != self.thread:
            return OutsideEvent(
                f"table {name!r} was used in another thread than its agent's, where it would race with the commit; read what the "
                "thread needs before it starts, have it return what is to be written, and write that after the await"
            )
        if not self.alive:
            return StaleIncarnation("the event in hand was given up: its partition moved, or its epoch was aborted")
        if not self.mine:
            return OutsideEvent(
                f"table {name!r} was used when the event it was used for was over, by a task that its handler had "
                "started or by code that runs between two events; await such tasks before the event ends"
            )
        return OutsideEvent(f"table {name!r} is not one of this pipeline's tables; list it in Pipeline(tables=[...])")

    def read(self, rows: Rows, key: Any, default: Any) -> Any:
        """The value, or MISSING. `default`: makes the value of a missing row, so that its changes in place are seen."""
        if rows.immutable:
            value = rows.hot.get(key, MISSING)
            if value is not MISSING and (rows.numeric_key is None or type(key) is rows.numeric_key):
                return value
        try:
            return rows.value(key) if rows.immutable else self._read_changeable(rows, key, default)
        except StoreError as exc:
            self.unreadable(exc)
            raise

    def unreadable(self, exc: StoreError) -> None:
        """The store cannot be read. The agent may take that for a missing row; by then the event must be void."""
        if self.store_failed is not None:
            self.store_failed(exc)

    def _read_changeable(self, rows: Rows, key: Any, default: Any) -> Any:
        raw = rows.raw(key)
        seen = self.writes.dirty.get((rows.name, raw))
        if seen is not None:
            if default is None and not seen.there and rows.encode(key, raw, seen.value) == seen.before:
                # A default that was handed out and not changed is no row.
                return MISSING
            return seen.value
        stored = rows.load(raw)
        if stored is not None:
            value = rows.decoded(key, stored)
            self.writes.dirty[(rows.name, raw)] = DirtyValue(rows, key, raw, value, stored, True)
        elif default is None:
            return MISSING
        else:
            value = default()
            self.writes.dirty[(rows.name, raw)] = DirtyValue(rows, key, raw, value, rows.encode(key, raw, value), False)
        return value

    def has(self, rows: Rows, key: Any) -> bool:
        """Whether there is such a row, readable or not."""
        raw = rows.raw(key)
        if (rows.name, raw) in self.writes.dirty:
            return self.read(rows, key, None) is not MISSING
        try:
            return rows.load(raw) is not None
        except StoreError as exc:
            self.unreadable(exc)
            raise

    # -- outputs

    def lineage(self, record: Any) -> tuple[str, bytes] | None:
        """The header that the next output of this record is to carry."""
        origin, steps, offset = self.origin, self.steps, record.offset
        if origin is None:
            return None
        if steps is None:
            id, step = self.id, len(self.writes.outputs)
        else:
            id, step = steps.ids.get(offset), steps.counts.get(offset, 0)
        return lineage.HEADER, b"%b%d/%d/%b" % (origin, offset, step, id if type(id) is bytes else b"")

    def lineage_later(self, record: Any, step: int, *, named: bool = False) -> tuple[str, bytes] | None:
        """As `lineage`, of the timer numbered `step` of this record, of those with a name or of the others."""
        if self.origin is None:
            return None
        id = self.id if self.steps is None else self.steps.ids.get(record.offset)
        kind = b"~" if named else b"+"
        return lineage.HEADER, b"%b%d/%b%d/%b" % (
            self.origin, record.offset, kind, step, id if type(id) is bytes else b""
        )  # fmt: skip

    def record_of(self, whose: Any) -> Any:
        """The record that `Output(of=...)` means. OutputRefused where that is none, or more than one, of those in hand."""
        among = self.batch or ((MISSING, self.record),)
        records = [r for v, r in among if whose is v or whose is r or getattr(whose, "record", None) is r]
        if not records and self.steps is None:
            raise OutputRefused(
                f"Output(of={whose!r:.80}): the agent has one event in hand, no batch, and every result is that event's; leave "
                "of= out"
            )
        if len(records) != 1:
            raise OutputRefused(
                f"Output(of={whose!r:.80}) names {'no event' if not records else f'{len(records)} events'} in hand; "
                "give one of the batch's values, of its events or of its records"
            )
        return records[0]

    def emit(self, out: Any, record: Any) -> None:
        """OutputRefused where it is too much for one event."""
        self.writes.emit(out)
        if self.steps is not None:
            self.steps.taken(record.offset)

    def set_timer(self, place: TimerPlace, output: DelayedOutput) -> None:
        """The event sets a timer. OutputRefused where it is too much for one event, or for the log."""
        log, raw = self.task.timers, output.encode()
        if len(raw) > log.max_bytes:
            raise OutputRefused(
                f"output to {output.topic!r} of {len(raw)} bytes that is to be sent later does not fit {log.topic}, which "
                f"takes {log.max_bytes}; send less, or raise max.message.bytes of that topic"
            )
        self._take(TIMER_BYTES + len(raw) + 2 * len(output.name))
        try:
            self._timers().set(place, raw, output.name)
        except StoreError as exc:
            self.unreadable(exc)
            raise

    def cancel_timer(self, name: bytes) -> None:
        """The event cancels what is pending under the name of this row. OutputRefused where it is too much for one event."""
        self._take(TIMER_BYTES + len(name))
        try:
            self._timers().cancel(name)
        except StoreError as exc:
            self.unreadable(exc)
            raise

    def _take(self, size: int) -> None:
        """So many bytes more are the event's. OutputRefused where that is too much for one."""
        writes = self.writes
        writes.bytes += size
        if writes.bytes > writes.most_bytes:
            writes.check_size(size)

    def next_timer(self, offset: int, *, named: bool = False) -> int:
        """The number of the next timer that the event at this offset sets, of those with a name or of the others."""
        return self._timers().steps.get((offset, named), 0)

    def _timers(self) -> EventTimers:
        timers = next((each for each in self.writes.rows if isinstance(each, EventTimers)), None)
        if timers is None:
            timers = EventTimers(self.task.timers)
            self.writes.rows.append(timers)
        return timers

    # -- how it ends

    def undo(self) -> None:
        """The event leaves no trace."""
        self.history.failed(self.event)
        self.writes.drop()
        self.holding = False
