"""Runner: events go in, write sets come out (protocol rules 1, 3 and 5).

An `AgentRunner` runs one agent of this worker: one run of its code at a time, over work units of all its partitions, an event
at a time within a partition. Everything between receiving an event and asking for the next belongs to that event. An event that
fails is undone and parked, with the later events of its key; it is tried again after a while, then dead-lettered. `agent_loop`
runs the agent's code, `stream` is what that code iterates over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from operator import attrgetter
from typing import Any

from semel.errors import HandlingError, ProcessEnded, SessionLost, StaleIncarnation
from semel.event import Event
from semel.plan import AgentPlan
from semel.port import TP, Record
from semel.stages.agent.circuit_breaker import Halted
from semel.stages.agent.completion import Completion, open_batch
from semel.stages.agent.failure_handler import FailureHandler, undo
from semel.stages.agent.failure_log import FailureLog
from semel.stages.agent.failure_policy import Park, RetryAfter, StoreFailed
from semel.stages.agent.scheduler import Scheduler
from semel.stages.agent.turns import TURN_S, Turns
from semel.stages.agent.work_queue import LOOK_S, WorkQueue, parked_in, settle
from semel.stages.dedup.processor import DedupProcessor
from semel.stages.dedup.side_outputs import SideOutputs
from semel.stages.dedup.wall_clock import WallClock
from semel.stages.fetch.work_unit import WorkUnit
from semel.stages.services import Services
from semel.stages.sink.results import Results
from semel.state.crash_notes import CODE, HOLDS, CrashNotes
from semel.state.event_context import EventContext
from semel.state.task import Cursor


class AgentRunner:
    """One agent of this worker.

    `waiting`: there is nothing for it to do. `alone`: the record of the last work unit that held only one; while a poison pill
    is isolated, the one to blame (protocol rule 2). `make_stream`: what a streaming agent gets instead of an `EventStream`;
    `on_result`: what its results go to instead of `emit`. `notes`, `noted`: where it says what it has in hand.
    """

    def __init__(
        self,
        services: Services,
        scheduler: Scheduler,
        plan: AgentPlan,
        notes: CrashNotes,
        noted: memoryview,
        *,
        results: Results,
        origin: Callable[[TP], bytes] | None,
        released: Callable[[Cursor], None],
    ) -> None:
        self.services = services
        self.scheduler = scheduler
        self._origin = origin
        self._released = released
        self.plan = plan
        self.results = results
        self.context = EventContext(self.services.store_failed, self.event_in_hand)
        self.notes, self.noted = notes, noted
        self.waiting = False
        self.closed = False
        # The run that asks for its next work unit; work units given so far; bodies in a row that ended before
        # they asked, and how.
        self.asking: EventContext | None = None
        self.taken = 0
        self.failed_starts = 0
        self.start_error = ""
        # The running body is to end: its incarnation is over, or the runner is closed.
        self.over = asyncio.Event()
        self.alone: tuple[TP, int] | None = None
        self.make_stream: Callable[[EventContext], Any] | None = None
        # The error of the running body that has been counted as a failed attempt already.
        self.heard: BaseException | None = None
        self.on_result: Callable[[Any], Awaitable[None] | None] | None = None
        # The coroutine of the running body.
        self.code: Any = None
        # The task outside of the agent's steps that got the event in hand; why the way in which the running body asks is refused.
        self.asker: asyncio.Task[Any] | None = None
        self.misuse: HandlingError | None = None
        # Events, or batches, that counted as done because the agent's code returned.
        self.returned = 0
        side_outputs, wall_clock = SideOutputs(services), WallClock()
        self._log = FailureLog()
        self.turns = Turns(
            services.clock, scheduler, services.epoch, answers_for_all=lambda: scheduler.answers_for_all(self),
            session_lost=self._session_lost,
        )  # fmt: skip
        self.queue = WorkQueue(services, plan, self._log, lambda: scheduler.has_all_to_itself(self))
        self._processor = DedupProcessor(services, plan, side_outputs, wall_clock)
        self.completion = completion = Completion(services, self.queue, self.turns)
        self._failures = FailureHandler(services, plan, side_outputs, wall_clock, self._log, completion)
        self.emit = results.emit
        self.finish, self._finish_batch = completion.finish, completion.finish_batch
        self._read_key: dict[str, Callable[[bytes], Any]] = {t.name: t.key.decode for t in plan.sources}

    @property
    def unit(self) -> WorkUnit | None:
        """What it is at."""
        return self.context.unit

    # ------------------------------------------------------------------ taking

    async def next_unit(self, context: EventContext) -> WorkUnit:
        """The next work unit for the run that `context` belongs to. StaleIncarnation where that run is over."""
        self.asking, self.failed_starts, self.start_error = context, 0, ""
        try:
            while True:
                self.check_run(context)
                if not self.turns.passes:
                    await self.turns.wait()
                    continue
                taken, soonest = self._take()
                if taken is not None:
                    why = self._failures.used_up(taken)
                    if why is None:
                        return taken
                    self._give_up(taken, context, why)
                    continue
                self.queue.wake.clear()
                self.waiting = True
                self.services.changed.set()
                try:
                    async with asyncio.timeout(soonest):
                        await self.queue.wake.wait()
                except TimeoutError:
                    pass
                finally:
                    self.waiting = False
        finally:
            if self.asking is context:
                self.asking = None

    @property
    def halted(self) -> Halted | None:
        """Where its events fail one like the other, and none is taken but to probe."""
        return self._failures.breaker.halted(self.plan.name, self.services.clock.monotonic())

    @property
    def neglected(self) -> Cursor | None:
        """Whose records the agent could have asked for, and has not: it is neither at a work unit nor waiting for one."""
        if self.unit is not None or self.asking is self.context:
            return None
        return self.queue.first_due(self.services.clock.monotonic())

    def check_run(self, context: EventContext) -> None:
        """StaleIncarnation where the run that `context` belongs to is over."""
        if self.context is not context or self.closed:
            raise StaleIncarnation("this stream belongs to a run that is over")

    def _take(self) -> tuple[WorkUnit | None, float | None]:
        """A work unit that may run now; else how long until one may."""
        now = self.services.clock.monotonic()
        self._log.sum_up(now)
        if not self.scheduler.may_take(self):
            return None, LOOK_S
        breaker = self._failures.breaker
        if breaker.open:
            if breaker.closes():
                self._log.goes_on(self.plan.name)
            elif wait_s := breaker.wait_s(now):
                return None, wait_s
        unit, soonest = self.queue.take(now, one_by_one=self.scheduler.one_by_one or breaker.open)
        if unit is not None:
            self._hold(unit, now)
        return unit, soonest

    def _hold(self, unit: WorkUnit, now: float) -> None:
        context, task, tp = self.context, unit.cursor.task, unit.cursor.tp
        self.taken += 1
        context.unit = unit
        self.alone = (tp, unit.record.offset) if unit.end - unit.start == 1 else None
        context.task = task
        context.wall_ms = unit.wall_ms
        context.writes.most_bytes = self.services.epoch.event_bytes
        context.tables = task.tables
        context.id = context.steps = None
        context.origin = None if self._origin is None else self._origin(tp)
        task.holder = self
        if task.dedup is None:
            task.dedup = self.plan.dedup
        if unit.end > unit.start:
            first, last = unit.record, unit.fetched.records[unit.end - 1]
            if unit.retried is not None:
                # These come as they are due.
                ordered = sorted(unit.records, key=attrgetter("offset"))
                first, last = ordered[0], ordered[-1]
            self.notes.note(self.noted, tp, first.offset, last.offset, first.timestamp, now)

    def misused(self, why: HandlingError, context: EventContext) -> None:
        """The running body asks for its events in a way that is refused: no event's fault."""
        self.misuse = why
        self._log.misused(why, self.services.clock.monotonic())
        self.set_aside(context)

    def set_aside(self, context: EventContext) -> None:
        """What is in hand is undone and given back, and is put down to nobody."""
        unit = self.unit
        if unit is None or not context.alive:
            return
        undo(unit, context)
        self.release()

    def settle(self) -> None:
        """Bring position and stream time up to what is done; called before a seal."""
        if self.unit is not None:
            settle(self.unit)

    def release(self) -> None:
        """Give the work unit back; what was not done of it stays first in its queue."""
        unit = self.unit
        if unit is None:
            return
        cursor, self.context.unit = unit.cursor, None
        self.noted[HOLDS] = 0
        self.queue.give_back(unit)
        self._released(cursor)
        self.scheduler.released(self)
        if cursor.queue or parked_in(cursor):
            self.queue.offer(cursor)

    # ------------------------------------------------------------------ going through a work unit

    def admit(self, unit: WorkUnit, context: EventContext) -> Iterator[Any]:
        """The values of a work unit that are to take effect: `begin` each, then `finish` it, before asking for the next."""
        return self._processor.values(unit, context)

    def admit_batch(self, unit: WorkUnit, context: EventContext) -> list[tuple[Any, Record]]:
        """The values of a work unit and their records, as one unit of work; `complete` ends it, whether any are left or not."""
        return open_batch(unit, context, self._processor.values(unit, context))

    def begin(self, context: EventContext) -> None:
        if self.context is not context or self.closed:
            self.check_run(context)
        context.begin()
        if self.turns.usage.stepped_at is None:
            self.begun_elsewhere(context)

    def begun_elsewhere(self, context: EventContext) -> None:
        """Not the agent's own code asked for the event that is in hand now."""
        self.noted[CODE] = 1
        self.asker = asyncio.current_task()
        context.begun_elsewhere()

    async def pause(self, context: EventContext, turn_ends: float) -> float:
        """Between two events: let others run, and wait at the gate if it is closed. Until when the next turn lasts."""
        monotonic = self.services.clock.monotonic
        self.noted[CODE] = self.turns.usage.stepped_at is not None
        if monotonic() > turn_ends:
            self.services.changed.set()
            await self.turns.let_go()
            turn_ends = monotonic() + TURN_S
        while not self.turns.passes:
            await self.turns.wait()
        self.check_run(context)
        return turn_ends

    def step_begins(self, context: EventContext) -> None:
        """The body of this context runs from here to `step_ends`, and nothing else does."""
        mine = context is self.context
        self.turns.begin_step(counts=mine)
        if mine:
            self.noted[CODE] = 1

    def step_ends(self) -> None:
        if self.turns.end_step(within_event=self.context.holding):
            self.noted[CODE] = self.context.holding

    def _session_lost(self) -> None:
        if self.unit is not None:
            self._failures.lost_session(self.unit, self.context)

    def end_unit(self, context: EventContext) -> None:
        self.check_run(context)
        self.release()
        self.services.changed.set()

    @property
    def where(self) -> str:
        """The record that the agent is at, for people; a thread may ask, too."""
        context = self.context
        unit: WorkUnit | None = context.unit
        return "no record" if unit is None else unit.where(context.record)

    @property
    def at_record(self) -> bool:
        """It is at a record of its work unit that is not done."""
        return self.unit is not None and self.unit.index < self.unit.end

    def event_in_hand(self) -> Event | None:
        unit = self.unit
        if unit is None or not self.context.holding:
            return None
        record = self.context.record
        return None if record is None else self.event(self._processor.value(unit, record), record, unit.cursor.tp)

    def event(self, value: Any, record: Record, tp: TP) -> Event:
        return Event(value, record, tp.topic, tp.partition, self._read_key.get(tp.topic))

    # ------------------------------------------------------------------ the write set

    def returns(self, context: EventContext) -> None:
        """The agent's code has returned with something in hand, which is done."""
        where = self.where
        self.complete(context)
        self.returned += 1
        self._log.returned(self.plan.name, where)
        self.release()

    def complete(self, context: EventContext) -> None:
        """Whatever is in hand is done: an event, or a batch."""
        unit = self.unit
        if unit is None or unit.batch is None:
            self.finish(context)
        else:
            self._finish_batch(context)

    # ------------------------------------------------------------------ failing

    def _give_up(self, unit: WorkUnit, context: EventContext, why: SessionLost | ProcessEnded) -> None:
        if not self._failures.quarantined_unseen(unit, why):
            for _ in self._processor.values(unit, context):
                context.begin()
                self.failed(why, context)
                return
        self.release()

    def failed_unheard(self, exc: Exception, context: EventContext) -> None:
        """As `failed`, before the agent's own code gets to see the error: it may swallow it."""
        if exc is self.misuse:
            return
        if context is self.context:
            self.heard = exc
        self.failed(exc, context)

    def failed(self, exc: BaseException, context: EventContext) -> None:
        """The event in hand failed: undo it, then decide whether it is tried again."""
        unit = self.unit
        if unit is None or not context.alive:
            return
        self.turns.look()
        decision = self._failures.failed(unit, context, exc, program_at_fault=self.misuse is not None)
        if isinstance(decision, StoreFailed):
            # Everything in hand has been given up.
            return
        if isinstance(decision, (Park, RetryAfter)):
            self.alone = None
        self.release()

    # ------------------------------------------------------------------ epochs

    def abandon(self) -> None:
        """The incarnation is over: whatever is in hand is void, and so is the body that holds it.

        A body that has had nothing in hand stays: what it did before its loop is done once.
        """
        self.queue.clear()
        self.alone = None
        if not self.context.event and self.unit is None:
            return
        self.turns.forget()
        self.context.alive, self.context.unit = False, None
        self.context.writes.forget()
        self.context = EventContext(self.services.store_failed, self.event_in_hand)
        self.noted[CODE] = self.noted[HOLDS] = 0
        self.over.set()

    def close(self) -> None:
        self.turns.usage.stop_awaiting()
        self.closed = True
        self.context.alive = False
        self.over.set()
