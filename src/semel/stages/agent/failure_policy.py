"""Failure policy: what comes after an attempt of an event that failed (protocol rules 1, 3 and 5). Pure: values in, a value out.

`failure_handler` applies what is decided here, and nothing else decides it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semel.errors import HandlingError, ProcessEnded, Reject, SessionLost, WrongPartition, contains, errors_in
from semel.port import Record
from semel.retry import Retry
from semel.stages.agent.crash_suspects import most_crashes
from semel.state.store import StoreError
from semel.state.task import RetryState


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """`number`: which attempt of its event it was, from 1. `events`: how many events were in the unit of work that failed.
    `program_at_fault`: the agent's code asks for events as nobody may, whichever event it has in hand. `room`: it can be parked,
    or is. `judged`: what the dedup rule says of it was known; else a function of the rule has failed on it. `halted`: nothing
    succeeds, so that the error says nothing of the event (`circuit_breaker`). `keyed`: it has a key, which may be held;
    `room_to_hold`: there is room for that, which the event itself takes no part of. `stale`: another event has changed a row that
    this one had seen."""

    error: BaseException
    number: int
    events: int = 1
    program_at_fault: bool = False
    room: bool = True
    judged: bool = True
    halted: bool = False
    keyed: bool = False
    room_to_hold: bool = True
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Park:
    """The event is set aside, and tried again after so long. Later events of its key wait behind it, all others go on."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """There is no room to park it: it is tried again in place after so long, and its partition waits."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """That was its last attempt. `reason`: as the dead letter says it. `hold`: its key waits until something was done with the
    letter."""

    reason: Literal["failed", "rejected"]
    hold: bool = False


@dataclass(frozen=True, slots=True)
class OneByOne:
    """One of several events did it: all are tried again, each alone. No attempt is counted."""


@dataclass(frozen=True, slots=True)
class HandleAnew:
    """It would be given up for what it has seen, which is not so any more. No attempt is counted."""


@dataclass(frozen=True, slots=True)
class NotCounted:
    """No event's fault: what was in hand is handled again when the agent asks for it."""


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """No event's fault, and nothing goes on before the store can be used again."""

    error: StoreError


Decision = Park | RetryAfter | DeadLetter | OneByOne | HandleAnew | NotCounted | StoreFailed


def decide(retry: Retry, attempt: FailedAttempt, draw: float) -> Decision:
    """What comes next. `draw` in [0, 1) spreads the wait for another attempt."""
    decision = _decide(retry, attempt, draw)
    return HandleAnew() if attempt.stale and isinstance(decision, DeadLetter) else decision


def _decide(retry: Retry, attempt: FailedAttempt, draw: float) -> Decision:
    error = attempt.error
    if attempt.program_at_fault:
        return NotCounted()
    if (store_error := next((one for one in errors_in(error) if isinstance(one, StoreError)), None)) is not None:
        return StoreFailed(store_error)
    if attempt.events > 1:
        return OneByOne()
    if contains(error, Reject):
        return DeadLetter("rejected")
    delay = None if is_final(error) or not attempt.judged else retry.delay_s(error, attempt.number, draw)
    if delay is None:
        if not attempt.halted or retry.is_fatal(error):
            # What has no verdict is dead-lettered alone, as whatever else never came to its handler.
            hold = attempt.keyed and attempt.judged and retry.holds(error)
            if not hold or attempt.room_to_hold:
                return DeadLetter("failed", hold)
            # There is no room for what says that the key is held, and without it those behind it would go on.
        delay = retry.longest_delay_s
    # What is parked is not judged again.
    return Park(delay) if attempt.room and attempt.judged else RetryAfter(delay)


def says_of_its_event(retry: Retry, error: BaseException) -> bool:
    """Whether it is known that the event is to blame for the error, and not the program: somebody has declared it."""
    return contains(error, Reject) or retry.is_fatal(error)


def is_final(error: BaseException) -> bool:
    """Whether another attempt would end as this one did: the error depends on the event and the code alone.

    That is a row of another partition, and a key or value that is not of its table's type. The other HandlingErrors are
    a matter of time: a task that outlived its event, a commit that may be done when the event is tried again.
    """
    return any(
        isinstance(one, (WrongPartition, ProcessEnded))
        or (type(one) is HandlingError and isinstance(one.__cause__, TypeError))
        for one in errors_in(error)
    )


def used_up(retry: Retry, state: RetryState, record: Record) -> SessionLost | ProcessEnded | None:
    """Why an event is not handled again: handling it has cost its last session, or its last process."""
    suspect = state.suspect(record)
    if suspect is not None and suspect.crashes >= most_crashes(retry):
        return ProcessEnded(suspect.crashes)
    if state.lost and state.count >= retry.attempts and record.offset == state.offset:
        return SessionLost(state.lost)
    return None
