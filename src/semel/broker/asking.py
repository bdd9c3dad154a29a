"""Asking again: how a broker is waited for, by everybody who is not a loop of its own. A pause, a bound, and words meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from math import inf
from typing import NamedTuple, TypeVar

from semel.broker.answers import Answer, answer_of, needs_a_person
from semel.port import Clock, RpcError, RpcLost
from semel.runtime import looptime

T = TypeVar("T")

log = logging.getLogger("semel.engine")


class Pause(NamedTuple):
    """Before asking again; half as long again each time. `retry_s`: where that can be at once."""

    first_s: float = 0.1
    longest_s: float = 1.0
    retry_s: float | None = None


PATIENT = Pause()


def passes(exc: RpcError | RpcLost) -> bool:
    """Whether a request certainly had no effect, or may be sent again safely; the commit protocol asks again only then."""
    return answer_of(exc) in (Answer.RETRY, Answer.WAIT)


async def ask(
    clock: Clock,
    request: Callable[[], Awaitable[T]],
    *,
    until: float = inf,
    worth: Callable[[RpcError | RpcLost], bool] = lambda exc: not needs_a_person(exc),
    pause: Pause = PATIENT,
    waiting: Callable[[RpcError | RpcLost], None] = lambda exc: log.debug("asking again: %s", exc),
    giving_up: Callable[[RpcError | RpcLost], Exception] | None = None,
    spread: Callable[[], float] = lambda: 1.0,
) -> T:
    """The answer to a request that is sent until it is answered for good, or `until` (`looptime`) is over; without it, for
    ever: `waiting` has to say so.

    `worth`: which answers are asked again. `waiting` is told of each such, before the pause, which is `spread()` times as
    long. What is raised at last is the `RpcError` or `RpcLost` itself, or what `giving_up` makes of it.
    """
    pause_s = pause.first_s
    while True:
        try:
            return await request()
        except (RpcError, RpcLost) as exc:
            if not worth(exc) or looptime.now() >= until:
                if giving_up is None:
                    raise
                raise giving_up(exc) from exc
            waiting(exc)
            at_once_s = pause.retry_s if answer_of(exc) is Answer.RETRY else None
        if at_once_s is not None:
            await clock.sleep(at_once_s)
        else:
            await clock.sleep(pause_s * spread())
            pause_s = min(pause_s * 1.5, pause.longest_s)


async def see(
    clock: Clock,
    look: Callable[[], Awaitable[T]],
    is_so: Callable[[T], bool],
    *,
    within_s: float,
    otherwise: Callable[[T], Exception | None],
) -> T:
    """What brokers show once all of them have come to it: `look` until it `is_so`. After that, what `otherwise` makes of it
    is raised; None: it is taken as it is."""
    until = looptime.now() + within_s
    while not is_so(shown := await look()):
        if looptime.now() >= until:
            late = otherwise(shown)
            if late is None:
                break
            raise late
        await clock.sleep(0.05)
    return shown
