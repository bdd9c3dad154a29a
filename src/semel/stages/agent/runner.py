"""Runner: events go in, write sets come out (protocol rules 1, 3 and 5).

An `AgentRunner` is one slot of an agent of this worker: one run of its code at a time, over work units of all its partitions, an
event at a time. Everything between receiving an event and asking for the next belongs to that event. An event that
fails is undone and parked, with the later events of its key; it is tried again after a while, then dead-lettered. `agent_loop`
runs the agent's code, `stream` is what that code iterates over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from operator import attrgetter
from typing import Any

from semel.errors import HandlerTimeout, HandlingError, OutsideEvent, ProcessEnded, SessionLost, StaleIncarnation
from semel.event import Attempt, Event, EventIdentity
from semel.port import TP, Record
from semel.runtime import forks
from semel.stages.agent.completion import open_batch
from semel.stages.agent.failure_handler import undo
from semel.stages.agent.failure_policy import HandleAnew, Park, RetryAfter, StoreFailed
from semel.stages.agent.handler_thread import HandlerThread
from semel.stages.agent.identity import EventIdentifier
from semel.stages.agent.scheduler import Scheduler
from semel.stages.agent.slots import AgentSlots
from semel.stages.agent.turns import TURN_S, Turns
from semel.stages.agent.work_queue import LOOK_S, parked_in, settle
from semel.stages.fetch.work_unit import WorkUnit
from semel.state.crash_notes import CODE, HOLDS, CrashNotes
from semel.state.event_context import EventContext, current_context
from semel.state.row_overlay import RowOverlay
from semel.state.task import Cursor


class AgentRunner:
    """One slot of an agent.

    `waiting`: there is nothing for it to do. `lets_go`: it lets others run, and awaits nothing.
    `alone`: the record of the last work unit that held only one; while a poison pill
    is isolated, the one to blame (protocol rule 2). `make_stream`: what a streaming agent gets instead of an `EventStream`;
    `on_result`: what its results go to instead of `emit`. `notes`, `noted`: where it says what it has in hand.
    """

    def __init__(
        self,
        slots: AgentSlots,
        scheduler: Scheduler,
        notes: CrashNotes,
        noted: memoryview,
    ) -> None:
        services, plan = slots.services, slots.plan
        self.slots = slots
        self.services = services
        self.scheduler = scheduler
        self._origin = slots.origin
        self._released = slots.released
        self.plan = plan
        self.context = EventContext(self.services.store_failed, self.event_in_hand)
        self.notes, self.noted = notes, noted
        self._generation = forks.generation
        self.waiting = self.lets_go = False
        self.closed = False
        # The engine opens a topic for its code, which waits for nothing of its own meanwhile.
        self.opens = False
        # Where the agent's function runs, if not on the loop.
        self.thread: HandlerThread | None = None
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
        # How many events had begun when its work unit was taken: what has since, its code was given.
        self._given_before = 0
        self._limiter = slots.limiter
        self._log = slots.log
        self.turns = Turns(
            services.clock, scheduler, services.epoch, answers_for_all=lambda: scheduler.answers_for_all(self),
            session_lost=self._session_lost,
        )  # fmt: skip
        self.queue = slots.queue
        self._processor = slots.processor
        self._failures = slots.failures
        self.emit = slots.results.emit
        self.finish, self._finish_batch = slots.completion.finish, slots.completion.finish_batch
        if plan.by_key:
            self.finish, self._finish_batch = self._finish_unless_stale, self._finish_batch_unless_stale
        self._read_key: dict[str, Callable[[bytes], Any]] = {t.name: t.key.decode for t in plan.sources}
        self._identifier: EventIdentifier | None = None
        self._attempt, self._attempt_in = Attempt(0), self.context
        self._identify = self.identity

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
                if taken is not None and taken.ahead:
                    self._look_ahead(taken, context)
                    continue
                if taken is not None:
                    why = self._failures.used_up(taken)
                    if why is None:
                        return taken
                    self._give_up(taken, context, why)
                    continue
                self.waiting = True
                self.services.changed.set()
                try:
                    await self.queue.idle(soonest)
                finally:
                    self.waiting = False
        finally:
            if self.asking is context:
                self.asking = None

    @property
    def awaits(self) -> bool:
        """Its code awaits something within the event in hand."""
        return self.context.holding and self.turns.usage.stepped_at is None and not self.lets_go

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
        if not self.slots.may_take(self):
            # It is told when another awaits something.
            return None, None
        breaker = self._failures.breaker
        if breaker.open:
            if breaker.closes():
                self._log.goes_on(self.plan.name)
            elif wait_s := breaker.wait_s(now) or (LOOK_S if self.queue.busy else 0.0):
                # One at a time is tried.
                return None, wait_s
        unit, soonest = self.queue.take(now, one_by_one=self.scheduler.one_by_one or breaker.open, alone=self._alone)
        if unit is not None:
            self._hold(unit, now)
            self.queue.pass_on()
        return unit, soonest

    def _alone(self) -> bool:
        return self.scheduler.has_all_to_itself(self)

    def _hold(self, unit: WorkUnit, now: float) -> None:
        context, task, tp = self.context, unit.cursor.task, unit.cursor.tp
        self.taken += 1
        self.queue.busy += 1
        self._given_before = context.event
        context.unit = unit
        self.alone = (tp, unit.record.offset) if unit.end - unit.start == 1 else None
        context.task = task
        context.wall_ms = unit.wall_ms
        context.writes.most_bytes = self.services.epoch.event_bytes
        context.tables = task.tables
        if self.plan.by_key:
            task.in_hand += 1
            context.tables = {name: RowOverlay(rows) for name, rows in task.tables.items()}
        context.id = context.steps = None
        context.origin = None if self._origin is None else self._origin(tp)
        if not self.plan.by_key or (task.in_hand == 1 and unit.by_itself):
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
        cursor.task.in_hand -= self.plan.by_key
        self.queue.busy -= 1
        self.noted[HOLDS] = 0
        if self._limiter is not None and not unit.ahead:
            self._limiter.gave_back(unit.taken - (self.context.event - self._given_before))
        self.queue.give_back(unit)
        self._released(cursor)
        self.scheduler.released(self)
        if cursor.queue or parked_in(cursor):
            self.queue.offer(cursor)
        elif len(self.slots.runners) > 1 and self.queue.ready:
            # Others may have waited for it to be done; its code need not ask again soon.
            self.queue.wake.set()

    # ------------------------------------------------------------------ events of several keys at a time

    def _look_ahead(self, unit: WorkUnit, context: EventContext) -> None:
        """Records of a partition are judged in their order, and parked until their turn comes, which is at once for the first of
        each key. The position passes them; whatever becomes of the events, each is in the log of parked ones until it is done."""
        try:
            for _ in self._processor.values(unit, context):
                raise AssertionError("an event was given out that was to be parked")
        except Exception as exc:
            self.failed(exc, context)
        else:
            self.release()

    def _finish_unless_stale(self, context: EventContext) -> None:
        if not self._stale(context):
            self.slots.completion.finish(context)

    def _finish_batch_unless_stale(self, context: EventContext, turns: Turns) -> None:
        if not self._stale(context):
            self.slots.completion.finish_batch(context, turns)

    def _stale(self, context: EventContext) -> bool:
        """Whether another event has changed a row that the one in hand has seen: then it leaves no trace and is handled anew."""
        unit: WorkUnit | None = context.unit
        if unit is None or unit.retried is None or not context.alive:
            return False
        context.writes.write_back()
        if not context.stale:
            return False
        queued, _ = unit.retried[unit.index if unit.batch is None else unit.start]
        undo(unit, context)
        unit.cut(unit.index)
        assert unit.cursor.parked is not None
        unit.cursor.parked.conflicted(queued)
        self.slots.conflicts += 1
        return True

    # ------------------------------------------------------------------ going through a work unit

    def admit(self, unit: WorkUnit, context: EventContext) -> Iterator[Any]:
        """The values of a work unit that are to take effect: `begin` each, then `finish` it, before asking for the next."""
        return self._processor.values(unit, context)

    def admit_batch(self, unit: WorkUnit, context: EventContext) -> list[tuple[Any, Record]]:
        """The values of a work unit and their records, as one unit of work; `complete` ends it, whether any are left or not."""
        pairs = open_batch(unit, context, self._processor.values(unit, context))
        # It begins as one event, also where none is in it.
        self._given_before -= len(pairs) - 1
        return pairs

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
        self.leave_if_forked()
        mine = context is self.context
        self.turns.begin_step(counts=mine)
        if mine:
            self.noted[CODE] = 1

    def leave_if_forked(self, error: BaseException | None = None) -> None:
        """Where the agent's code has come back in a process that it forked, that ends."""
        if forks.generation != self._generation:
            forks.leave(error)

    def step_ends(self) -> None:
        self.leave_if_forked()
        holding = self.context.holding
        if self.turns.end_step(within_event=holding):
            self.noted[CODE] = holding
            if holding and not self.lets_go and getattr(self.code, "cr_frame", None) is not None:
                # It is not over.
                self.slots.one_awaits()

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

    async def opening(self, topic: Awaitable[None]) -> None:
        """A result names a topic that is not known yet. For how long that takes is none of the handler's doing."""
        self.opens = True
        try:
            await topic
        finally:
            self.opens = False

    def event(self, value: Any, record: Record, tp: TP) -> Event:
        return Event(value, record, tp.topic, tp.partition, self._read_key.get(tp.topic), self._identify)

    def identity(self, event: Event) -> EventIdentity:
        """Which event it is. OutsideEvent where it is not in hand."""
        context, unit = self.context, self.unit
        # Code of a run that is over may go on, in a thread even, while another has an event of the same number in hand.
        if unit is None or not context.alive or current_context.get() is not context or not context.mine:
            raise self._not_in_hand(event)
        if self._identifier is None:
            self._identifier = EventIdentifier(self.services.app, self.plan)
        if self._attempt_in is not context or self._attempt.number != context.event:
            self._attempt, self._attempt_in = Attempt(context.event), context
        steps, task, tp = context.steps, unit.cursor.task, unit.cursor.tp
        if steps is None:
            if event.record is not context.record:
                raise OutsideEvent(f"{event!r} is not the event in hand, which is {unit.where(context.record)}")
            id = context.id
        else:
            if event.offset not in steps.ids or (event.topic, event.partition) != tp:
                raise OutsideEvent(f"{event!r} is not in the batch in hand, which is of {tp.topic}[{tp.partition}]")
            id = steps.ids[event.offset]
        identity = self._identifier.identity(event, task, id, self._attempt)
        if not context.alive or not context.mine:
            # A thread reads this while the loop gives the event up: it may have read what is of the next one.
            raise self._not_in_hand(event)
        return identity

    def _not_in_hand(self, event: Event) -> OutsideEvent:
        return OutsideEvent(f"{event!r} is not in hand any more: await what it is to do before it ends")

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
            self._finish_batch(context, self.turns)

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
        self.leave_if_forked(exc)
        unit = self.unit
        if unit is None or not context.alive:
            return
        self.turns.look()
        decision = self._failures.failed(unit, context, exc, program_at_fault=self.misuse is not None)
        if isinstance(decision, StoreFailed):
            # Everything in hand has been given up.
            return
        if isinstance(decision, (HandleAnew, Park, RetryAfter)):
            self.alone = None
        if isinstance(decision, HandleAnew):
            self.slots.conflicts += 1
        self.release()

    # ------------------------------------------------------------------ epochs

    def abandon(self) -> None:
        """The incarnation is over: whatever is in hand is void, and so is the body that holds it.

        A body that has had nothing in hand stays: what it did before its loop is done once.
        """
        self.queue.clear()
        self.alone = None
        if self.context.event or self.unit is not None:
            self._begin_anew()

    def time_out(self, error: HandlerTimeout) -> None:
        """The event in hand has failed, and so that its code, which goes on until it is cancelled, does nothing more for it, nor
        for the next one, its run is over."""
        context = self.context
        self.failed(error, context)
        if self.context is context:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """The run is over, with what it has in hand."""
        self.turns.forget()
        if self.unit is not None:
            self.queue.busy -= 1
        self.context.alive, self.context.unit = False, None
        self.context.writes.forget()
        self.context = EventContext(self.services.store_failed, self.event_in_hand)
        self.noted[CODE] = self.noted[HOLDS] = 0
        self.lets_go = self.opens = False
        self.over.set()

    def close(self) -> None:
        self.turns.usage.stop_awaiting()
        self.closed = True
        self.context.alive = False
        self.over.set()
