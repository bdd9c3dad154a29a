"""Letter desk: the dead letters of a worker's pipeline, over a connection of its own, which is made when somebody first asks.

What it reads is paid for like everything that readers ask for, from a share of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from semel.dead_letters.action_run import ActionRuns
from semel.dead_letters.catalogue import Catalogue, PacedOperator
from semel.dead_letters.operator import Operator
from semel.plan import Plan
from semel.port import Broker, Clock
from semel.runtime.settings import EngineSettings
from semel.web.budget import Budget

SHARE = 0.2  # of the loop's time, while something is read


class LetterDesk:
    """`connect` makes a connection that is not started. Close it."""

    def __init__(self, connect: Callable[[], Broker], clock: Clock, plan: Plan, settings: EngineSettings) -> None:
        self.plan = plan
        self._connect = connect
        self._clock = clock
        self._settings = settings
        self._budget = Budget(SHARE)
        self._connecting = asyncio.Lock()
        self._broker: Broker | None = None
        self._catalogue: Catalogue | None = None
        self.runs = ActionRuns(self._operator, clock)

    async def catalogue(self) -> Catalogue:
        """Up to date, or as far as it could be read by now."""
        broker = await self._connected()
        if self._catalogue is None:
            self._catalogue = Catalogue(broker, self._clock, self.plan, self._settings, self._pace)
        await self._catalogue.refresh()
        return self._catalogue

    async def close(self) -> None:
        await self.runs.close()
        if self._catalogue is not None:
            await self._catalogue.close()
        if self._broker is not None:
            await self._broker.close()
        self._budget.close()

    async def _operator(self) -> Operator:
        catalogue = self._catalogue
        # Only one that knows all there is: else everything is read.
        whole = catalogue is not None and catalogue.progress.complete and not catalogue.index.beyond
        index = catalogue.index if catalogue is not None and whole else None
        return PacedOperator(await self._connected(), self._clock, self.plan, self._settings, self._pace, index)

    async def _connected(self) -> Broker:
        async with self._connecting:
            if self._broker is None:
                broker = self._connect()
                try:
                    await broker.start()
                except BaseException:
                    await broker.close()
                    raise
                self._broker = broker
            return self._broker

    async def _pace(self, seconds: float) -> None:
        self._budget.spend(seconds)
        await asyncio.sleep(0)
        await self._budget.turn()
