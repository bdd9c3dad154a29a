"""One worker of a pipeline under test: the engine on the in-memory broker, its own RocksDB, and a way to kill it."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Mapping
from pathlib import Path

from semel.errors import SemelError, StateDirectoryError
from semel.plan import Plan
from semel.port import TP, Fetched
from semel.runtime.failpoints import Failpoints
from semel.runtime.settings import EngineSettings
from semel.state.store import Store, StoreBatch
from semel.testing.broker import MemoryBroker, MemoryCluster
from semel.testing.clock import VirtualClock
from semel.testing.errors import interrupts
from semel.worker.engine import Engine

# No poll comes back empty within an hour: time that passes in a test costs four fetches a second otherwise.
POLL_MS = 3_600_000


class Killed(SemelError):
    """What the engine of a killed worker ends with."""


class KillableStore(Store):
    """A store whose process may be killed: from then on nothing is written any more."""

    killed = False

    def write(self, batch: StoreBatch) -> None:
        if not self.killed:
            super().write(batch)


def _opened(path: Path) -> KillableStore:
    try:
        return KillableStore(path, cache_mb=2, buffer_mb=2)
    except StateDirectoryError:
        # The frames that a killed worker's errors keep may still hold handles of it, and with them RocksDB's lock.
        gc.collect()
        return KillableStore(path, cache_mb=2, buffer_mb=2)


class PatientBroker(MemoryBroker):
    """Its polls of the source wait until there is something."""

    async def fetch(
        self,
        node: int,
        wants: Mapping[TP, int],
        *,
        committed: bool,
        max_wait_ms: int,
        max_bytes: int,
        partition_max_bytes: int,
        purpose: str = "source",
    ) -> dict[TP, Fetched]:
        return await super().fetch(
            node,
            wants,
            committed=committed,
            max_wait_ms=POLL_MS if purpose == "source" else max_wait_ms,
            max_bytes=max_bytes,
            partition_max_bytes=partition_max_bytes,
            purpose=purpose,
        )


class Worker:
    """Made inside the running loop, where it starts at once. `number` tells its incarnations apart on the cluster."""

    def __init__(
        self,
        name: str,
        number: int,
        plan: Plan,
        cluster: MemoryCluster,
        clock: VirtualClock,
        folder: Path,
        *,
        seed: int,
    ) -> None:
        self.name = name
        self.plan = plan
        self.client = f"{name}#{number}"
        self.folder = folder / name
        self.killed = False
        self.lose_state = False
        self._closed = False
        self.failpoints = Failpoints()
        self._cluster = cluster
        self.store = _opened(self.folder / "db")
        self.engine = Engine(
            plan,
            # One address for all incarnations, as a worker has that comes back on its machine.
            EngineSettings(web_url=f"http://{name}", interrupts=interrupts()),
            PatientBroker(cluster, self.client),
            self.store,
            clock,
            random.Random(f"{seed} {number}"),
            instance=name,
            failpoints=self.failpoints,
        )
        self.running = asyncio.create_task(self.engine.run(), name=self.client)

    @property
    def over(self) -> bool:
        return self.running.done()

    def kill(self, *, lose_state: bool = False) -> None:
        """As SIGKILL: from here on nothing it does has an effect on the cluster or on its store."""
        self.killed = True
        self.lose_state = lose_state
        self._cluster.faults.cut(self.client)
        self.store.killed = True
        self.engine.fail(Killed(f"{self.client} was killed"))

    def leave(self) -> None:
        """Ask it to stop as SIGTERM does, and to leave the group, so that nobody waits for its session to end."""
        self.engine.settings.leave_on_stop = True
        self.engine.stop()

    async def gone(self) -> BaseException | None:
        """Wait for its end; the error it ended with, None where it was asked to end. Its store is closed then."""
        await asyncio.wait({self.running})
        if not self._closed:
            self.store.close()
            self._closed = True
        return self.running.exception()
