"""Work queue: the records that wait for an agent, partition by partition, and which of them it gets next.

A work unit is taken here and given back here. The records of a key stay in order: what was not done of a unit is first again,
and later events of a key that is parked wait behind it. Parked events are work units of their own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from semel.plan import AgentPlan
from semel.port import Record
from semel.stages.agent.crash_suspects import most_crashes, wait_s
from semel.stages.agent.failure_log import FailureLog
from semel.stages.agent.rate_limiter import RateLimiter
from semel.stages.dedup.classify import move_times
from semel.stages.fetch.work_unit import WorkUnit
from semel.stages.services import Services
from semel.state.parked import ParkedQueue
from semel.state.store import StoreError
from semel.state.task import UNIT_RECORDS, Cursor, FetchedBatch, TaskState

# Of a partition whose keys are handled side by side, at least so many records are looked at at once, and at most so many for
# each slot wait for one of their key that is in hand.
LEAST_AHEAD, AHEAD = 8, 4
# Records decoded at once, in bytes: a work unit ends there, with one at least.
UNIT_BYTES = 1 << 20
# What is not told when it comes about is looked at again this soon.
LOOK_S = 0.005


class WorkQueue:
    """One agent's. `ready`: cursors with records, in turn; `wake`: set where there may be something to take."""

    def __init__(
        self, services: Services, plan: AgentPlan, log: FailureLog, limiter: RateLimiter | None = None
    ) -> None:
        self._services = services
        self._plan = plan
        self._log = log
        self._limiter = limiter
        self.ready: deque[Cursor] = deque()
        self.wake = asyncio.Event()
        # How many slots have a work unit.
        self.busy = 0
        # Of several keys at a time: what had failed came last, and no record of the source.
        self._retried_last = False
        # Of several slots that have nothing to do one watches `wake`; the others are in line.
        self._watched = False
        self._line: deque[asyncio.Future[None]] = deque()
        # Bytes that an event of the latest batches wrote: a batch is one unit, and must fit an epoch.
        self._batch_bytes = 0
        self._batches = False

    def offer(self, cursor: Cursor) -> None:
        """There are records at this cursor."""
        if not cursor.queued:
            cursor.queued = True
            self.ready.append(cursor)
        self.wake.set()

    def clear(self) -> None:
        for cursor in self.ready:
            cursor.queued = False
        self.ready.clear()
        if self._limiter is not None:
            self._limiter.over()

    def batch_wrote(self, size: int, events: int) -> None:
        self._batches = True
        self._batch_bytes = max(size // max(1, events), self._batch_bytes * 3 // 4)

    # -- waiting

    async def idle(self, soonest: float | None) -> None:
        """Until there may be something to take for the slot that waits here; `soonest`: it is to look again by then."""
        if self._watched:
            turn = asyncio.get_running_loop().create_future()
            self._line.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._line:
                    self._line.remove(turn)
                else:
                    self.pass_on()
                raise
            return
        self.wake.clear()
        self._watched = True
        try:
            async with asyncio.timeout(soonest):
                await self.wake.wait()
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            self._watched = False
            self.pass_on()
            raise
        self._watched = False

    def pass_on(self) -> None:
        """Whoever kept watch, or was to, does something else: the next in line looks whether there is more."""
        while self._line and not self._watched:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    @property
    def others_ready(self) -> bool:
        """There may be something to take while everything that was taken is in hand."""
        if self._plan.by_key:
            return any(
                cursor.queue or (cursor.parked and cursor.parked.next_due() is not None) for cursor in self.ready
            )
        return any(cursor.task.holder is None for cursor in self.ready)

    # -- taking

    def take(self, now: float, *, one_by_one: bool, alone: Callable[[], bool]) -> tuple[WorkUnit | None, float | None]:
        """A work unit that may run now; else how long until one may, where time alone decides it.

        `alone`: asks that nobody else has an event in hand, and says whether that is so.
        """
        most = UNIT_RECORDS if self._limiter is None else self._allowed(self._limiter)
        if self._plan.by_key:
            unit, soonest = self._take_by_key(now, one_by_one, alone, most)
        else:
            unit, soonest = self._take_by_turns(now, one_by_one, alone, most)
        if self._limiter is not None and unit is not None and not unit.ahead:
            self._limiter.took(unit.taken)
        return unit, soonest

    def _allowed(self, limiter: RateLimiter) -> int:
        """How many events the rate limit allows now. A batch is worth waiting for: it has as many as there are, or as may come at
        once."""
        if not self._batches:
            return min(UNIT_RECORDS, limiter.allowed(), limiter.unit)
        return min(UNIT_RECORDS, limiter.allowed(min(UNIT_RECORDS, sum(cursor.buffered for cursor in self.ready))))

    def _limited_s(self) -> float:
        """There is something to take, and the rate limit does not allow it: how long it waits."""
        assert self._limiter is not None
        return self._limiter.wait_s()

    def _take_by_turns(
        self, now: float, one_by_one: bool, alone: Callable[[], bool], most: int
    ) -> tuple[WorkUnit | None, float | None]:
        soonest: float | None = None
        for _ in range(len(self.ready)):
            if not self.ready:
                # The store has failed meanwhile, and everything was given up.
                break
            cursor = self.ready.popleft()
            task = cursor.task
            if task.state is not TaskState.RUNNING or not (cursor.queue or parked_in(cursor)):
                cursor.queued = False
                continue
            self.ready.append(cursor)
            if task.holder is not None:
                continue
            unit, wait = self._of_cursor(cursor, now, one_by_one, alone, most)
            if unit is not None:
                return unit, None
            if wait is not None:
                soonest = wait if soonest is None else min(soonest, wait)
        return None, soonest

    def _take_by_key(
        self, now: float, one_by_one: bool, alone: Callable[[], bool], most: int
    ) -> tuple[WorkUnit | None, float | None]:
        """The next event of a key that nobody has in hand. Where there is none, more records are parked, so that there may be.

        Events that only wait for their turn come first. Those that have failed, of whichever partition, come by turns with
        records of the source, of whichever partition, so that neither keeps the other waiting.
        """
        waits, failed, fresh = list[float](), list[Cursor](), list[Cursor]()
        for _ in range(len(self.ready)):
            if not self.ready:
                # The store has failed meanwhile, and everything was given up.
                break
            cursor = self.ready.popleft()
            task, parked = cursor.task, cursor.parked
            if task.state is not TaskState.RUNNING or not (cursor.queue or parked_in(cursor)):
                cursor.queued = False
                continue
            self.ready.append(cursor)
            if task.holder is not None or parked is None:
                continue
            if parked.crowded_out and task.in_hand:
                # Those in hand end; none begins beside it.
                continue
            due = parked.next_due()
            if parked.crowded_out or due == 0:
                unit, wait = self._retried(cursor, parked, now, True, alone, most)
                if unit is not None:
                    return unit, None
                waits += [] if wait is None else [wait]
                continue
            if due is not None and due <= now:
                failed.append(cursor)
            elif due is not None:
                waits.append(due - now)
            if not cursor.queue or parked.stops or parked.ahead >= self._plan.slots * AHEAD:
                continue
            if cursor.due > now:
                waits.append(cursor.due - now)
            else:
                fresh.append(cursor)
        looks_ahead = [(cursor, True) for cursor in fresh]
        retries = [(cursor, False) for cursor in failed]
        # Where something has failed, as many as there are slots for: those that are full are shared one by one.
        ahead = max(self._plan.slots - self.busy, 1 if failed else LEAST_AHEAD)
        for cursor, look in looks_ahead + retries if self._retried_last else retries + looks_ahead:
            if not self.ready:
                break
            if look:
                unit, wait = self._ahead(cursor, now, one_by_one, alone, most, ahead)
            else:
                assert cursor.parked is not None
                unit, wait = self._retried(cursor, cursor.parked, now, True, alone, most)
            if unit is not None:
                self._retried_last = not look
                # The others of its kind come before it.
                self.ready.remove(cursor)
                self.ready.append(cursor)
                return unit, None
            waits += [] if wait is None else [wait]
        return None, min(waits, default=None)

    def _ahead(
        self, cursor: Cursor, now: float, one_by_one: bool, alone: Callable[[], bool], most: int, ahead: int
    ) -> tuple[WorkUnit | None, float | None]:
        """The next records of a partition, `ahead` at most, which are parked until their turn comes."""
        if not most and self._first_fresh(cursor) is not None:
            return None, self._limited_s()
        suspicious = cursor.retry_state.suspects
        wait = self._suspect_wait(cursor, self._first_fresh(cursor), now, alone) if suspicious else None
        if wait is not None:
            return None, wait
        cursor.held_up = ""
        unit = self._unit(cursor, one_by_one, min(most, ahead))
        unit.ahead = True
        return unit, None

    def _of_cursor(
        self, cursor: Cursor, now: float, one_by_one: bool, alone: Callable[[], bool], most: int
    ) -> tuple[WorkUnit | None, float | None]:
        """Parked events that only wait for their turn come first, so that a key whose first event is done at last catches up;
        those that have failed come by turns with fresh ones, so that neither keeps the other waiting."""
        parked, waits = cursor.parked, list[float]()
        due = parked.next_due() if parked is not None and parked.count else None
        fresh = bool(cursor.queue) and cursor.due <= now and not (parked is not None and parked.stops)
        if parked is not None and due is not None:
            if due > now:
                waits.append(due - now)
            elif not fresh or not due or not cursor.retried_last:
                return self._retried(cursor, parked, now, one_by_one, alone, most)
        if fresh and not most and self._first_fresh(cursor) is not None:
            waits.append(self._limited_s())
        elif fresh:
            suspicious = cursor.retry_state.suspects
            wait = self._suspect_wait(cursor, self._first_fresh(cursor), now, alone) if suspicious else None
            if wait is None:
                cursor.retried_last, cursor.held_up = False, ""
                return self._unit(cursor, one_by_one, most), None
            waits.append(wait)
        elif cursor.queue and cursor.due > now:
            waits.append(cursor.due - now)
        return None, min(waits, default=None)

    def _retried(
        self, cursor: Cursor, parked: ParkedQueue, now: float, one_by_one: bool, alone: Callable[[], bool], most: int
    ) -> tuple[WorkUnit | None, float | None]:
        if not most:
            return None, self._limited_s()
        state, suspicious = cursor.retry_state, bool(cursor.retry_state.suspects)
        most = 1 if one_by_one or suspicious else min(most, cursor.unit_records)
        try:
            by_itself = bool(parked.crowded_out)
            taken = parked.take_by_itself() if by_itself else parked.take(now, most, UNIT_BYTES, state.isolate_until)
        except StoreError as exc:
            self._services.store_failed(exc)
            return None, LOOK_S
        records: list[Record] = [event.record for _, event in taken]
        wait = self._suspect_wait(cursor, records[0], now, alone) if suspicious else None
        if wait is not None:
            parked.give_back(queued for queued, _ in taken)
            return None, wait
        cursor.retried_last = True
        # Where the cursor stands is beyond all of them.
        fetched = FetchedBatch(records, next_offset=-1)
        unit = WorkUnit(cursor, fetched, len(records), int(self._services.clock.time() * 1000), taken)
        unit.by_itself = by_itself
        return unit, None

    def first_due(self, now: float) -> Cursor | None:
        """A cursor whose next record could be taken."""
        for cursor in self.ready:
            task = cursor.task
            if task.state is not TaskState.RUNNING or task.holder is not None:
                continue
            parked = cursor.parked
            due = parked.next_due() if parked is not None else None
            if (due is not None and due <= now) or (
                cursor.queue and cursor.due <= now and not (parked is not None and parked.stops)
            ):
                return cursor
        return None

    def _unit(self, cursor: Cursor, one_by_one: bool, most: int = UNIT_RECORDS) -> WorkUnit:
        fetched = cursor.queue[0]
        if one_by_one or (fetched.records and cursor.position <= cursor.retry_state.isolate_until):
            limit = 1
        elif self._batch_bytes:
            limit = max(1, min(most, cursor.unit_records, self._services.epoch.limit_bytes // self._batch_bytes))
        else:
            limit = min(most, cursor.unit_records)
        end = fetched.end(limit, UNIT_BYTES)
        return WorkUnit(cursor, fetched, end, int(self._services.clock.time() * 1000))

    def _first_fresh(self, cursor: Cursor) -> Record | None:
        fetched = cursor.queue[0]
        return fetched.records[fetched.start] if fetched.start < len(fetched.records) else None

    def _suspect_wait(
        self, cursor: Cursor, record: Record | None, now: float, alone: Callable[[], bool]
    ) -> float | None:
        """Where the next event is one that the process may have died of: how long it waits, None where it need not."""
        suspect = cursor.retry_state.suspect(record) if record is not None else None
        if record is None or suspect is None or suspect.crashes >= most_crashes(self._plan.retry):
            return None
        if suspect.due is None:
            wait = wait_s(suspect.crashes, suspect.held_s)
            suspect.due = now + wait
            if wait:
                self._log.suspect_waits(cursor.tp, record, suspect.crashes, wait)
        if suspect.due > now:
            return suspect.due - now
        if not alone():
            return LOOK_S
        suspect.tried = True
        return None

    # -- giving back

    def give_back(self, unit: WorkUnit) -> None:
        """What was not done of it stays first in its queue."""
        cursor, fetched = unit.cursor, unit.fetched
        before = cursor.position
        settle(unit)
        cursor.task.holder = None
        if unit.index >= unit.end and cursor.unit_records < UNIT_RECORDS:
            cursor.went_through()
        if unit.retried is not None:
            assert cursor.parked is not None
            cursor.parked.give_back(queued for queued, _ in unit.retried[unit.index :])
            return
        cursor.buffered -= unit.index - fetched.start
        fetched.start = unit.index
        if fetched.start >= len(fetched.records) and cursor.queue and cursor.queue[0] is fetched:
            cursor.queue.popleft()
            cursor.bytes -= fetched.size
        if cursor.position != before:
            # Also where nothing but control records, or records of aborted transactions, were behind the last event.
            cursor.task.touched = True
            self._services.changed.set()


def parked_in(cursor: Cursor) -> int:
    """How many events of it are parked."""
    return cursor.parked.count if cursor.parked is not None else 0


def settle(unit: WorkUnit) -> None:
    """Bring position and stream time of its task, or what it has parked, up to what is done of the unit."""
    if unit.retried is not None:
        unit.unpark()
        return
    # A cursor that is ahead of its task's others meets records that it has done.
    unit.cursor.position = max(unit.cursor.position, unit.position)
    if unit.timed < unit.index:
        task = unit.cursor.task
        task.stream = move_times(task.stream, unit.times_done(), unit.wall_ms)
