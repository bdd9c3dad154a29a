"""What every store of effects must do, whatever it is made of. A store of your own: add it to `stores`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from semel import NOT_DONE
from semel.effects import elsewhere
from semel.effects.decisions import Done
from semel.effects.effect import Outcome, effect
from semel.effects.elsewhere import Plan
from semel.errors import EffectConflict, EffectInFlight, EffectUnsure
from tests.effects import stores
from tests.effects.far_end import happen, killed, started, times


@pytest.fixture
def far_end(tmp_path: Path) -> Path:
    return tmp_path / "far-end.txt"


def call(store: str, file: Path, key: str, *, payload: Any = None, **plan: Any) -> Done:
    wanted = effect(key, {"for": key} if payload is None else payload)
    with stores.session(store, wanted) as session:
        return elsewhere.run(session, Plan(wanted, plan.pop("call", lambda: happen(file, key)), **plan))


def test_the_outcome_of_the_first_call_is_that_of_all(store: str, far_end: Path, key: str) -> None:
    assert [call(store, far_end, key) for _ in range(3)] == [
        Done({"receipt": key}, False),
        Done({"receipt": key}, True),
        Done({"receipt": key}, True),
    ]
    assert times(far_end, key) == 1


def test_an_outcome_of_none_is_remembered_too(store: str, far_end: Path, key: str) -> None:
    assert call(store, far_end, key, call=lambda: None) == Done(None, False)
    assert call(store, far_end, key) == Done(None, True)


def test_another_payload_under_the_key_is_refused(store: str, far_end: Path, key: str) -> None:
    call(store, far_end, key)
    with pytest.raises(EffectConflict, match="another payload"):
        call(store, far_end, key, payload="another")
    assert times(far_end, key) == 1


def test_of_eight_processes_one_carries_it_out_and_all_get_its_outcome(
    store_of_processes: str, far_end: Path, key: str
) -> None:
    processes = [started(store_of_processes, far_end, key, "run") for _ in range(8)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert said == [f"{ {'receipt': key} }\n"] * 8
    assert times(far_end, key) == 1


@pytest.mark.parametrize(("point", "happened"), [("before", 0), ("during", 1)])
def test_a_process_killed_at_an_effect_leaves_it_unsure_and_nobody_repeats_it_silently(
    store_of_processes: str, far_end: Path, key: str, point: str, happened: int
) -> None:
    killed(store_of_processes, far_end, key, point)
    with pytest.raises(EffectUnsure, match="ended before it could say"):
        call(store_of_processes, far_end, key)
    assert times(far_end, key) == happened
    # Asked, the far end knows; then it happens once, whenever the process died.
    done = call(store_of_processes, far_end, key, confirm=lambda: {"found": key} if times(far_end, key) else NOT_DONE)
    assert done == (Done({"found": key}, True) if happened else Done({"receipt": key}, False))
    assert times(far_end, key) == 1
    assert call(store_of_processes, far_end, key) == Done(done.outcome, True)


def test_a_process_killed_when_it_is_done_has_done_it(store_of_processes: str, far_end: Path, key: str) -> None:
    killed(store_of_processes, far_end, key, "after")
    assert call(store_of_processes, far_end, key) == Done({"receipt": key}, True)
    assert times(far_end, key) == 1


def test_who_says_again_repeats_what_is_unsure(store_of_processes: str, far_end: Path, key: str) -> None:
    killed(store_of_processes, far_end, key, "during")
    assert call(store_of_processes, far_end, key, unsure="again") == Done({"receipt": key}, False)
    assert times(far_end, key) == 2


def test_another_payload_does_not_take_over_what_is_unsure(store_of_processes: str, far_end: Path, key: str) -> None:
    killed(store_of_processes, far_end, key, "before")
    with pytest.raises(EffectConflict, match="was begun"):
        call(store_of_processes, far_end, key, payload="another", unsure="again")
    assert times(far_end, key) == 0


def test_a_far_end_that_is_down_for_certain_leaves_nothing_behind(store: str, far_end: Path, key: str) -> None:
    def down() -> None:
        raise ConnectionRefusedError("nobody is there")

    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            call(store, far_end, key, call=down, not_done=(ConnectionRefusedError,))
    assert call(store, far_end, key) == Done({"receipt": key}, False)


def test_an_effect_that_raises_after_it_has_happened_is_unsure(store: str, far_end: Path, key: str) -> None:
    def late() -> None:
        happen(far_end, key)
        raise TimeoutError("no answer")

    with pytest.raises(TimeoutError):
        call(store, far_end, key, call=late, not_done=ConnectionRefusedError)
    with pytest.raises(EffectUnsure):
        call(store, far_end, key)
    assert call(store, far_end, key, confirm=lambda: "charged") == Done("charged", True)
    assert times(far_end, key) == 1


def test_one_that_is_under_way_is_waited_for_and_not_for_ever(store: str, far_end: Path, key: str) -> None:
    at_it, go_on = threading.Event(), threading.Event()

    def slow() -> dict[str, str]:
        at_it.set()
        go_on.wait(30)
        return happen(far_end, key)

    first = threading.Thread(target=call, args=(store, far_end, key), kwargs={"call": slow})
    first.start()
    assert at_it.wait(30)
    with pytest.raises(EffectInFlight, match="somebody else"):
        call(store, far_end, key, wait_s=0.05, unsure="again")
    threading.Timer(0.2, go_on.set).start()
    assert call(store, far_end, key, unsure="again") == Done({"receipt": key}, True)
    first.join()
    assert times(far_end, key) == 1


class AnswerLost:
    """A session whose store keeps, and is not heard."""

    def __init__(self, session: elsewhere.Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def keep(self, outcome: Outcome) -> bool:
        self._session.keep(outcome)
        raise ConnectionError("no answer")


def test_an_answer_that_is_lost_costs_nothing_but_an_error(store: str, far_end: Path, key: str) -> None:
    wanted = effect(key, {"for": key})
    with stores.session(store, wanted) as session, pytest.raises(EffectUnsure, match="could not be remembered") as told:
        elsewhere.run(AnswerLost(session), Plan(wanted, lambda: happen(far_end, key)))
    assert told.value.outcome == {"receipt": key}
    assert call(store, far_end, key) == Done({"receipt": key}, True)
    assert times(far_end, key) == 1


def test_an_outcome_that_cannot_be_kept_is_said_and_the_effect_is_done(store: str, far_end: Path, key: str) -> None:
    def odd() -> object:
        happen(far_end, key)
        return object()

    with pytest.raises(Exception, match="has happened and is remembered, but its outcome of type object is no JSON"):
        call(store, far_end, key, call=odd)
    assert call(store, far_end, key) == Done(None, True)
    assert times(far_end, key) == 1
