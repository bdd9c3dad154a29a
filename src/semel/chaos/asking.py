"""What a run asks of its brokers, which come and go meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from semel.broker import asking
from semel.errors import SemelError
from semel.runtime import looptime
from semel.runtime.clock import SystemClock

T = TypeVar("T")
ASKED_S = 60.0


async def until_done(what: str, ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until it is answered; `ask` may be carried out more than once. SemelError after a minute of that."""
    return await asking.ask(
        SystemClock(),
        ask,
        until=looptime.now() + ASKED_S,
        worth=lambda _: True,
        giving_up=lambda error: SemelError(
            f"{what} could not be set for {ASKED_S:g} s ({error}); its brokers' logs lie beside this run's"
        ),
    )
