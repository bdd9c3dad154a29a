"""User code that ends oddly, or does not end: what handlers do beside their work, by a seed."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from semel.errors import OutsideEvent, StaleIncarnation
from semel.state.event_context import current_context
from tests.simulation.world import SimulatedWorld, seeded
from tests.unit.harness import Payment


class Odd(BaseException):
    """What a library may raise that wants to be caught by nobody."""


# What an attempt may fail with. None of them is the engine's own doing, and each is a failed attempt (protocol rule 5).
ENDINGS: list[type[BaseException]] = [
    RuntimeError, asyncio.CancelledError, SystemExit, GeneratorExit, StaleIncarnation, StopAsyncIteration, TimeoutError, Odd,
]  # fmt: skip


class OddCode:
    """`share`: how many of the attempts do something odd. `figures` counts what had an effect."""

    def __init__(self, world: SimulatedWorld, seed: int, share: float, figures: Counter[str]) -> None:
        self._world = world
        self._seed = seed
        self._share = share
        self._figures = figures
        self._ids: Counter[str] = Counter()
        self.quiet = False
        self.late: set[asyncio.Task[None]] = set()
        if share:
            world.work.error = self.error

    def error(self, why: str) -> BaseException:
        kind = seeded(self._seed, "ending", why).choice(ENDINGS)
        self._figures[f"odd code: ends by {kind.__name__}"] += 1
        return kind(why)

    async def before(self, payment: Payment) -> None:
        self._ids[payment.id] += 1
        rng = seeded(self._seed, "odd", payment.id, self._ids[payment.id])
        if self.quiet or rng.random() >= self._share:
            return
        match rng.randrange(3):
            case 0 if self._world.pipeline.tables:
                self._figures["odd code: spawns a task that outlives its event"] += 1
                late = asyncio.get_running_loop().create_task(self._write_late(payment.account))
                self.late.add(late)
                late.add_done_callback(self.late.discard)
            case 1:
                await self._cling(rng.choice([0.01, 0.1, 1.0]), rng.choice([0.05, 0.5, 3.0]))
            case _:
                inner = asyncio.ensure_future(asyncio.sleep(60))
                await asyncio.sleep(0)
                inner.cancel()
                try:
                    await inner
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise
                    self._figures["odd code: minds no inner cancellation"] += 1

    async def _write_late(self, account: str) -> None:
        """When the event is over, in whatever way, its task may write nothing any more."""
        context: Any = current_context.get()
        while context.mine:  # noqa: ASYNC110  (what it looks at is no event of the loop's)
            await asyncio.sleep(0.01)
        balances = self._world.pipeline.tables[0]
        try:
            balances[account] += 1_000_000
        except (OutsideEvent, StaleIncarnation):
            self._figures["odd code: late writes refused"] += 1

    async def _cling(self, waits_s: float, clings_s: float) -> None:
        """A handler that minds no cancellation."""
        try:
            await asyncio.sleep(waits_s)
        except asyncio.CancelledError:
            self._figures["odd code: outlives its run"] += 1
            await asyncio.sleep(clings_s)
