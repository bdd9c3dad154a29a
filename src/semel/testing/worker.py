"""One worker on an in-memory cluster: the engine with a client and a store of its own, and a way to kill it.

Whatever runs an engine in memory runs it as this: `PipelineTester`, and semel's own tests.
"""

from __future__ import annotations

import asyncio
import gc
from contextvars import copy_context
from pathlib import Path

from semel.errors import SemelError, StateDirectoryError
from semel.memory.broker import MemoryBroker
from semel.plan import Plan
from semel.port import Clock, Randomness
from semel.runtime.failpoints import Failpoints
from semel.runtime.settings import EngineSettings
from semel.state.crash_notes import CrashNotes
from semel.state.store import Store, StoreBatch
from semel.testing.clock import process
from semel.worker.engine import Engine


class Killed(SemelError):
    """What the engine of a killed worker ends with."""


def open_store(path: Path, *, mb: int = 2) -> Store:
    """The store of a worker that may be the next one of a killed one. `mb`: its cache, and its write buffer."""
    try:
        return Store(path, cache_mb=mb, buffer_mb=mb)
    except StateDirectoryError:
        # The frames that a killed worker's errors keep may still hold handles of it, and with them RocksDB's lock.
        gc.collect()
        return Store(path, cache_mb=mb, buffer_mb=mb)


class MemoryWorker:
    """Made inside the running loop, where it starts at once. The name of `broker` tells its incarnations apart."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        broker: MemoryBroker,
        store: Store,
        clock: Clock,
        randomness: Randomness,
        settings: EngineSettings,
        *,
        notes: CrashNotes | None = None,
    ) -> None:
        self.name = name
        self.client = broker.name
        self.store = store
        self.killed = False
        self.failpoints = Failpoints()
        self._cluster = broker.cluster
        self.engine = Engine(
            plan, settings, broker, store, clock, randomness, instance=name, failpoints=self.failpoints, notes=notes
        )
        # All that comes of this task is this worker's: the loop can freeze it, and nothing else.
        own = copy_context()
        own.run(process.set, self.client)
        self.running = asyncio.get_running_loop().create_task(self.engine.run(), name=self.client, context=own)

    @property
    def over(self) -> bool:
        return self.running.done()

    def kill(self, *, arrives: bool = False) -> None:
        """As SIGKILL: from here on nothing it does has an effect on the cluster or on its store.

        `arrives`: but for the requests that it has sent.
        """
        self.killed = True
        self._cluster.faults.cut(self.client, arrives=arrives)
        self.store.write = _nothing
        self.engine.fail(Killed(f"{self.client} was killed"))

    def leave(self) -> None:
        """Ask it to stop as SIGTERM does, and to leave the group, so that nobody waits for its session to end."""
        self.engine.settings.leave_on_stop = True
        self.engine.stop()

    async def gone(self) -> BaseException | None:
        """Wait for its end; the error it ended with, None where it was asked to end. Its store is closed then."""
        await asyncio.wait({self.running})
        self.store.close()
        return self.running.exception()


def _nothing(batch: StoreBatch) -> None:
    """What a store writes whose process is no more."""
