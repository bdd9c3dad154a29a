"""A semel.App as it runs, with all of Faust around it, over the in-memory cluster and in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semel.config import Settings
from semel.faust_.app import App
from semel.memory.cluster import MemoryCluster
from semel.port import TP
from semel.testing.clock import VirtualClock
from tests.unit.memory_node import connect_to

BROKER = "kafka://127.0.0.1:29999"


class Stage:
    """A cluster, and the apps that were started on it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.clock = VirtualClock()
        self.cluster = MemoryCluster(self.clock)
        self.apps: list[App] = []
        monkeypatch.chdir(path)
        self.connections = connect_to(self.cluster, self.clock, monkeypatch)

    def app(self, name: str = "shop", **options: Any) -> App:
        options = {
            "broker": BROKER,
            "state_dir": self.path / "state",
            "web_enabled": False,
            "autodiscover": False,
            **options,
        }
        app = App(name, **options)
        app.supervised = True
        return app

    def settings(self, **given: Any) -> Settings:
        return Settings(state_dir=self.path / "state", broker=BROKER, **given)

    def topic(self, name: str, partitions: int = 1) -> None:
        self.cluster.create_topic(name, partitions)

    def send(self, topic: str, *values: Any, key: str | None = None, partition: int = 0) -> None:
        """Values as JSON, bytes and None as they are."""
        raw = [v if v is None or isinstance(v, bytes) else json.dumps(v).encode() for v in values]
        self.cluster.write(TP(topic, partition), [(key.encode() if key else None, value) for value in raw])

    def read(self, topic: str) -> list[Any]:
        """What is committed, each value from JSON."""
        if topic not in self.cluster.topics():
            return []
        found = [r.value for records in self.cluster.committed(topic) for r in records]
        return [None if value is None else json.loads(value) for value in found]

    def counts(self, app: App) -> dict[str, int]:
        found: dict[str, int] = {}
        for task in app.engine.tasks.values() if app.engine is not None else ():
            for name, count in task.committed.counts.items():
                found[name] = found.get(name, 0) + count
        return found

    async def start(self, app: App, instance: str = "w1") -> App:
        app.instance = instance
        self.apps.append(app)
        asyncio.get_running_loop().create_task(app.start())
        return app

    async def until(self, holds: Callable[[], Any], within_s: float = 30.0) -> None:
        deadline = self.clock.monotonic() + within_s
        while not holds():
            for app in self.apps:
                failure = app.engine_failure or app.crash_reason
                if failure is not None:
                    raise failure
            if self.clock.monotonic() > deadline:
                raise AssertionError("it did not happen")
            await self.clock.sleep(0.01)

    async def running(self, app: App) -> App:
        await self.until(lambda: app.engine is not None and app.engine.restored and app.engine.tasks)
        return app

    async def done(self, app: App, events: int) -> None:
        """Until so many events are accounted for in what is committed."""
        await self.until(lambda: self.counts(app).get("in", 0) >= events)

    async def close(self) -> None:
        for app in self.apps:
            await app.stop()
