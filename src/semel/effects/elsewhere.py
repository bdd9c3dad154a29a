"""Carrying out an effect that no transaction holds, over any store: the steps are decided by `decisions`, this runs them.

A store is what can do four things under a key, each atomically: see `Session`. PostgreSQL's is in `sessions`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from semel.effects.decisions import (
    Call,
    Claim,
    Confirm,
    Done,
    Failed,
    Keep,
    Release,
    Step,
    StoredClaim,
    TakeOver,
    Unsure,
    Wait,
    carry_out,
)
from semel.effects.effect import Effect, Outcome
from semel.errors import EffectUnsure, HandlingError

T = TypeVar("T")


class Session(Protocol):
    """What a store does for one effect and one caller of it, who has a name that no other call has (`owner`)."""

    def claim(self) -> StoredClaim | None:
        """Put a row under the key, or give what is there; None where the row is ours. Of any number of callers one gets None."""
        ...

    def take_over(self, seen: str) -> bool:
        """The row becomes ours if it still is `seen`'s and nobody is at it."""
        ...

    def keep(self, outcome: Outcome) -> bool:
        """The effect is done, for good; False where the row is not ours any more. Any error: nobody knows whether it is kept."""
        ...

    def release(self) -> None:
        """The row goes if it is ours and not done."""
        ...


class AsyncSession(Protocol):
    """As `Session`."""

    async def claim(self) -> StoredClaim | None: ...
    async def take_over(self, seen: str) -> bool: ...
    async def keep(self, outcome: Outcome) -> bool: ...
    async def release(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """An effect, what carries it out, and what is to happen where nobody knows whether it has happened."""

    effect: Effect
    call: Callable[[], Any]
    unsure: Unsure = "refuse"
    confirm: Callable[[], Any] | None = None
    not_done: type[Exception] | tuple[type[Exception], ...] = ()
    wait_s: float = 10.0

    def steps(self) -> Any:
        if self.unsure not in ("refuse", "again"):
            raise HandlingError(f"unsure={self.unsure!r} of effect {self.effect.key} is neither 'refuse' nor 'again'")
        return carry_out(self.effect, unsure=self.unsure, confirms=self.confirm is not None, wait_s=self.wait_s)

    def failed(self, error: Exception, step: Step) -> Failed:
        return Failed(error, isinstance(step, Call) and isinstance(error, self.not_done))

    def lost(self, result: Any, error: BaseException) -> EffectUnsure:
        return EffectUnsure(
            f"effect {self.effect.key} has happened, but that could not be remembered ({' '.join(str(error).split())}); the "
            "next call with this key asks confirm=, or does as unsure= says",
            result,
        )


def run(session: Session, plan: Plan) -> Done:
    """The effect is carried out, or what is remembered of it given. Errors as `carry_out` has them."""
    steps, answer, result = plan.steps(), None, None
    while True:
        try:
            step: Step = steps.send(answer)
        except StopIteration as end:
            return end.value
        match step:
            case Claim():
                answer = session.claim()
            case TakeOver(seen):
                answer = session.take_over(seen)
            case Wait(seconds):
                answer = time.sleep(seconds)
            case Call() | Confirm():
                asked = plan.call if isinstance(step, Call) else plan.confirm
                assert asked is not None
                try:
                    answer = result = asked()
                except Exception as error:
                    answer = plan.failed(error, step)
            case Keep(outcome):
                try:
                    answer = session.keep(outcome)
                except Exception as error:
                    raise plan.lost(result, error) from error
            case Release():
                answer = session.release()


async def run_async(session: AsyncSession, plan: Plan) -> Done:
    """As `run`. A cancellation that comes when the effect has happened waits until that is remembered."""
    steps, answer, result = plan.steps(), None, None
    while True:
        try:
            step: Step = steps.send(answer)
        except StopIteration as end:
            return end.value
        match step:
            case Claim():
                answer = await session.claim()
            case TakeOver(seen):
                answer = await session.take_over(seen)
            case Wait(seconds):
                answer = await asyncio.sleep(seconds)
            case Call() | Confirm():
                asked: Callable[[], Awaitable[Any]] | None = plan.call if isinstance(step, Call) else plan.confirm
                assert asked is not None
                try:
                    answer = result = await asked()
                except Exception as error:
                    answer = plan.failed(error, step)
            case Keep(outcome):
                try:
                    answer = await _to_the_end(session.keep(outcome))
                except Exception as error:
                    raise plan.lost(result, error) from error
            case Release():
                answer = await _to_the_end(session.release())


async def _to_the_end(work: Awaitable[T]) -> T:
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
