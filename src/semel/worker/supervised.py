"""Supervised: what a worker's process starts, watches and ends: a pipeline's engine, or a `semel.App` (`faust_.worker`)."""

from __future__ import annotations

import asyncio
from typing import Protocol

from semel.config import Settings
from semel.plan import Plan
from semel.worker.engine_host import EngineHost, open_engine

# What of Faust's settings is about the engine's connections and views, so that a pipeline has it, too.
READ_OF_FAUST = frozenset({"broker_client_id", "producer_compression_type", "web_enabled"})


class Supervised(Protocol):
    """Started once, on the running loop; then stopped and closed, however it went."""

    def start(self) -> None:
        """Begin. What keeps it from starting is a failure."""
        ...

    async def wait_failed(self) -> BaseException:
        """Returns why it cannot go on, once it cannot; else waits for ever. Its end after `stop` is no failure."""
        ...

    def told(self) -> None:
        """The process is told to end; from a signal handler, whether the loop runs or not."""
        ...

    def died(self) -> None:
        """The process is about to end by what nobody has told it: that counts as a death, with what agents have in hand now."""
        ...

    def in_hand(self) -> list[str]:
        """What agents have in hand, for people."""
        ...

    async def stop(self) -> None:
        """Finish what is in hand, commit it, and end. As long as that takes: who calls it bounds it."""
        ...

    async def close(self) -> None:
        """End what `stop` has left."""
        ...


class PlainWorker:
    """A plan on an engine and nothing around it: what `semel worker` runs for a `Pipeline`."""

    def __init__(self, plan: Plan, settings: Settings, *, instance: str | None = None, adopt: bool = False) -> None:
        self.host: EngineHost | None = None
        self._plan = plan
        self._settings = settings
        self._instance = instance
        self._adopt = adopt
        self._stopping = False
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self._run(), name="engine")

    async def _run(self) -> None:
        of_faust = self._settings.faust
        self.host = await open_engine(
            self._plan, self._settings, instance=self._instance, adopt=self._adopt,
            client_id=of_faust.get("broker_client_id"), compression=of_faust.get("producer_compression_type"),
            pages=() if of_faust.get("web_enabled", True) else None,
        )  # fmt: skip
        if self._stopping:
            self.host.engine.stop()
        await self.host.run()

    async def wait_failed(self) -> BaseException:
        assert self._running is not None, "not started"
        await asyncio.wait({self._running})
        try:
            self._running.result()
        except BaseException as exc:
            return exc
        return await asyncio.get_running_loop().create_future()

    def told(self) -> None:
        if self.host is not None:
            self.host.told()

    def died(self) -> None:
        if self.host is not None:
            self.host.died()

    def in_hand(self) -> list[str]:
        return [] if self.host is None else self.host.in_hand()

    async def stop(self) -> None:
        self._stopping = True
        if self.host is not None:
            self.host.engine.stop()
        if self._running is not None:
            await asyncio.wait({self._running})

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
