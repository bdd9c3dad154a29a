"""What a row means, and every path through the steps of an effect elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from semel.effects.decisions import (
    NOT_DONE,
    Call,
    Claim,
    Confirm,
    Done,
    Failed,
    Keep,
    Release,
    StoredClaim,
    TakeOver,
    Verdict,
    Wait,
    carry_out,
    judge,
)
from semel.effects.effect import Effect, EffectKey, Place
from semel.errors import EffectConflict, EffectInFlight, EffectUnsure

PLACE = Place("orders", "t1", 0, 7)
EFFECT = Effect(EffectKey("app", "", b"o1"), b"payload", PLACE, 10_000, 1_000)
DONE = StoredClaim(b"payload", "other", True, b"5", PLACE, 10_000)
OPEN = replace(DONE, done=False, outcome=None)


@pytest.mark.parametrize(
    ("stored", "verdict"),
    [
        (DONE, Verdict.REMEMBERED),
        (OPEN, Verdict.STRANDED),
        (replace(OPEN, held=True), Verdict.IN_FLIGHT),
        (replace(DONE, payload=b"another"), Verdict.CONFLICT),
        (replace(OPEN, payload=b"another", held=True), Verdict.CONFLICT),
        # Another record of the same id, within the window of the first one and after it.
        (replace(DONE, place=PLACE._replace(offset=3), at_ms=9_000), Verdict.REMEMBERED),
        (replace(DONE, place=PLACE._replace(offset=3), at_ms=8_999), Verdict.ANEW),
        (replace(DONE, place=PLACE._replace(offset=3), at_ms=8_999, payload=b"another"), Verdict.ANEW),
        # The same record is the same event, whatever its time.
        (replace(DONE, at_ms=8_999), Verdict.REMEMBERED),
        # What may still happen is not forgotten for its age.
        (replace(OPEN, place=PLACE._replace(offset=3), at_ms=8_999), Verdict.STRANDED),
        (replace(DONE, place=None, at_ms=None), Verdict.REMEMBERED),
    ],
)
def test_what_a_row_means(stored: StoredClaim, verdict: Verdict) -> None:
    assert judge(stored, EFFECT) is verdict
    if verdict is Verdict.ANEW:
        assert judge(stored, replace(EFFECT, window_ms=None)) is not Verdict.ANEW


def steps(*answers: Any, unsure: Any = "refuse", confirms: bool = False, wait_s: float = 0.0) -> tuple[list[Any], Any]:
    """The steps that are taken with these answers, and how it ends: Done, or an error."""
    taken, course = list[Any](), carry_out(EFFECT, unsure=unsure, confirms=confirms, wait_s=wait_s)
    given = iter(answers)
    try:
        step = next(course)
        while True:
            taken.append(step)
            step = course.send(next(given))
    except StopIteration as end:
        return taken, end.value
    except Exception as error:
        return taken, error


def kinds(taken: list[Any]) -> list[type]:
    return [type(step) for step in taken]


def test_the_first_one_calls_and_keeps() -> None:
    taken, end = steps(None, {"id": 5}, True)
    assert kinds(taken) == [Claim, Call, Keep]
    assert end == Done({"id": 5}, False)


def test_a_repeat_calls_nothing() -> None:
    assert steps(DONE) == ([Claim()], Done(5, True))


def test_another_payload_calls_nothing() -> None:
    taken, end = steps(replace(DONE, payload=b"another"), unsure="again", confirms=True)
    assert kinds(taken) == [Claim]
    assert isinstance(end, EffectConflict)


def test_one_under_way_is_waited_for() -> None:
    held = replace(OPEN, held=True)
    taken, end = steps(held, None, held, None, DONE, wait_s=1.0)
    assert kinds(taken) == [Claim, Wait, Claim, Wait, Claim]
    assert end == Done(5, True)
    assert isinstance(steps(held)[1], EffectInFlight)


def test_what_is_unsure_is_refused_unless_told_otherwise() -> None:
    taken, end = steps(OPEN)
    assert kinds(taken) == [Claim]
    assert isinstance(end, EffectUnsure)
    assert EFFECT.key.digest.hex() in str(end)


def test_what_is_unsure_is_called_again_where_that_is_said() -> None:
    taken, end = steps(OPEN, True, "new", True, unsure="again")
    assert kinds(taken) == [Claim, TakeOver, Call, Keep]
    assert taken[1] == TakeOver("other")
    assert end == Done("new", False)


def test_who_loses_the_take_over_looks_again() -> None:
    taken, end = steps(OPEN, False, DONE, unsure="again")
    assert kinds(taken) == [Claim, TakeOver, Claim]
    assert end == Done(5, True)


def test_a_far_end_that_is_asked_is_believed() -> None:
    taken, end = steps(OPEN, True, "found", True, confirms=True)
    assert kinds(taken) == [Claim, TakeOver, Confirm, Keep]
    assert end == Done("found", True)
    taken, end = steps(OPEN, True, NOT_DONE, "new", True, confirms=True)
    assert kinds(taken) == [Claim, TakeOver, Confirm, Call, Keep]
    assert end == Done("new", False)


def test_a_far_end_that_cannot_be_asked_leaves_it_unsure() -> None:
    gone = ConnectionError()
    taken, end = steps(OPEN, True, Failed(gone, False), confirms=True, unsure="again")
    assert kinds(taken) == [Claim, TakeOver, Confirm]
    assert end is gone


def test_a_failure_leaves_it_unsure_and_a_certain_one_releases_it() -> None:
    error = TimeoutError()
    assert kinds(steps(None, Failed(error, False))[0]) == [Claim, Call]
    taken, end = steps(None, Failed(error, True), None)
    assert kinds(taken) == [Claim, Call, Release]
    assert end is error


def test_a_claim_that_was_taken_over_meanwhile_is_said() -> None:
    _, end = steps(None, "done", False)
    assert isinstance(end, EffectUnsure)
    assert "may have happened twice" in str(end)


def test_a_row_whose_window_is_over_is_taken_over_and_called() -> None:
    old = replace(DONE, place=PLACE._replace(offset=3), at_ms=0)
    assert kinds(steps(old, True, "new", True)[0]) == [Claim, TakeOver, Call, Keep]
