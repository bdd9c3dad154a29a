"""Failure handler: an event that failed is undone, and what `failure_policy` decides is done (protocol rules 1, 3 and 23)."""

from __future__ import annotations

from dataclasses import replace

from semel.errors import HandlerTimeout, OutputRefused, ProcessEnded, Reject, SessionLost, contains, described
from semel.plan import AgentPlan
from semel.stages.agent.circuit_breaker import CircuitBreaker
from semel.stages.agent.completion import Completion
from semel.stages.agent.crash_suspects import most_crashes
from semel.stages.agent.failure_log import FailureLog, alike_of
from semel.stages.agent.failure_policy import (
    DeadLetter,
    Decision,
    FailedAttempt,
    HandleAnew,
    NotCounted,
    OneByOne,
    Park,
    RetryAfter,
    StoreFailed,
    decide,
    says_of_its_event,
    used_up,
)
from semel.stages.dedup.side_outputs import SideOutputs
from semel.stages.dedup.wall_clock import WallClock
from semel.stages.fetch.work_unit import WorkUnit
from semel.stages.services import Services
from semel.stages.sink.failure_cause import agent_code, cause_of
from semel.state.dedup_marks import DEAD, PARKED, with_outcome
from semel.state.event_context import EventContext
from semel.state.parked_event import ParkedEvent
from semel.state.replay import revision_of
from semel.state.store import StoreError
from semel.state.task import Task

# Of an error, in the row of a parked event.
ERROR_CHARACTERS = 500


def undo(unit: WorkUnit, context: EventContext) -> None:
    """What is in hand leaves no trace. Of a batch nothing is done."""
    context.undo()
    unit.moved = None
    if unit.batch is not None:
        unit.batch, unit.index = None, unit.start


class FailureHandler:
    """One agent's."""

    def __init__(
        self,
        services: Services,
        plan: AgentPlan,
        side_outputs: SideOutputs,
        wall_clock: WallClock,
        log: FailureLog,
        completion: Completion,
    ) -> None:
        self._services = services
        self._plan = plan
        self._code = agent_code(plan.run, plan.name)
        self._side_outputs = side_outputs
        self._wall_clock = wall_clock
        self._log = log
        self._completion = completion
        self.breaker = CircuitBreaker(lambda: completion.succeeded, services.halt_after)

    def failed(
        self, unit: WorkUnit, context: EventContext, error: BaseException, *, program_at_fault: bool
    ) -> Decision:
        """Undo what is in hand, and do what is decided; whoever calls gives the work unit back then."""
        task, state = unit.cursor.task, unit.cursor.retry_state
        stale = False
        try:
            # How long it takes depends on no row.
            stale = context.holding and unit.retried is not None and type(error) is not HandlerTimeout and context.stale
        except StoreError as exc:
            error = exc
        # What cost the session, or processes, was counted then.
        unanswered = isinstance(error, (SessionLost, ProcessEnded))
        counted = context.lost == context.event or unanswered
        before = None if unit.retried is None else unit.retried[unit.index]
        number = state.count if unanswered or (counted and before is None) else unit.failures + 1
        events = 1 if unit.batch is None else unit.end - unit.start
        # One that has not begun is not known to the dedup rule: it is judged when it does.
        room = before is not None or (context.holding and self._room(unit, events, context))
        halted = not program_at_fault and events == 1 and self._halted(unit, error)
        # What the agent was not given is dead-lettered alone.
        keyed = events == 1 and unit.record.key is not None and (unit.batch is None or unit.batch.events > 0)
        to_hold = before is not None or (context.holding and self._room_to_hold(unit))
        attempt = FailedAttempt(
            error, number, events, program_at_fault, room, not unit.unjudged, halted, keyed, to_hold, stale
        )
        decision = decide(self._plan.retry, attempt, self._services.randomness.random())
        if isinstance(decision, (RetryAfter, DeadLetter)) and not counted and before is None:
            state.failed(unit.position, self._now_ms())
        marks, stream = context.writes.marks[:], unit.moved
        if not isinstance(decision, StoreFailed):
            undo(unit, context)
        if events == 1:
            unit.cursor.failed()
        match decision:
            case NotCounted():
                pass
            case HandleAnew():
                assert unit.retried is not None and unit.cursor.parked is not None
                unit.cursor.parked.conflicted(unit.retried[unit.index][0])
            case StoreFailed(store_error):
                self._services.store_failed(store_error)
            case OneByOne():
                state.isolate(max(record.offset for record in unit.records))
                self._log.split(unit.cursor.tp, attempt.events, error, self._services.clock.monotonic())
            case Park(delay_s):
                self._say_retried(unit, attempt, delay_s)
                self._park(unit, attempt, delay_s, marks, stream)
            case RetryAfter(delay_s):
                unit.cursor.due = self._services.clock.monotonic() + delay_s
                self._say_retried(unit, attempt, delay_s)
            case DeadLetter(reason, hold):
                # Before anything is in the epoch: these ask an error of somebody else's what it is.
                what, cause = described(error), cause_of(error, self._code)
                self._say_given_up(unit, attempt, hold)
                if marks and task.marks is not None and stream is not None:
                    [(id, mark)] = marks
                    task.marks.mark(id, with_outcome(mark, DEAD, revision_of(unit.record.headers)))
                if stream is not None:
                    task.stream_ms, task.pending = stream
                first_ms = state.first_ms if before is None else before[1].first_ms
                self._side_outputs.quarantine(
                    unit, unit.record, reason, what, attempt.number, cause=cause, first_ms=first_ms, hold=hold
                )
                if before is None:
                    state.given_up()
                else:
                    before[0].given_up = True
                unit.index += 1
        return decision

    def _halted(self, unit: WorkUnit, error: BaseException) -> bool:
        """Whether this error, after those before it, is no event's fault.

        An event that fails while others succeed is to blame for it. Of one that was parked by another worker nobody knows; where
        many are, they are not, nor is one that failed last while nothing succeeded.
        """
        retry, breaker, now = self._plan.retry, self.breaker, self._services.clock.monotonic()
        if says_of_its_event(retry, error) or isinstance(error, (StoreError, SessionLost, ProcessEnded)):
            return False
        if self._is_to_blame(unit):
            return breaker.open
        after = self._services.halt_after
        event, text = (unit.cursor.tp, unit.record.offset), described(error)[:ERROR_CHARACTERS]
        if breaker.failed(event, alike_of(error), text, now):
            self._log.halted(self._plan.name, error, after)
        if breaker.open or not after or unit.retried is None:
            return breaker.open
        parked, (_, event) = unit.cursor.parked, unit.retried[unit.index]
        return event.halted or (parked is not None and len(parked.failing) >= after)

    def begin(self, task: Task) -> None:
        """A task runs from now on. Where an earlier process was halted, and nothing has succeeded in this one, it still is."""
        held = task.parked.halted.pop(self._plan.state_name, None) if task.parked is not None else None
        if held is not None and self.breaker.resume(*held, self._services.clock.monotonic()):
            self._log.halted_before(self._plan.name, *held)

    def _is_to_blame(self, unit: WorkUnit) -> bool:
        """Whether others have succeeded since the event in hand failed for the first time."""
        if unit.retried is None:
            return False
        queued, event = unit.retried[unit.index]
        succeeded = self._completion.succeeded
        if queued.successes is None:
            queued.successes = succeeded
        return event.blamed or succeeded > queued.successes

    def _room(self, unit: WorkUnit, events: int, context: EventContext) -> bool:
        """Whether the event in hand can be parked; where there is no room, that is said of its partition."""
        parked, cursor = unit.cursor.parked, unit.cursor
        given = unit.batch is None or unit.batch.events
        if parked is None or events > 1 or not given:
            # What the agent was not given, as a duplicate, is to be judged again.
            return False
        id = next((id for id, _ in context.writes.marks), None)
        cursor.held_up = parked.no_room_for(ParkedEvent(unit.record, id))
        return not cursor.held_up

    @staticmethod
    def _room_to_hold(unit: WorkUnit) -> bool:
        """Whether there is room to note that the key of the event in hand is held, however large that is."""
        return unit.cursor.parked is not None and not unit.cursor.parked.full_for(unit.record.key)

    def _park(
        self,
        unit: WorkUnit,
        attempt: FailedAttempt,
        delay_s: float,
        marks: list[tuple[bytes, bytes]],
        stream: tuple[int | None, tuple[int, ...]] | None,
    ) -> None:
        """The event in hand is tried again after so long; its partition goes on."""
        cursor, task, services = unit.cursor, unit.cursor.task, self._services
        assert cursor.parked is not None
        now, now_ms = services.clock.monotonic(), self._now_ms()
        due_ms, error = now_ms + int(delay_s * 1000), described(attempt.error)[:ERROR_CHARACTERS]
        if unit.retried is not None:
            queued, event = unit.retried[unit.index]
            event = replace(
                event, attempts=attempt.number, first_ms=event.first_ms or now_ms, due_ms=due_ms, error=error,
                blamed=self._is_to_blame(unit), halted=attempt.halted,
            )  # fmt: skip
            cursor.parked.failed(queued, event, now + delay_s)
        else:
            id = mark = None
            if marks and task.marks is not None:
                [(id, mark)] = marks
                mark = with_outcome(mark, PARKED)
                task.marks.mark(id, mark)
            if stream is not None:
                task.stream_ms, task.pending = stream
            first_ms = cursor.retry_state.first_ms if cursor.retry_state.offset == unit.position else 0
            event = ParkedEvent(
                unit.record, id, mark, attempt.number, first_ms or now_ms, due_ms, error=error, halted=attempt.halted
            )
            cursor.parked.add(event, now + delay_s).successes = self._completion.succeeded
            cursor.retry_state.given_up()
            unit.index += 1
        services.epoch.add((), event.size)
        task.touched = True
        services.changed.set()

    def _say_retried(self, unit: WorkUnit, attempt: FailedAttempt, delay_s: float) -> None:
        if attempt.halted:
            # When one is tried again its delay does not say.
            return
        now, most = self._services.clock.monotonic(), self._plan.retry.attempts
        self._log.retried(unit.cursor.tp, unit.record, attempt.error, attempt.number, most, delay_s, now)

    def _say_given_up(self, unit: WorkUnit, attempt: FailedAttempt, hold: bool) -> None:
        record, error, now = unit.record, attempt.error, self._services.clock.monotonic()
        if not contains(error, Reject):
            retry = self._plan.retry
            most_attempts, why = max(attempt.number, retry.attempts), retry.why_final(error)
            self._log.given_up(
                unit.cursor.tp, record, error, attempt.number, most_attempts, now, why=why, hold=hold
            )  # fmt: skip
        if contains(error, OutputRefused):
            self._wall_clock.refused(unit, record.timestamp, now)

    def lost_session(self, unit: WorkUnit, context: EventContext) -> None:
        """What is in hand, or was until just now, cost the worker its place: nothing of it will be committed."""
        if context.lost == context.event:
            return
        context.lost = context.event
        state = unit.cursor.retry_state
        if unit.batch is not None and unit.end - unit.start > 1:
            state.isolate(max(record.offset for record in unit.records))
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
        cause, hold = cause_of(why, self._code), self._plan.retry.holds(why) and self._room_to_hold(unit)
        self._side_outputs.quarantine(unit, unit.record, "failed", described(why), why.times, cause=cause, hold=hold)
        unit.index += 1
        return True

    def _now_ms(self) -> int:
        return int(self._services.clock.time() * 1000)
