"""Work queue: the records that wait for an agent, partition by partition, and which of them it gets next.

A work unit is taken here and given back here. The records of a partition stay in order: what was not done of a unit is first
again, and a partition whose event is to be tried again later waits alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from semel.plan import AgentPlan
from semel.stages.agent.crash_suspects import most_crashes, wait_s
from semel.stages.agent.failure_log import FailureLog
from semel.stages.dedup.classify import move_times
from semel.stages.fetch.work_unit import WorkUnit
from semel.stages.services import Services
from semel.state.task import Cursor, TaskState

UNIT_RECORDS = 256
# Records decoded at once, in bytes: a work unit ends there, with one at least.
UNIT_BYTES = 1 << 20
# What is not told when it comes about is looked at again this soon.
LOOK_S = 0.005


class WorkQueue:
    """One agent's. `ready`: cursors with records, in turn; `wake`: set where there may be something to take.

    `alone`: asks that no other agent has an event in hand, and says whether that is so.
    """

    def __init__(self, services: Services, plan: AgentPlan, log: FailureLog, alone: Callable[[], bool]) -> None:
        self._services = services
        self._plan = plan
        self._log = log
        self._alone = alone
        self.ready: deque[Cursor] = deque()
        self.wake = asyncio.Event()
        # Bytes that an event of the latest batches wrote: a batch is one unit, and must fit an epoch.
        self._batch_bytes = 0

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

    def batch_wrote(self, size: int, events: int) -> None:
        self._batch_bytes = max(size // max(1, events), self._batch_bytes * 3 // 4)

    # -- taking

    def take(self, now: float, *, one_by_one: bool) -> tuple[WorkUnit | None, float | None]:
        """A work unit that may run now; else how long until one may, where time alone decides it."""
        soonest: float | None = None
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
                wait = self._suspect_wait(cursor, now) if cursor.retry_state.suspects else None
                if wait is None:
                    return self._unit(cursor, one_by_one), None
                soonest = wait if soonest is None else min(soonest, wait)
        return None, soonest

    def first_due(self, now: float) -> Cursor | None:
        """A cursor whose next record could be taken."""
        for cursor in self.ready:
            task = cursor.task
            if task.state is TaskState.RUNNING and cursor.queue and cursor.due <= now and task.holder is None:
                return cursor
        return None

    def _unit(self, cursor: Cursor, one_by_one: bool) -> WorkUnit:
        fetched = cursor.queue[0]
        if one_by_one or (fetched.records and cursor.position <= cursor.retry_state.isolate_until):
            limit = 1
        elif self._batch_bytes:
            limit = max(1, min(UNIT_RECORDS, self._services.epoch.limit_bytes // self._batch_bytes))
        else:
            limit = UNIT_RECORDS
        end = fetched.end(limit, UNIT_BYTES)
        return WorkUnit(cursor, fetched, end, int(self._services.clock.time() * 1000))

    def _suspect_wait(self, cursor: Cursor, now: float) -> float | None:
        """Where the next event is one that the process may have died of: how long it waits, None where it need not."""
        fetched = cursor.queue[0]
        record = fetched.records[fetched.start] if fetched.start < len(fetched.records) else None
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
        if not self._alone():
            return LOOK_S
        suspect.tried = True
        return None

    # -- giving back

    def give_back(self, unit: WorkUnit) -> None:
        """What was not done of it stays first in its queue."""
        cursor, fetched = unit.cursor, unit.fetched
        before = cursor.position
        settle(unit)
        cursor.buffered -= unit.index - fetched.start
        fetched.start = unit.index
        if fetched.start >= len(fetched.records) and cursor.queue and cursor.queue[0] is fetched:
            cursor.queue.popleft()
            cursor.bytes -= fetched.size
        if cursor.position != before:
            # Also where nothing but control records, or records of aborted transactions, were behind the last event.
            cursor.task.touched = True
            self._services.changed.set()
        cursor.task.holder = None


def settle(unit: WorkUnit) -> None:
    """Bring position and stream time of its task up to what is done of it."""
    # A cursor that is ahead of its task's others meets records that it has done.
    unit.cursor.position = max(unit.cursor.position, unit.position)
    if unit.timed < unit.index:
        task = unit.cursor.task
        task.stream = move_times(task.stream, unit.times_done(), unit.wall_ms)
