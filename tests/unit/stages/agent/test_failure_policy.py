"""Failure policy: what comes after an attempt that failed, as a function of the policy, the error and the count."""

from __future__ import annotations

from datetime import timedelta

import pytest

from semel.errors import (
    DecodeError,
    HandlingError,
    OutputRefused,
    ProcessEnded,
    Reject,
    SessionLost,
    WrongPartition,
)
from semel.memory.batch import MemoryRecord
from semel.retry import Retry
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
from semel.state.crash_notes import Suspect
from semel.state.store import StoreError
from semel.state.task import RetryState

RETRY = Retry(3, timedelta(seconds=1))


def after(error: BaseException, number: int = 1, events: int = 1, *, program_at_fault: bool = False) -> Decision:
    return decide(RETRY, FailedAttempt(error, number, events, program_at_fault), draw=1.0)


def test_an_event_is_tried_again_after_longer_each_time_and_then_dead_lettered() -> None:
    assert [after(OSError(), number) for number in (1, 2, 3)] == [
        Park(1.0),
        Park(2.0),
        DeadLetter("failed"),
    ]


def test_where_there_is_no_room_to_park_it_the_event_is_tried_again_in_place() -> None:
    assert decide(RETRY, FailedAttempt(OSError(), 1, room=False), draw=1.0) == RetryAfter(1.0)


def test_an_event_that_the_dedup_rule_fails_on_is_dead_lettered_at_once() -> None:
    assert decide(RETRY, FailedAttempt(OSError(), 1, judged=False), draw=1.0) == DeadLetter("failed")


HOLD = Retry(3, timedelta(seconds=1), timedelta(seconds=30), fatal=(KeyError,), then="hold")


def test_the_last_attempt_holds_the_key_where_there_is_one() -> None:
    assert decide(HOLD, FailedAttempt(OSError(), 3, keyed=True), draw=1.0) == DeadLetter("failed", hold=True)
    assert decide(HOLD, FailedAttempt(OSError(), 3), draw=1.0) == DeadLetter("failed")
    for alone in (Reject(), KeyError()):
        decision = decide(HOLD, FailedAttempt(alone, 1, keyed=True), draw=1.0)
        assert isinstance(decision, DeadLetter) and not decision.hold


def test_what_no_rule_has_judged_holds_nobody() -> None:
    assert decide(HOLD, FailedAttempt(OSError(), 1, judged=False, keyed=True), draw=1.0) == DeadLetter("failed")


def test_where_a_key_is_to_be_held_and_there_is_no_room_the_event_stays_where_it_is() -> None:
    full = FailedAttempt(OSError(), 3, room=False, keyed=True, room_to_hold=False)
    assert decide(HOLD, full, draw=1.0) == RetryAfter(30.0)


def test_an_event_that_is_too_large_to_be_parked_may_hold_its_key() -> None:
    large = FailedAttempt(OSError(), 3, room=False, keyed=True)
    assert decide(HOLD, large, draw=1.0) == DeadLetter("failed", hold=True)


def test_what_was_not_judged_is_never_parked_also_where_nothing_succeeds() -> None:
    unjudged = FailedAttempt(OSError(), 1, judged=False, halted=True)
    assert decide(RETRY, unjudged, draw=1.0) == RetryAfter(RETRY.longest_delay_s)


def test_with_park_or_stop_an_event_is_tried_for_as_long_as_it_takes() -> None:
    for then in ("park", "stop"):
        retry = Retry(3, timedelta(seconds=1), timedelta(seconds=3), then=then)
        assert decide(retry, FailedAttempt(OSError(), 400), draw=1.0) == Park(3.0)
        assert decide(retry, FailedAttempt(Reject(), 400), draw=1.0) == DeadLetter("rejected")


def test_what_the_agent_rejects_is_dead_lettered_at_once_as_rejected() -> None:
    assert after(Reject("no")) == DeadLetter("rejected")


@pytest.mark.parametrize("error", [DecodeError(), OutputRefused(), WrongPartition(), ProcessEnded(5)])
def test_what_another_attempt_cannot_change_is_dead_lettered_at_once(error: BaseException) -> None:
    assert after(error) == DeadLetter("failed")


def test_no_event_is_given_up_for_what_it_saw_of_rows_that_have_changed_since() -> None:
    def stale(error: BaseException, number: int = 1) -> Decision:
        return decide(RETRY, FailedAttempt(error, number, stale=True), draw=1.0)

    assert stale(Reject("no")) == stale(WrongPartition()) == stale(OSError(), 3) == HandleAnew()
    assert stale(OSError(), 2) == Park(2.0)


def test_what_one_error_of_a_group_says_of_the_event_holds() -> None:
    def group(*errors: Exception) -> Exception:
        return ExceptionGroup("unhandled errors in a TaskGroup", errors)

    assert after(group(OSError(), Reject("no"))) == DeadLetter("rejected")
    assert says_of_its_event(RETRY, group(OSError(), Reject("no")))
    assert after(group(WrongPartition(), OSError())) == DeadLetter("failed")
    assert after(group(OSError(), ValueError())) == Park(1.0)
    failed = StoreError("the disk is full")
    assert after(group(OSError(), failed)) == StoreFailed(failed)


def test_a_value_of_the_wrong_type_is_final_and_other_handling_errors_are_a_matter_of_time() -> None:
    of_a_wrong_type = HandlingError("row")
    of_a_wrong_type.__cause__ = TypeError()
    assert after(of_a_wrong_type) == DeadLetter("failed")
    assert after(HandlingError("outlived")) == Park(1.0)


def test_of_a_batch_nobody_knows_which_event_failed_so_none_has_it_counted() -> None:
    assert after(OSError(), events=5) == OneByOne()
    assert after(Reject(), number=3, events=5) == OneByOne()
    assert after(OSError(), events=1) == Park(1.0)


def test_what_is_the_programs_fault_is_no_events() -> None:
    assert after(Reject(), number=3, program_at_fault=True) == NotCounted()
    assert after(StoreError("full"), events=5, program_at_fault=True) == NotCounted()


def test_a_store_that_fails_is_no_events_fault() -> None:
    full = StoreError("full")
    assert after(full, number=3, events=5) == StoreFailed(full)


def record(offset: int) -> MemoryRecord:
    return MemoryRecord(1_000, b"k", b"v", (), offset)


def test_an_event_that_cost_its_last_session_is_not_handled_again() -> None:
    state = RetryState()
    for _ in range(3):
        assert used_up(RETRY, state, record(7)) is None
        state.lost_session(7, 1_000)
    assert isinstance(used_up(RETRY, state, record(7)), SessionLost)
    assert used_up(RETRY, state, record(8)) is None


def test_attempts_that_failed_without_costing_a_session_are_counted_when_they_fail() -> None:
    state = RetryState()
    for _ in range(3):
        state.failed(7, 1_000)
    assert used_up(RETRY, state, record(7)) is None


@pytest.mark.parametrize(("times", "gives_up"), [(4, False), (5, True), (6, True)])
def test_an_event_that_cost_its_last_process_is_not_handled_again(times: int, gives_up: bool) -> None:
    state = RetryState([Suspect("settle", "payments", 0, 7, 7, 1_000, times)])
    why = used_up(RETRY, state, record(7))
    assert isinstance(why, ProcessEnded) is gives_up
    assert used_up(RETRY, state, record(8)) is None
