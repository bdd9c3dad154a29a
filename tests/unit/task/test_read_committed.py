"""Reading logs up to an end: what is committed, past holes, and for how long a reader waits for what stands in the way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from semel.memory.log import PartitionLog
from semel.port import TP
from semel.task.read_committed import PATIENCE_S, CommittedLogs, Piece, Unreadable
from tests.unit.harness import World

SOURCE = TP("payments", 0)


@pytest.fixture
async def logs(world: World) -> AsyncIterator[CommittedLogs]:
    broker = await world.connected("reader")
    yield CommittedLogs(broker, world.clock, "test")
    await broker.close()


def written(world: World, count: int) -> PartitionLog:
    for n in range(count):
        world.cluster.write(SOURCE, [(b"key", b"%d" % n)])
    return world.cluster.log(SOURCE)


async def pieces(logs: CommittedLogs, start: int, end: int) -> list[Piece]:
    return [piece async for piece in logs.read(SOURCE, start, end)]


async def test_what_lies_between_two_offsets_is_read_and_nothing_beyond_them(world: World, logs: CommittedLogs) -> None:
    written(world, 10)
    read = await pieces(logs, 3, 7)
    assert [record.offset for piece in read for record in piece.records] == [3, 4, 5, 6]
    assert (read[0].start, read[-1].next, sum(piece.missing for piece in read)) == (3, 7, 0)
    assert await pieces(logs, 7, 7) == []


async def test_what_was_deleted_is_a_piece_of_its_own_and_the_rest_is_read(world: World, logs: CommittedLogs) -> None:
    written(world, 10).delete_before(6)
    hole, *rest = await pieces(logs, 2, 10)
    assert hole == Piece([], 2, 6, missing=4)
    assert [record.offset for piece in rest for record in piece.records] == [6, 7, 8, 9]


async def test_a_log_that_is_all_gone_is_missing_up_to_the_end_and_no_further(
    world: World, logs: CommittedLogs
) -> None:
    written(world, 10).delete_before(9)
    assert await pieces(logs, 0, 5) == [Piece([], 0, 5, missing=5)]


async def test_a_log_that_ends_before_it_did_is_not_read_on(world: World, logs: CommittedLogs) -> None:
    written(world, 3)
    with pytest.raises(Unreadable, match=r"payments\[0\] answers out of range at 5; was it truncated"):
        await pieces(logs, 5, 9)


async def test_an_open_transaction_is_waited_for_and_named_when_it_does_not_end(
    world: World, logs: CommittedLogs
) -> None:
    written(world, 1)
    producer = await logs.broker.init_producer_id("stuck", 10 * 60_000)
    await logs.broker.add_partitions(producer, [SOURCE])
    batch = logs.broker.batch_builder(1 << 20)
    assert batch.append(None, b"key", b"open", [])
    await logs.broker.produce(producer, {SOURCE: batch.build(producer, 0)})
    began = world.clock.monotonic()
    end = (await logs.ends([SOURCE]))[SOURCE]
    with pytest.raises(Unreadable, match=r"stands still at 1: an open transaction holds it"):
        await pieces(logs, 0, end)
    assert PATIENCE_S <= world.clock.monotonic() - began < PATIENCE_S + 1


async def test_all_of_a_topic_is_read_partition_by_partition(world: World, logs: CommittedLogs) -> None:
    other = SOURCE._replace(partition=1)
    world.cluster.write(other, [(b"key", b"other")])
    written(world, 2)
    assert [(tp, record.value) async for tp, record in logs.records("payments")] == [
        (SOURCE, b"0"), (SOURCE, b"1"), (other, b"other"),
    ]  # fmt: skip
    assert [record async for record in logs.records("none")] == []
