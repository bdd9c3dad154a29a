"""A pipeline's dead letters on a cluster in memory, and nobody who runs it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import orjson

from semel import Dedup, Pipeline, Topic
from semel.dead_letters.audit import Entry, decode
from semel.memory.broker import MemoryBroker
from semel.memory.cluster import MemoryCluster
from semel.port import TP
from semel.runtime.clock import SystemClock
from semel.runtime.settings import EngineSettings
from semel.stages.sink.dead_letters import DeadLetters, dead_letter
from semel.stages.sink.failure_cause import Cause
from tests.unit.dead_letters.letters import Given
from tests.unit.payments import APP, WINDOW, Payment

LETTERS, AUDIT = f"{APP}.dlq", f"{APP}-audit"
GROUP = "ValueError@agents:settle"


async def settle(payments):
    async for payment in payments:
        yield payment


class Shelf:
    """`partitions` of source and letters."""

    def __init__(self, partitions: int = 2, name: str = APP) -> None:
        self.clock = SystemClock()
        self.cluster = MemoryCluster(self.clock)
        self.name = name
        self.letters, self.audit_topic = f"{name}.dlq", f"{name}-audit"
        for topic in ("payments", self.letters):
            self.cluster.create_topic(topic, partitions)
        self.settings = EngineSettings()
        self.plan = Pipeline(
            name, source=Topic("payments", key=str, value=Payment), dedup=Dedup("id", window=WINDOW), agent=settle
        ).plan()
        self._numbers = itertools.count()
        self._connections = itertools.count()

    def connection(self) -> MemoryBroker:
        return MemoryBroker(self.cluster, f"c{next(self._connections)}")

    def put(
        self,
        partition: int = 0,
        *,
        group: str = GROUP,
        key: bytes = b"a1",
        value: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        error: str = "ValueError: no",
        at_ms: int | None = None,
        version: str = "v1",
        topic: str = "payments",
        trace: str = "Traceback",
    ) -> str:
        """A letter; where it stands."""
        number = next(self._numbers)
        now_ms = int(self.clock.time() * 1000) if at_ms is None else at_ms
        raw = orjson.dumps({"id": f"p{number}", "account": "a1", "amount": 1}) if value is None else value
        given = Given(number, now_ms, key, raw, headers)
        written = dead_letter(
            DeadLetters(self.letters, 8, 1_000_000, version), TP(topic, partition), given, pipeline=self.name, agent="settle",
            reason="failed", error=error, attempts=3, cause=Cause(group, "ValueError", trace), first_ms=now_ms, now_ms=now_ms,
        )  # fmt: skip
        tp = TP(self.letters, partition)
        offset = self.cluster.write(tp, [(written.key, written.value)], timestamp=now_ms, headers=written.headers)
        return f"{partition}@{offset}"

    def audited(self) -> list[Entry]:
        log = self.cluster.find(TP(self.audit_topic, 0))
        assert log is not None
        return [
            decode(record.value or b"", "")
            for entry in log._entries
            if entry.outcome == "committed" and not entry.control
            for record in entry.records
        ]
