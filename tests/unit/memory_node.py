"""What opens an engine as a worker's process does, a `semel.App` or a pipeline's, on a cluster in memory."""

from __future__ import annotations

import itertools

import pytest

from semel.config import Settings
from semel.memory.broker import MemoryBroker
from semel.memory.cluster import MemoryCluster
from semel.testing.clock import VirtualClock
from semel.worker import engine_host


def connect_to(
    cluster: MemoryCluster, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str | None]]:
    """From here on. What each connection is asked for: client id, compression."""
    asked: list[tuple[str, str | None]] = []
    numbers = itertools.count()

    def connect(settings: Settings, *, client_id: str, compression: str | None) -> MemoryBroker:
        asked.append((client_id, compression))
        return MemoryBroker(cluster, f"{client_id}-{next(numbers)}")

    monkeypatch.setattr(engine_host, "SystemClock", lambda: clock)
    monkeypatch.setattr(engine_host, "kafka_broker", connect)
    return asked
