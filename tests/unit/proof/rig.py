"""Recorded histories: what real engines left on an in-memory cluster, and ways to spoil it, one record at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from semel import Dedup, Pipeline, Topic
from semel.memory.batch import MemoryRecord
from semel.memory.broker import MemoryBroker
from semel.memory.log import Entry, PartitionLog
from semel.plan import Plan
from semel.port import TP
from semel.proof import Law, Proof, prove
from semel.state import lineage, positions
from semel.state.dedup_marks import unpack
from tests.unit.harness import APP, Settlement, World, payments_pipeline

MARKS, POSITIONS, LETTERS, SINK, SOURCE = (
    f"{APP}-dedup-changelog", f"{APP}-positions", f"{APP}.dlq", "settlements", "payments"
)  # fmt: skip


def receipts(work: Any) -> Callable[[Any], Any]:
    """An agent of which each event has a settlement and, where it is for more than 50, a receipt to somebody else."""

    def make(tables: Any) -> Any:
        balances, _ = tables

        async def settle(payments: Any) -> Any:
            async for payment in payments:
                await work.attempt(payment)
                balances[payment.account] += payment.amount
                work.maybe_fail(payment)
                if payment.amount:
                    yield Settlement(payment.id, payment.account, balances[payment.account])
                if payment.amount > 50:
                    yield Settlement(payment.id, payment.account, -1)

        return settle

    return make


class History:
    """`options`: of the `World`; `pipeline`: of the pipeline's declaration."""

    def __init__(self, path: Path, *, pipeline: dict[str, Any] | None = None, **options: Any) -> None:
        self.world = World(path, **options)
        declared = {"make": receipts(self.world.work), **(pipeline or {})}
        self.world.pipeline = payments_pipeline(self.world.work, **declared)
        self.rng = random.Random(options.get("seed", 0))
        self._provers = 0

    @property
    def cluster(self) -> Any:
        return self.world.cluster

    # -- making it

    async def filled(self, events: int = 150) -> History:
        """Two workers' work, one of them killed when all of its records were written and none committed."""
        world = self.world
        world.pay_many(events // 2)
        first = world.start("w1")
        await world.drained()
        killed = first.kill_at("commit.after_produce")
        world.pay_many(events - events // 2)
        await killed.wait()
        await first.gone()
        last = world.start("w1")
        await world.drained()
        await last.stop()
        return self

    async def proof(self, *, plan: Plan | None = None, **options: Any) -> Proof:
        self._provers += 1
        broker = MemoryBroker(self.cluster, f"prover-{self._provers}")
        await broker.start()
        try:
            return await prove(broker, plan or self.world.plan(), self.world.clock, **options)
        finally:
            await broker.close()

    # -- looking into it

    def log(self, topic: str, partition: int) -> PartitionLog:
        return self.cluster.log(TP(topic, partition))

    def entries(self, topic: str, *, outcome: str = "committed") -> list[tuple[Entry, MemoryRecord]]:
        """Records of a topic with the batches they stand in, all partitions."""
        return [
            (entry, record)
            for p in range(self.cluster.topic_info(topic).partitions)
            for entry in self.log(topic, p)._entries
            if entry.outcome == outcome and not entry.control
            for record in entry.records
        ]

    def some(self, topic: str, wanted: Callable[[MemoryRecord], bool] = lambda _: True) -> tuple[Entry, MemoryRecord]:
        """A record of a topic, drawn from those wanted."""
        return self.rng.choice([found for found in self.entries(topic) if wanted(found[1])])

    def partition_of(self, topic: str, entry: Entry) -> int:
        count = self.cluster.topic_info(topic).partitions
        return next(p for p in range(count) if any(e is entry for e in self.log(topic, p)._entries))

    def said(self, record: MemoryRecord) -> lineage.Lineage:
        found = lineage.parse(lineage.of(record.headers) or b"")
        assert found is not None
        return found

    def sources_with_output(self) -> set[tuple[int, int]]:
        return {(said.partition, said.offset) for _, r in self.entries(SINK) for said in [self.said(r)]}

    # -- spoiling it

    def remove(self, topic: str, wanted: Callable[[MemoryRecord], bool] = lambda _: True) -> MemoryRecord:
        entry, record = self.some(topic, wanted)
        entry.records.remove(record)
        return record

    def append(self, topic: str, partition: int, record: MemoryRecord, **changes: Any) -> None:
        """A record as another program would write it, outside of any transaction."""
        self.cluster.write(
            TP(topic, partition), [(changes.get("key", record.key), changes.get("value", record.value))],
            timestamp=record.timestamp, headers=changes.get("headers", list(record.headers)),
        )  # fmt: skip

    def change_position(self, entry: Entry, record: MemoryRecord, change: Callable[[dict[str, Any]], None]) -> None:
        found = orjson.loads(record.value or b"")
        change(found)
        record.value = orjson.dumps(found)

    def position_records(self, partition: int) -> list[tuple[Entry, MemoryRecord]]:
        log = self.log(POSITIONS, partition)
        return [
            (entry, record)
            for entry in log._entries
            if entry.outcome == "committed" and not entry.control
            for record in entry.records
            if record.key == positions.KEY
        ]


def broken(proof: Proof) -> set[Law]:
    return set(proof.by_law)


def mark_offset(record: MemoryRecord) -> int:
    return unpack(record.value or b"").offset


def chained(name: str = "receipts") -> Pipeline:
    """A pipeline whose source is the other one's sink."""

    async def pass_on(settlements: Any) -> Any:
        async for settlement in settlements:
            yield settlement

    return Pipeline(
        name,
        source=Topic(SINK, key=str, value=Settlement),
        agent=pass_on,
        sink=Topic("receipts", key=str, value=Settlement),
    )


def random_times(history: History, rule: Dedup, events: int = 400, *, part: int = 0, calm: float = 20) -> None:
    """Redeliveries within the window and after it, late ones, quiet nights, a bad clock now and then."""
    rng, world, window = history.rng, history.world, rule.window_ms
    now = int(world.clock.time() * 1000) - 400 * window + part * 10 * window
    sent: list[tuple[dict[str, Any], int]] = []
    for number in range(events):
        draw = rng.random()
        now += int(rng.random() * window / calm)
        if draw < 0.01:
            now += int(window * (1 + rng.random() * 3))
        at = now - int(rng.random() * window / 50)
        if draw > 0.98:
            at = now - int(window * (0.5 + rng.random()))
        elif draw > 0.97:
            at = now + int(window * (1 + rng.random() * 30))
        if sent and 0.1 < draw < 0.35:
            event, first = rng.choice(sent[-60:])
            world.write(event, event["account"], at_ms=rng.choice([at, first]))
        elif sent and 0.35 < draw < 0.38:
            event, _ = rng.choice(sent[-60:])
            world.write({**event, "amount": event["amount"] + 1}, event["account"], at_ms=at)
        elif 0.38 < draw < 0.40:
            world.write({"id": "", "account": "a1", "amount": 3}, "a1", at_ms=at)
        else:
            event = {"id": f"e{part}-{number}", "account": f"a{rng.randrange(5)}", "amount": rng.choice([0, 1, 60])}
            world.write(event, event["account"], at_ms=at)
            sent.append((event, at))
