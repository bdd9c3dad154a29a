"""A broker is asked again as long as that is worth it, within a bound, after a pause that grows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from semel.broker.asking import Pause, ask, passes, see
from semel.port import RpcError, RpcLost
from semel.runtime import looptime

AWAY, DENIED, BUSY = RpcLost("Metadata", "away"), RpcError("Metadata", 29), RpcError("InitProducerId", 51)


class Sleeps:
    """A clock whose sleeps take no time, and are kept."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def time(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.taken.append(round(seconds, 4))


def answering(*answers: object) -> Callable[[], Awaitable[object]]:
    left = list(answers)

    async def request() -> object:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return request


async def test_a_broker_that_is_away_is_asked_again_after_a_pause_that_grows_to_its_limit() -> None:
    clock, heard = Sleeps(), list[Exception]()
    answer = await ask(clock, answering(AWAY, AWAY, AWAY, 7), pause=Pause(0.1, 0.2), waiting=heard.append)
    assert (answer, clock.taken, heard) == (7, [0.1, 0.15, 0.2], [AWAY, AWAY, AWAY])


async def test_what_is_not_worth_asking_again_is_raised_at_once() -> None:
    clock = Sleeps()
    with pytest.raises(RpcError) as refused:
        await ask(clock, answering(DENIED, 7))
    assert (refused.value, clock.taken) == (DENIED, [])
    with pytest.raises(ValueError, match="error 29") as told:
        await ask(clock, answering(DENIED), giving_up=lambda exc: ValueError(str(exc)))
    assert told.value.__cause__ is DENIED


async def test_past_the_bound_the_last_answer_is_raised() -> None:
    clock = Sleeps()
    with pytest.raises(RpcLost):
        await ask(clock, answering(AWAY), until=looptime.now() + 0.01)
    assert clock.taken


async def test_what_passes_at_once_has_a_pause_of_its_own() -> None:
    clock = Sleeps()
    assert await ask(clock, answering(BUSY, BUSY, 7), worth=passes, pause=Pause(0.02, 0.2, retry_s=0.001)) == 7
    assert clock.taken == [0.001, 0.001]


async def test_what_may_have_taken_effect_is_not_asked_again_by_the_commit_protocol() -> None:
    with pytest.raises(RpcLost):
        await ask(Sleeps(), answering(RpcLost("EndTxn", sent=True), 7), worth=passes)


async def test_what_was_done_is_looked_for_until_it_shows() -> None:
    clock = Sleeps()
    shown = await see(clock, answering(0, 1, 2), lambda n: n == 2, within_s=60, otherwise=lambda _: ValueError())
    assert (shown, len(clock.taken)) == (2, 2)
    with pytest.raises(ValueError, match="still 1"):
        await see(clock, answering(1), lambda n: n == 2, within_s=0.0, otherwise=lambda n: ValueError(f"still {n}"))
    assert await see(clock, answering(1), lambda n: n == 2, within_s=0.0, otherwise=lambda _: None) == 1
