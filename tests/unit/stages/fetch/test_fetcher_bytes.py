"""What is read ahead is bounded in bytes, in equal shares, and nobody is left out for it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from semel import Pipeline, Retry, Topic
from semel.memory.batch import MemoryRecord
from semel.memory.broker import MemoryBroker
from semel.memory.cluster import MemoryCluster
from semel.port import TP, Fetched
from semel.retry import Then
from semel.runtime.budget import shares
from semel.stages.fetch.fetch_errors import FetchErrors
from semel.stages.fetch.fetcher import (
    LOW_BYTES,
    LOW_RECORDS,
    PARTITION_BYTES,
    PARTITION_LEAST_BYTES,
    Fetcher,
    PartitionFetch,
)
from semel.state.task import Cursor, FetchedBatch, Task
from semel.testing.clock import VirtualClock
from tests.unit.harness import APP, Worker, World

BUDGET = 64 << 20
SOURCE = shares(BUDGET).source


class Handled:
    """An agent of raw values that notes whose they are, waits while told to, and fails where the value begins with `!`."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, value: bytes) -> None:
        await self.go.wait()
        if value.startswith(b"!"):
            raise RuntimeError("not today")
        self.values.append(value[:10])


def raw_world(path: Path, partitions: int, handled: Handled, then: Then = "dead") -> World:
    world = World(path, partitions=partitions, memory_budget_bytes=BUDGET)

    async def handle(value: bytes) -> None:
        await handled(value)

    world.pipeline = Pipeline(
        APP,
        source=Topic("payments", key=bytes, value=bytes),
        agent=handle,
        retry=Retry(attempts=1, first_delay=timedelta(hours=1), max_delay=timedelta(hours=2), then=then),
    )
    return world


def waiting(worker: Worker) -> int:
    """Bytes of values that wait in the worker, counted one by one."""
    return sum(
        len(record.value or b"")
        for task in worker.engine.tasks.values()
        for cursor in task.cursors.values()
        for fetched in cursor.queue
        for record in fetched.records
    )


@pytest.mark.parametrize("partitions", [1, 4, 40])
async def test_what_waits_for_a_slow_agent_is_bounded_in_bytes(tmp_path: Path, partitions: int) -> None:
    handled = Handled()
    handled.go.clear()
    world = raw_world(tmp_path, partitions, handled)
    for p in range(partitions):
        for _ in range(2_000 // partitions):
            world.cluster.write(TP("payments", p), [(b"k", bytes(100_000))])
    worker = world.start()
    await world.clock.sleep(20)
    held = waiting(worker)
    assert held <= SOURCE
    # A partition has a half of its share at least, and never more than is of use.
    assert min(SOURCE // partitions // 2, LOW_BYTES) * partitions * 0.8 < held <= (2 * LOW_BYTES + 100_000) * partitions
    assert abs(worker.engine.fetcher.held_bytes - held) < held / 50
    handled.go.set()
    await world.drained()
    assert len(handled.values) == 2_000 // partitions * partitions
    assert worker.engine.fetcher.held_bytes == 0
    await world.close()


async def test_a_partition_of_small_records_is_asked_for_again_when_few_wait(tmp_path: Path) -> None:
    handled = Handled()
    handled.go.clear()
    world = raw_world(tmp_path, 1, handled)
    for _ in range(100):
        world.cluster.write(TP("payments", 0), [(b"k", b"v")] * 100)
    worker = world.start()
    await world.clock.sleep(5)
    (cursor,) = worker.engine.tasks[0].cursors.values()
    assert cursor.buffered >= LOW_RECORDS
    handled.go.set()
    await world.drained()
    assert len(handled.values) == 10_000
    await world.close()


async def test_a_large_record_is_not_starved_by_its_neighbours_backlog() -> None:
    """One broker leads both: it answers with what comes first, and with a batch larger than asked for only there."""
    clock = VirtualClock()
    cluster = MemoryCluster(clock)
    cluster.create_topic("payments", 2)
    busy, other = TP("payments", 0), TP("payments", 1)
    for _ in range(200):
        cluster.write(busy, [(b"k", bytes(100_000))] * 5)
    for _ in range(3):
        cluster.write(other, [(b"k", bytes(900_000))])
    got: list[int] = []

    def done_at_once(cursor: Cursor) -> None:
        while cursor.queue:
            fetched = cursor.queue.popleft()
            cursor.buffered -= len(fetched.records)
            cursor.bytes -= fetched.size
            got.extend([cursor.tp.partition] * len(fetched.records))

    broker = MemoryBroker(cluster, "w1")
    await broker.start()
    fetcher = Fetcher(
        broker, clock, offer=done_at_once, trimmed=lambda *_: None, troubles=FetchErrors(clock), budget=SOURCE,
        idle=lambda _: True,
    )  # fmt: skip
    agent: Any = None
    for tp in (busy, other):
        fetcher.add(tp, cluster.topics()["payments"].id, [Cursor(Task(tp.partition), tp, agent)])
    running = asyncio.create_task(fetcher.run())
    while len(got) < 1_003:
        await clock.sleep(0.01)
    running.cancel()
    assert [n for n, p in enumerate(got) if p == 1][-1] < 40


async def test_partitions_that_stopped_at_an_event_do_not_use_up_what_the_others_need(tmp_path: Path) -> None:
    handled, stuck = Handled(), 60
    world = raw_world(tmp_path, stuck + 4, handled, "stop")
    for p in range(stuck):
        for _ in range(3):
            world.cluster.write(TP("payments", p), [(b"k", b"!" + bytes(900_000))])
    worker = world.start()
    await world.until_running(worker)
    await world.clock.sleep(5)
    held = waiting(worker)
    assert held > SOURCE
    for p in range(stuck, stuck + 4):
        for n in range(5):
            world.cluster.write(TP("payments", p), [(b"k", b"%d-%d" % (p, n) + bytes(900_000))])
    await world.until(lambda: len(handled.values) == 20, within_s=60)
    # They had a batch each, one partition after the other.
    assert waiting(worker) <= held + 4 * 900_100
    await world.close()


def fetch() -> PartitionFetch:
    agent: Any = None
    return PartitionFetch(TP("payments", 0), "id", 0, [Cursor(Task(0), TP("payments", 0), agent)])


def answer(count: int, size: int, *, told: int = 0) -> Fetched:
    records: list[Any] = [MemoryRecord(0, b"k", bytes(size), offset=n) for n in range(count)]
    return Fetched(records, count, count, count, 0, size=told)


def test_less_is_asked_for_where_a_little_on_the_wire_becomes_much_in_memory() -> None:
    fed = fetch()
    for _ in range(5):
        fed.deliver(answer(300, 100_000), 1 << 20)
    assert fed.ask_bytes == PARTITION_LEAST_BYTES
    for _ in range(10):
        fed.deliver(answer(1, 1_000), 1 << 20)
    assert fed.ask_bytes == PARTITION_BYTES


def test_a_chunk_is_counted_until_all_of_it_is_done() -> None:
    fed = fetch()
    fed.deliver(answer(3, 100_000), 1 << 20)
    assert 300_000 < fed.bytes < 302_000
    fed.deliver(answer(3, 100_000, told=77), 1 << 20)
    assert fed.bytes - fed.cursors[0].queue[0].size == 77


def test_a_slice_ends_where_its_bytes_do_with_one_record_at_least() -> None:
    records: list[Any] = [
        MemoryRecord(0, b"k", bytes(size), offset=n) for n, size in enumerate((400, 400, 400, 2_000, 1))
    ]
    fetched = FetchedBatch(records, 5, 3_201)
    assert fetched.end(256, 1_000) == 2
    assert fetched.end(1, 1_000) == 1
    fetched.start = 3
    assert fetched.end(256, 1_000) == 4
    fetched.start = 4
    assert fetched.end(256, 1_000) == 5
    assert FetchedBatch(records, 5, 900).end(256, 1_000) == 5
