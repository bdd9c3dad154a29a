"""Runner: events go in, write sets come out (protocol rules 1, 3 and 5).

An `AgentRunner` runs one agent of this worker: one run of its code at a time, over work units of all its partitions, an event
at a time within a partition. Everything between receiving an event and asking for the next belongs to that event. An event
that fails is undone, tried again in place after a while (its partition waits, the epoch and the other partitions do not), then
dead-lettered. `agent_loop` runs the agent's code, `stream` is what that code iterates over.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NoReturn

from semel.errors import (
    HandlingError,
    OutputRefused,
    OutsideEvent,
    ProcessEnded,
    Reject,
    SessionLost,
    StaleIncarnation,
    WrongPartition,
    described,
)
from semel.event import Event
from semel.output import Output
from semel.plan import AgentPlan
from semel.port import TP, Record
from semel.runtime import looptime
from semel.stages.agent.awaiting import Awaits, awaits
from semel.stages.agent.deaths import most, wait_s
from semel.stages.agent.driven import Forsaken
from semel.stages.agent.failures import Failures
from semel.stages.agent.scheduler import Scheduler
from semel.stages.dedup.classify import move_times
from semel.stages.dedup.processor import DedupProcessor
from semel.stages.dedup.side_outputs import SideOutputs
from semel.stages.dedup.wall_clock import WallClock
from semel.stages.fetch.work_unit import OpenBatch, WorkUnit
from semel.stages.services import Services
from semel.stages.sink.destination import Destination
from semel.state.crash_notes import CODE, HOLDS, CrashNotes
from semel.state.dedup_marks import dead
from semel.state.event_context import EventContext, OutputNumbers
from semel.state.store import StoreError
from semel.state.task import Cursor, Task, TaskState
from semel.topic import Topic

UNIT_RECORDS = 256
# A body that never lets go of the event loop keeps heartbeats and commits waiting; runners let go this often.
TURN_S = 0.004
# An agent that held the loop for longer has not let go of it that often: commits, heartbeats and answers get a share of the
# time before its next event.
HELD_S = 0.05
# What an event is counted as in its epoch beside what it writes: its dedup mark, mostly.
EVENT_BYTES = 100
# Records decoded at once, in bytes: a work unit ends there, with one at least.
UNIT_BYTES = 1 << 20


class AgentRunner:
    """One agent of this worker.

    `unit`: what it is at. `waiting`: there is nothing for it to do. `alone`: the record of the last work unit that held only
    one; in cautious epochs, the one to blame (protocol rule 2). `make_stream`: what a streaming agent gets instead of a
    `EventStream`; `on_result`: what its results go to instead of `emit`. `notes`, `noted`: where it says what it has in hand.
    """

    def __init__(
        self,
        services: Services,
        scheduler: Scheduler,
        plan: AgentPlan,
        notes: CrashNotes,
        noted: memoryview,
        *,
        origin: Callable[[TP], bytes] | None,
        destination: Callable[[str], Destination | None],
        open_destination: Callable[[Topic], Awaitable[Destination]],
        released: Callable[[Cursor], None],
    ) -> None:
        self.services = services
        self.scheduler = scheduler
        self._origin = origin
        self._origins: dict[TP, bytes] = {}
        self._destination = destination
        self._open_destination = open_destination
        self._released = released
        self.plan = plan
        self.context = EventContext(self.services.store_failed, self.event_in_hand)
        self.unit: WorkUnit | None = None
        self.notes, self.noted = notes, noted
        self.ready: deque[Cursor] = deque()
        self.wake = asyncio.Event()
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
        self.sink: Destination | None = None
        self.make_stream: Callable[[EventContext], Any] | None = None
        # The error of the running body that has been counted as a failed attempt already.
        self.heard: BaseException | None = None
        self.on_result: Callable[[Any], Awaitable[None] | None] | None = None
        # `code`: the coroutine of the running body. When its running step began, and for how long steps before it held the loop.
        self.code: Any = None
        self.stepped_at: float | None = None
        # The task outside of the agent's steps that got the event in hand; why the way in which the running body asks is refused.
        self._asker: asyncio.Task[Any] | None = None
        self.misuse: HandlingError | None = None
        self._stepping: EventContext | None = None
        self._held_s = 0.0
        self._suspended: tuple[looptime.LoopTime, float] | None = None
        # The event whose loss of the session has been counted.
        self._charged: tuple[EventContext, int] | None = None
        # Bytes that an event of the latest batches wrote: a batch is one unit, and must fit an epoch.
        self._heavy = 0
        # Events, or batches, that counted as done because the agent's code returned.
        self.returned = 0
        self._side_outputs = SideOutputs(services)
        self._failures = Failures()
        self._wall_clock = WallClock()
        self._processor = DedupProcessor(services, plan, self._side_outputs, self._wall_clock)
        self._read_key: dict[str, Callable[[bytes], Any]] = {t.name: t.key.decode for t in plan.sources}

    # ------------------------------------------------------------------ taking

    def offer(self, cursor: Cursor) -> None:
        """There are records at this cursor."""
        if not cursor.queued:
            cursor.queued = True
            self.ready.append(cursor)
        self.wake.set()

    async def next_unit(self, context: EventContext) -> WorkUnit:
        """The next work unit for the run that `context` belongs to. StaleIncarnation where that run is over."""
        self.asking, self.failed_starts, self.start_error = context, 0, ""
        try:
            while True:
                self._check_run(context)
                if not self._passes():
                    await self._until_it_passes()
                    continue
                taken, soonest = self._take()
                if taken is not None:
                    why = self._given_up_for(taken)
                    if why is not None:
                        self._give_up(taken, context, why)
                        continue
                    return taken
                self.wake.clear()
                self.waiting = True
                self.services.changed.set()
                try:
                    async with asyncio.timeout(soonest):
                        await self.wake.wait()
                except TimeoutError:
                    pass
                finally:
                    self.waiting = False
        finally:
            if self.asking is context:
                self.asking = None

    @property
    def neglected(self) -> Cursor | None:
        """Whose records the agent could have asked for, and has not: it is neither at a work unit nor waiting for one."""
        if self.unit is not None or self.asking is self.context:
            return None
        now = self.services.clock.monotonic()
        for cursor in self.ready:
            task = cursor.task
            if task.state is TaskState.RUNNING and cursor.queue and cursor.due <= now and task.holder is None:
                return cursor
        return None

    async def enter(self, context: EventContext) -> None:
        """A body begins to iterate, perhaps anew. Raises where it has left its loop with an event in hand.

        That event has failed: an exception that was swallowed around the loop and a `break` look alike from here, and an
        event is done only when its code is. A body that swallows the end of its run as well is forsaken.
        """
        if context.entered:
            await asyncio.sleep(0)
        context.entered = True
        if self.context is not context or self.closed:
            if context.told:
                await Forsaken()
            context.told = True
        self._check_run(context)
        if context.holding:
            if self.stepped_at is None and self._awaited(context) is not Awaits.ALONE:
                self._refuse_asking(context)
            left = HandlingError(
                f"agent {self.plan.name!r} left its loop over the stream with this event in hand, and began another loop; "
                "catch what an event may raise inside the loop, or let it out of the agent"
            )
            self.failed_unheard(left, context)
            raise left
        self.release()

    def _check_run(self, context: EventContext) -> None:
        if self.context is not context or self.closed:
            raise StaleIncarnation("this stream belongs to a run that is over")

    def _take(self) -> tuple[WorkUnit | None, float | None]:
        """A work unit that may run now; else how long until one may."""
        now = self.services.clock.monotonic()
        self._failures.sum_up(now)
        soonest: float | None = None
        if not self.scheduler.may_take(self):
            return None, 0.005
        for _ in range(len(self.ready)):
            cursor = self.ready.popleft()
            task = cursor.task
            if task.state is not TaskState.RUNNING or not cursor.queue:
                cursor.queued = False
                continue
            self.ready.append(cursor)
            if cursor.due > now:
                soonest = cursor.due - now if soonest is None else min(soonest, cursor.due - now)
            elif task.holder is None:
                wait = self._on_trial(cursor, now) if cursor.attempts.suspects else None
                if wait is None:
                    return self._hold(cursor, now), None
                soonest = wait if soonest is None else min(soonest, wait)
        return None, soonest

    def _on_trial(self, cursor: Cursor, now: float) -> float | None:
        """Where the next event is one that the process may have died of: how long it waits, None where it need not."""
        fetched = cursor.queue[0]
        record = fetched.records[fetched.start] if fetched.start < len(fetched.records) else None
        suspect = cursor.attempts.suspect(record) if record is not None else None
        if record is None or suspect is None or suspect.deaths >= most(self.plan.retry):
            return None
        if suspect.due is None:
            wait = wait_s(suspect.deaths, suspect.held_s)
            suspect.due = now + wait
            if wait:
                self._failures.on_trial(cursor.tp, record, suspect.deaths, wait)
        if suspect.due > now:
            return suspect.due - now
        if not self.scheduler.has_all_to_itself(self):
            return 0.005
        suspect.tried = True
        return None

    def _hold(self, cursor: Cursor, now: float) -> WorkUnit:
        task, fetched = cursor.task, cursor.queue[0]
        limit = (
            UNIT_RECORDS
            if not self._heavy
            else max(1, min(UNIT_RECORDS, self.services.epoch.limit_bytes // self._heavy))
        )
        one = self.scheduler.one_by_one
        if one or (fetched.records and cursor.position <= cursor.attempts.isolate_until):
            limit = 1
        end = fetched.end(limit, UNIT_BYTES)
        self.taken += 1
        self.unit = unit = WorkUnit(cursor, fetched, end, int(self.services.clock.time() * 1000))
        self.alone = (cursor.tp, unit.record.offset) if end - unit.start == 1 else None
        self.context.task = task
        self.context.writes.most_bytes = self.services.epoch.event_bytes
        self.context.tables = task.tables
        self.context.id = self.context.steps = None
        self.context.origin = self._origin_of(cursor.tp)
        task.holder = self
        if task.dedup is None:
            task.dedup = self.plan.dedup
        if end > unit.start:
            first = unit.record
            self.notes.note(self.noted, cursor.tp, first.offset, fetched.records[end - 1].offset, first.timestamp, now)
        return unit

    def _origin_of(self, tp: TP) -> bytes | None:
        """What the lineage of outputs begins with, for events of this partition; None where it is off."""
        if self._origin is None:
            return None
        known = self._origins.get(tp)
        if known is None:
            known = self._origins[tp] = self._origin(tp)
        return known

    def asked_elsewhere(self, context: EventContext) -> None:
        """Code that runs outside of the agent's steps asks for the next event. HandlingError where that is no sign that the one
        in hand is done: then it is not, and nothing is put down to it.
        """
        self._check_run(context)
        if context.holding:
            how = self._awaited(context)
            if how is Awaits.NOT or (how is Awaits.AMONG and asyncio.current_task() is self._asker):
                self._refuse_asking(context)

    def _awaited(self, context: EventContext) -> Awaits:
        """How the agent's own code waits for the task that runs now."""
        body, task = context.body, asyncio.current_task()
        return Awaits.ALONE if body is None or task is None else awaits(body, task)

    def _refuse_asking(self, context: EventContext) -> NoReturn:
        self.misuse = HandlingError(
            f"agent {self.plan.name!r} asks for its next event in a task beside its own code, and asking says that the one "
            f"before ({self.where}) is done. Iterate over the stream in the agent's own code, one event after the other; start "
            "what is to run side by side within an event, and await it there"
        )
        self._failures.misused(self.misuse, self.services.clock.monotonic())
        self.set_aside(context)
        raise self.misuse

    def set_aside(self, context: EventContext) -> None:
        """What is in hand is undone and given back, and is put down to nobody."""
        unit = self.unit
        if unit is None or not context.alive:
            return
        context.undo()
        unit.moved = None
        if unit.batch is not None:
            unit.batch, unit.index = None, unit.start
        self.release()

    def settle(self) -> None:
        """Bring position and stream time up to what is done; called before a seal and when the work unit is given back."""
        unit = self.unit
        if unit is not None:
            # A cursor that is ahead of its task's others meets records that it has done.
            unit.cursor.position = max(unit.cursor.position, unit.position)
            if unit.timed < unit.index:
                task = unit.cursor.task
                task.stream = move_times(task.stream, unit.times_done(), unit.wall_ms)

    def release(self) -> None:
        """Give the work unit back; what was not done of it stays first in its queue."""
        unit = self.unit
        if unit is None:
            return
        cursor, fetched = unit.cursor, unit.fetched
        before = cursor.position
        self.settle()
        self.unit = None
        self.noted[HOLDS] = 0
        cursor.buffered -= unit.index - fetched.start
        fetched.start = unit.index
        if fetched.start >= len(fetched.records) and cursor.queue and cursor.queue[0] is fetched:
            cursor.queue.popleft()
            cursor.bytes -= fetched.size
        if cursor.position != before:
            # Also where nothing but control records, or records of aborted transactions, were behind the last event.
            cursor.task.touched = True
            self.services.changed.set()
        cursor.task.holder = None
        self._released(cursor)
        self.scheduler.released(self)
        if cursor.queue:
            self.offer(cursor)

    # ------------------------------------------------------------------ going through a work unit

    def admit(self, unit: WorkUnit, context: EventContext) -> Iterator[Any]:
        """The values of a work unit that are to take effect: `begin` each, then `finish` it, before asking for the next."""
        return self._processor.values(unit, context)

    def admit_batch(self, unit: WorkUnit, context: EventContext) -> list[tuple[Any, Any]]:
        """The values of a work unit and their records, as one unit of work; `complete` ends it, whether any are left or not."""
        unit.batch = OpenBatch()
        ids: dict[int, Any] = {}
        pairs: list[tuple[Any, Any]] = []
        for value in self._processor.values(unit, context):
            record = context.record
            pairs.append((value, record))
            ids[record.offset] = context.id
        context.steps = OutputNumbers(ids)
        context.batch = pairs
        unit.batch.events = len(pairs)
        unit.index = unit.start
        return pairs

    def begin(self, context: EventContext) -> None:
        if self.context is not context or self.closed:
            self._check_run(context)
        context.begin()
        if self.stepped_at is None:
            self.noted[CODE] = 1
            self._asker = asyncio.current_task()
            context.begun_elsewhere()

    async def pause(self, context: EventContext, turn_ends: float) -> float:
        """Between two events: let others run, and wait at the gate if it is closed. Until when the next turn lasts."""
        monotonic = self.services.clock.monotonic
        self.noted[CODE] = self.stepped_at is not None
        if monotonic() > turn_ends:
            self.services.changed.set()
            await self.let_go()
            turn_ends = monotonic() + TURN_S
        while not self._passes():
            await self._until_it_passes()
        self._check_run(context)
        return turn_ends

    def _passes(self) -> bool:
        """Nothing is to be done before the next event begins."""
        return not (self.services.epoch.closed or self.scheduler.catching_up)

    async def _until_it_passes(self) -> None:
        epoch = self.services.epoch
        await (epoch.gate() if epoch.closed else self.scheduler.catch_up(0.0))

    def step_begins(self, context: EventContext) -> None:
        """The body of this context runs from here to `step_ends`, and nothing else does."""
        if self._suspended is not None:
            held_s = self._resumed()
            if held_s > HELD_S:
                self._held_s += held_s
                if context is self.context and self.scheduler.answers_for_all(self):
                    self._look_at_the_session(held_s)
        self._stepping, self.stepped_at = context, self.services.clock.monotonic()
        if context is self.context:
            self.noted[CODE] = 1

    def step_ends(self) -> None:
        self._look_at_the_clock()
        self.stepped_at = None
        if self._stepping is not self.context:
            return
        self.noted[CODE] = self.context.holding
        if self.context.holding:
            # It awaits something within its event: tasks that it has started may hold the loop meanwhile.
            time = looptime.running()
            time.watch()
            self._suspended = time, time.held_s

    def _resumed(self) -> float:
        """For how long the loop was held, by whomever, since the agent awaited something within its event."""
        if self._suspended is None:
            return 0.0
        time, before = self._suspended
        self._suspended = None
        held_s = time.held_s - before
        time.unwatch()
        return held_s

    def _look_at_the_clock(self) -> None:
        """How long has this step held the loop? Called while what did it is still in hand."""
        if self.stepped_at is None:
            return
        now = self.services.clock.monotonic()
        held_s, self.stepped_at = now - self.stepped_at, now
        if held_s > HELD_S:
            self._held_s += held_s
            if self._stepping is self.context:
                self._look_at_the_session(held_s)

    def _look_at_the_session(self, held_s: float) -> None:
        if self.scheduler.session_is_over(self._held_s, held_s):
            self._count_lost_session()

    async def let_go(self) -> None:
        """Let others run: for a turn of the loop, or longer where this runner has held it."""
        self._look_at_the_clock()
        await self.give_back()

    async def give_back(self) -> None:
        held_s, self._held_s = self._held_s, 0.0
        if held_s:
            await self.scheduler.catch_up(held_s)
        else:
            await asyncio.sleep(0)

    def end_unit(self, context: EventContext) -> None:
        self._check_run(context)
        self.release()
        self.services.changed.set()

    @property
    def where(self) -> str:
        """The record that the agent is at, for people; a thread may ask, too."""
        unit, record = self.unit, self.context.record
        if unit is None:
            return "no record"
        if record is None or unit.index < unit.end:
            record = unit.fetched.records[min(unit.index, unit.end - 1)]
        more = f" and {unit.end - unit.start - 1} more" if unit.batch is not None and unit.end - unit.start > 1 else ""
        return f"{unit.cursor.tp.topic}[{unit.cursor.tp.partition}]@{record.offset} (key {record.key!r:.80}){more}"

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

    def emit(self, context: EventContext, result: Any) -> Awaitable[None] | None:
        """A result of the event in hand; None is none. OutputRefused where its topic would not take it.

        An answer is to be awaited: the result names a topic that is not known yet.
        """
        if result is None:
            return None
        if not context.alive:
            raise StaleIncarnation("the event's epoch is over")
        unit = self.unit
        if unit is None or not context.holding:
            raise OutsideEvent("a result was yielded where no event is in hand; yield inside the loop over the stream")
        destination, record = self.sink, context.record
        if type(result) is Output:
            if result.of is not None:
                record = context.record_of(result.of)
            if result.topic is not None:
                destination = self._destination(result.topic.name)
                if destination is None:
                    return self._open_and_emit(context, result, result.topic)
        if destination is None:
            raise OutputRefused(f"agent {self.plan.name!r} {_without_sink(result, self.services.app)}")
        if record is None:
            raise OutputRefused(
                f"agent {self.plan.name!r} yielded a result of a batch where its loop over the batch is at no event; yield it in "
                "the loop, or say whose it is: Output(value, of=event), with a value of the batch or one of batch.events"
            )
        out = destination.record(result, record, context.task.partition, unit.wall_ms, context.lineage(record))
        context.emit(out, record)
        return None

    async def _open_and_emit(self, context: EventContext, result: Any, topic: Topic) -> None:
        await self._open_destination(topic)
        self.emit(context, result)

    def returns(self, context: EventContext) -> None:
        """The agent's code has returned with something in hand, which is done."""
        where = self.where
        self.complete(context)
        self.returned += 1
        self._failures.returned(self.plan.name, where)
        self.release()

    def complete(self, context: EventContext) -> None:
        """Whatever is in hand is done: an event, or a batch."""
        unit = self.unit
        if unit is None or unit.batch is None:
            self.finish(context)
        else:
            self._finish_batch(context, unit, unit.batch)

    def finish(self, context: EventContext) -> None:
        """The event in hand is done: its write set joins the epoch."""
        unit = self.unit
        if unit is None or not context.alive:
            raise StaleIncarnation("the event's epoch is over")
        writes = context.writes
        if writes.dirty:
            writes.write_back()
        task: Task = context.task
        counts = task.counts
        outputs = writes.outputs
        self.services.epoch.add(outputs, writes.bytes + EVENT_BYTES)
        if outputs:
            counts["out"] += len(outputs)
            if context.origin is not None:
                sent = task.outputs
                for out in outputs:
                    topic = out.tp.topic
                    sent[topic] = sent.get(topic, 0) + 1
            outputs.clear()
        else:
            counts["filtered"] += 1
        counts["in"] += 1
        writes.fold(task.marks)
        if unit.moved is not None:
            task.stream_ms, task.pending = unit.moved
            unit.moved = None
        context.holding = False
        unit.index += 1
        if not task.touched:
            # The next event may take its time; this one is not to wait for it.
            task.touched = True
            self.services.changed.set()

    def _finish_batch(self, context: EventContext, unit: WorkUnit, batch: OpenBatch) -> None:
        if not context.alive:
            raise StaleIncarnation("the batch's epoch is over")
        writes = context.writes
        writes.write_back()
        self._look_at_the_clock()
        results, steps = writes.outputs, context.steps
        task = unit.cursor.task
        task.counts["out"] += len(results)
        task.counts["filtered"] += batch.events - (len(steps.counts) if steps is not None else 0)
        if context.origin is not None:
            for out in results:
                task.outputs[out.tp.topic] = task.outputs.get(out.tp.topic, 0) + 1
        outs = [*batch.letters, *(results if steps is None else steps.in_order(results))]
        self.services.epoch.add(
            outs, writes.bytes + sum(letter.size for letter in batch.letters) + EVENT_BYTES * batch.events
        )
        results.clear()
        writes.fold(task.marks)
        if unit.moved is not None:
            task.stream_ms, task.pending = unit.moved
            unit.moved = None
        context.holding = False
        context.batch = ()
        unit.batch = None
        unit.index = unit.end
        self._heavy = max(writes.bytes // max(1, batch.events), self._heavy * 3 // 4)
        for name, count in batch.counts.items():
            task.counts[name] += count
        task.counts["in"] += batch.events
        task.touched = True
        self.services.changed.set()

    # ------------------------------------------------------------------ failing

    def _count_lost_session(self) -> None:
        """What is in hand, or was until just now, cost the worker its place: nothing of it will be committed."""
        unit, context = self.unit, self.context
        if unit is None or self._charged == (context, context.event):
            return
        self._charged = context, context.event
        attempts = unit.cursor.attempts
        if unit.batch is not None and unit.end - unit.start > 1:
            attempts.isolate_until = unit.fetched.records[unit.end - 1].offset
            return
        record = unit.record if context.holding or unit.batch is not None else context.record
        if record is not None:
            self._failures.lost_session(
                unit.cursor.tp, record, attempts.lost_session(record.offset), self.plan.retry.attempts
            )

    def _given_up_for(self, unit: WorkUnit) -> SessionLost | ProcessEnded | None:
        """Why it is not handled again: it holds one event, and that has cost its last session, or its last process."""
        attempts = unit.cursor.attempts
        if unit.end - unit.start != 1 or not (attempts.lost or attempts.suspects):
            return None
        record = unit.record
        suspect = attempts.suspect(record)
        if suspect is not None and suspect.deaths >= most(self.plan.retry):
            attempts.died(record.offset, suspect.deaths)
            return ProcessEnded(suspect.deaths)
        if attempts.lost and attempts.count >= self.plan.retry.attempts and record.offset == attempts.offset:
            return SessionLost(attempts.lost)
        return None

    def _give_up(self, unit: WorkUnit, context: EventContext, why: SessionLost | ProcessEnded) -> None:
        if isinstance(why, ProcessEnded) and why.times > most(self.plan.retry):
            # The process died of giving it up, too: it is not the agent's code that ends it, but what decodes it or reads its id.
            self._side_outputs.quarantine(unit, unit.record, "failed", described(why), why.times)
            unit.index += 1
        else:
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
        self._look_at_the_clock()
        if self.misuse is not None:
            # What comes of a run that asks as nobody may is no event's fault.
            self.set_aside(context)
            return
        if isinstance(exc, StoreError):
            # Not the event's fault: it is handled again when the store can be read.
            self.services.store_failed(exc)
            return
        task = unit.cursor.task
        marks, stream = context.writes.marks[:], unit.moved
        context.undo()
        unit.moved = None
        batch, unit.batch = unit.batch, None
        if batch is not None:
            unit.index = unit.start
        if batch is not None and unit.end - unit.start > 1:
            # One of them did it: go through them one by one.
            unit.cursor.attempts.isolate_until = unit.fetched.records[unit.end - 1].offset
            self._failures.split(unit.cursor.tp, unit.end - unit.start, exc, self.services.clock.monotonic())
        elif not self._tried_again(unit, exc):
            record = unit.record
            if marks and task.marks is not None and stream is not None:
                [(id, mark)] = marks
                task.marks.mark(id, dead(mark))
                task.stream_ms, task.pending = stream
            reason = "rejected" if isinstance(exc, Reject) else "failed"
            self._side_outputs.quarantine(unit, record, reason, described(exc), unit.cursor.attempts.count)
            unit.cursor.attempts.given_up()
            unit.index += 1
        self.release()

    def _tried_again(self, unit: WorkUnit, exc: BaseException) -> bool:
        """Count the attempt; whether, after a while, there is another."""
        cursor, record, retry, now = unit.cursor, unit.record, self.plan.retry, self.services.clock.monotonic()
        counted = self._charged == (self.context, self.context.event) or isinstance(exc, (SessionLost, ProcessEnded))
        attempts = cursor.attempts.count if counted else cursor.attempts.failed(record.offset)
        delay = None
        if not _hopeless(exc):
            delay = retry.delay_s(exc, attempts, self.services.randomness.random())
        if delay is None:
            if not isinstance(exc, Reject):
                self._failures.given_up(cursor.tp, record, exc, attempts, max(attempts, retry.attempts), now)
            if isinstance(exc, OutputRefused):
                self._wall_clock.refused(unit, record.timestamp, now)
            return False
        self.alone = None
        cursor.due = now + delay
        self._failures.retried(cursor.tp, record, exc, attempts, retry.attempts, delay, now)
        return True

    # ------------------------------------------------------------------ epochs

    def abandon(self) -> None:
        """The incarnation is over: whatever is in hand is void, and so is the body that holds it.

        A body that has had nothing in hand stays: what it did before its loop is done once.
        """
        for cursor in self.ready:
            cursor.queued = False
        self.ready.clear()
        self.alone = None
        if not self.context.event and self.unit is None:
            return
        self._resumed()
        self._held_s = 0.0
        self.context.alive = False
        self.context.writes.forget()
        self.context = EventContext(self.services.store_failed, self.event_in_hand)
        self.unit = None
        self.noted[CODE] = self.noted[HOLDS] = 0
        self.over.set()

    def close(self) -> None:
        self._resumed()
        self.closed = True
        self.context.alive = False
        self.over.set()


def _without_sink(result: Any, app: str) -> str:
    """What is wrong with a result that there is no topic for."""
    value = result.value if type(result) is Output else result
    if inspect.iscoroutine(value):
        value.close()
        return (
            f"returned the coroutine {value.__name__!r}, and nobody awaits it: declare the agent with async def, and await what "
            "it calls"
        )
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        return (
            f"returned the generator {value.__name__!r}, and nobody iterates over it: for several results of one event, let the "
            "agent take the stream and yield them"
        )
    return (
        f"returned a result, and {app!r} has no sink; give the pipeline a sink=Topic(...), or the result a topic: "
        "Output(value, topic=...)"
    )


def _hopeless(exc: BaseException) -> bool:
    """Whether another attempt would end as this one did: the error depends on the event and the code alone.

    That is a row of another partition, and a key or value that is not of its table's type. The other HandlingErrors are
    a matter of time: a task that outlived its event, a commit that may be done when the event is tried again.
    """
    return isinstance(exc, (WrongPartition, ProcessEnded)) or (
        type(exc) is HandlingError and isinstance(exc.__cause__, TypeError)
    )
