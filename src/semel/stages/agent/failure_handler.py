"""Failure handler: an event that failed is undone, and what `failure_policy` decides is done (protocol rules 1, 3 and 23)."""

from __future__ import annotations

from semel.errors import OutputRefused, ProcessEnded, Reject, SessionLost, described
from semel.plan import AgentPlan
from semel.stages.agent.crash_suspects import most_crashes
from semel.stages.agent.failure_log import FailureLog
from semel.stages.agent.failure_policy import (
    DeadLetter,
    Decision,
    FailedAttempt,
    NotCounted,
    OneByOne,
    RetryAfter,
    StoreFailed,
    decide,
    used_up,
)
from semel.stages.dedup.side_outputs import SideOutputs
from semel.stages.dedup.wall_clock import WallClock
from semel.stages.fetch.work_unit import WorkUnit
from semel.stages.services import Services
from semel.stages.sink.failure_cause import agent_code, cause_of
from semel.state.dedup_marks import dead
from semel.state.event_context import EventContext


def undo(unit: WorkUnit, context: EventContext) -> None:
    """What is in hand leaves no trace. Of a batch nothing is done."""
    context.undo()
    unit.moved = None
    if unit.batch is not None:
        unit.batch, unit.index = None, unit.start


class FailureHandler:
    """One agent's."""

    def __init__(
        self, services: Services, plan: AgentPlan, side_outputs: SideOutputs, wall_clock: WallClock, log: FailureLog
    ) -> None:
        self._services = services
        self._plan = plan
        self._code = agent_code(plan.run, plan.name)
        self._side_outputs = side_outputs
        self._wall_clock = wall_clock
        self._log = log
        # The event whose loss of the session has been counted.
        self._counted: tuple[EventContext, int] | None = None

    def failed(
        self, unit: WorkUnit, context: EventContext, error: BaseException, *, program_at_fault: bool
    ) -> Decision:
        """Undo what is in hand, and do what is decided; whoever calls gives the work unit back then."""
        task, state = unit.cursor.task, unit.cursor.retry_state
        # What cost the session, or processes, was counted then.
        counted = self._counted == (context, context.event) or isinstance(error, (SessionLost, ProcessEnded))
        number = state.count if counted else state.failed_before(unit.position) + 1
        events = 1 if unit.batch is None else unit.end - unit.start
        attempt = FailedAttempt(error, number, events, program_at_fault)
        decision = decide(self._plan.retry, attempt, self._services.randomness.random())
        if isinstance(decision, (RetryAfter, DeadLetter)) and not counted:
            state.failed(unit.position, self._now_ms())
        marks, stream = context.writes.marks[:], unit.moved
        if not isinstance(decision, StoreFailed):
            undo(unit, context)
        match decision:
            case NotCounted():
                pass
            case StoreFailed(store_error):
                self._services.store_failed(store_error)
            case OneByOne():
                state.isolate_until = unit.fetched.records[unit.end - 1].offset
                self._log.split(unit.cursor.tp, attempt.events, error, self._services.clock.monotonic())
            case RetryAfter(delay_s):
                now = self._services.clock.monotonic()
                unit.cursor.due = now + delay_s
                self._log.retried(
                    unit.cursor.tp, unit.record, error, attempt.number, self._plan.retry.attempts, delay_s, now
                )
            case DeadLetter(reason):
                # Before anything is in the epoch: these ask an error of somebody else's what it is.
                what, cause = described(error), cause_of(error, self._code)
                self._say_given_up(unit, attempt)
                if marks and task.marks is not None and stream is not None:
                    [(id, mark)] = marks
                    task.marks.mark(id, dead(mark))
                    task.stream_ms, task.pending = stream
                self._side_outputs.quarantine(
                    unit, unit.record, reason, what, state.count, cause=cause, first_ms=state.first_ms
                )
                state.given_up()
                unit.index += 1
        return decision

    def _say_given_up(self, unit: WorkUnit, attempt: FailedAttempt) -> None:
        record, error, now = unit.record, attempt.error, self._services.clock.monotonic()
        if not isinstance(error, Reject):
            most_attempts = max(attempt.number, self._plan.retry.attempts)
            self._log.given_up(unit.cursor.tp, record, error, attempt.number, most_attempts, now)
        if isinstance(error, OutputRefused):
            self._wall_clock.refused(unit, record.timestamp, now)

    def lost_session(self, unit: WorkUnit, context: EventContext) -> None:
        """What is in hand, or was until just now, cost the worker its place: nothing of it will be committed."""
        if self._counted == (context, context.event):
            return
        self._counted = context, context.event
        state = unit.cursor.retry_state
        if unit.batch is not None and unit.end - unit.start > 1:
            state.isolate_until = unit.fetched.records[unit.end - 1].offset
            return
        record = unit.record if context.holding or unit.batch is not None else context.record
        if record is not None:
            times = state.lost_session(record.offset, self._now_ms())
            self._log.lost_session(unit.cursor.tp, record, times, self._plan.retry.attempts)

    def used_up(self, unit: WorkUnit) -> SessionLost | ProcessEnded | None:
        """Why a work unit is not handled again: it holds one event, and that has used up its attempts without an answer."""
        state = unit.cursor.retry_state
        if unit.end - unit.start != 1 or not (state.lost or state.suspects):
            return None
        why = used_up(self._plan.retry, state, unit.record)
        if isinstance(why, ProcessEnded):
            state.died(unit.record.offset, why.times)
        return why

    def quarantined_unseen(self, unit: WorkUnit, why: SessionLost | ProcessEnded) -> bool:
        """The process died of giving the event up, too: it is not the agent's code that ends it, but what decodes it or reads
        its id. So it goes to the dead letters as it came. False where that is not so."""
        if not isinstance(why, ProcessEnded) or why.times <= most_crashes(self._plan.retry):
            return False
        cause = cause_of(why, self._code)
        self._side_outputs.quarantine(unit, unit.record, "failed", described(why), why.times, cause=cause)
        unit.index += 1
        return True

    def _now_ms(self) -> int:
        return int(self._services.clock.time() * 1000)
