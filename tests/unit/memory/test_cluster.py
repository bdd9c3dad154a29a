"""What a test does with the cluster besides talking to it: input, compaction, growth, the committed history."""

from __future__ import annotations

import pytest

from semel.memory.broker import MemoryBroker
from semel.memory.cluster import MemoryCluster
from semel.port import EARLIEST, LATEST, TP, FetchRequest, RpcError
from tests.unit.memory.rig import T0, TOPIC, batch, begun, connected, values, virtual


async def read(broker: MemoryBroker, offset: int, *, committed: bool = True) -> list[tuple[int, bytes | None]]:
    """(offset, value) of all that a reader gets from an offset to the end."""
    end = (await broker.list_offsets([T0], LATEST, committed=committed))[T0]
    found: list[tuple[int, bytes | None]] = []
    while offset < end:
        answer = await broker.fetch(
            FetchRequest(0, {T0: offset}, max_wait_ms=0, max_bytes=100, partition_max_bytes=100, committed=committed)
        )
        found += [(record.offset, record.value) for record in answer[T0].records]
        assert answer[T0].next_offset > offset
        offset = answer[T0].next_offset
    return found


@virtual
async def test_input_is_written_without_a_client(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    assert cluster.write(T0, [(b"k", b"a"), (b"k", b"b")], headers=[("h", b"x")]) == 0
    assert cluster.write(T0, [(None, None)], timestamp=123) == 2
    assert await read(broker, 0) == [(0, b"a"), (1, b"b"), (2, None)]
    assert [(r.timestamp, r.headers) for r in cluster.committed(TOPIC)[0]] == [
        (1_760_000_000_000, (("h", b"x"),)),
        (1_760_000_000_000, (("h", b"x"),)),
        (123, ()),
    ]


@virtual
async def test_the_committed_history_has_neither_open_nor_aborted_records(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    aborted = await begun(broker, "aborted", [T0])
    await broker.produce(aborted, {T0: batch(broker, aborted, b"aborted")})
    await broker.end_txn(aborted, commit=False)
    committed = await begun(broker, "committed", [T0])
    await broker.produce(committed, {T0: batch(broker, committed, b"committed")})
    await broker.end_txn(committed, commit=True)
    waiting = await begun(broker, "open", [T0])
    await broker.produce(waiting, {T0: batch(broker, waiting, b"open")})
    assert [[r.value for r in part] for part in cluster.committed(TOPIC)] == [[b"committed"], []]


@virtual
async def test_compaction_keeps_the_last_of_each_key_at_its_offset(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    cluster.write(T0, [(b"a", b"1"), (b"b", b"1"), (b"c", b"1")])
    cluster.write(T0, [(b"a", b"2")])
    cluster.write(T0, [(b"c", None)])
    cluster.write(T0, [(b"d", b"1")])
    cluster.compact(T0)
    assert await read(broker, 0) == [(1, b"1"), (3, b"2"), (4, None), (5, b"1")]
    await cluster.clock.sleep(86_401)  # delete.retention.ms
    cluster.compact(T0)
    assert await read(broker, 0) == [(1, b"1"), (3, b"2"), (5, b"1")]
    assert await read(broker, 2) == [(3, b"2"), (5, b"1")]
    assert await broker.list_offsets([T0], EARLIEST) == {T0: 0}
    assert await broker.list_offsets([T0], LATEST) == {T0: 6}


@virtual
async def test_compaction_drops_what_was_aborted_and_lets_it_shadow_nothing(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    cluster.write(T0, [(b"k", b"kept")])
    producer = await begun(broker, "w", [T0])
    await broker.produce(producer, {T0: batch(broker, producer, b"aborted")})
    await broker.end_txn(producer, commit=False)
    cluster.compact(T0)
    assert await read(broker, 0, committed=False) == [(0, b"kept")]


@virtual
async def test_compaction_stops_at_the_last_stable_offset(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    cluster.write(T0, [(b"k", b"1")])
    producer = await begun(broker, "w", [T0])
    await broker.produce(producer, {T0: batch(broker, producer, b"2")})
    cluster.write(T0, [(b"k", b"3")])
    cluster.compact(T0)
    assert await read(broker, 0, committed=False) == [(0, b"1"), (1, b"2"), (2, b"3")]
    await broker.end_txn(producer, commit=True)
    cluster.compact(T0)
    assert await read(broker, 0, committed=False) == [(2, b"3")]


@virtual
async def test_a_reader_reaches_the_end_of_a_log_whose_last_record_was_compacted_away(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    cluster.alter_topic(TOPIC, {"delete.retention.ms": "0"})
    cluster.write(T0, [(b"k", b"1")])
    cluster.write(T0, [(b"k", None)])
    cluster.compact(T0)
    assert await read(broker, 0) == []
    cluster.write(T0, [(b"k", b"2")])
    assert await read(broker, 0) == [(2, b"2")]


@virtual
async def test_a_producers_sequences_survive_compaction(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    producer = await begun(broker, "w", [T0])
    await broker.produce(producer, {T0: batch(broker, producer, b"1")})
    await broker.end_txn(producer, commit=True)
    cluster.compact(T0)
    await broker.add_partitions(producer, [T0])
    with pytest.raises(RpcError) as refused:
        await broker.produce(producer, {T0: batch(broker, producer, b"2", base=5)})
    assert refused.value.code == 45
    await broker.produce(producer, {T0: batch(broker, producer, b"2", base=1)})
    await broker.end_txn(producer, commit=True)
    assert values(cluster) == [b"1", b"2"]


@virtual
async def test_a_topic_grows_and_keeps_its_id(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    before = (await broker.topics([TOPIC]))[TOPIC]
    cluster.add_partitions(TOPIC, 4)
    after = (await broker.topics([TOPIC]))[TOPIC]
    assert (before.partitions, after.partitions, before.id == after.id) == (2, 4, True)
    assert await broker.leaders([TP(TOPIC, 3)]) == {TP(TOPIC, 3): 0}


@virtual
async def test_a_changed_config_counts_at_once(cluster: MemoryCluster) -> None:
    cluster.write(T0, [(b"k", b"x" * 100)])
    cluster.alter_topic(TOPIC, {"max.message.bytes": "100"})
    broker = await connected(cluster)
    producer = await begun(broker, "w", [T0])
    with pytest.raises(RpcError) as refused:
        await broker.produce(producer, {T0: batch(broker, producer, b"x" * 100)})
    assert refused.value.code == 10


@virtual
async def test_epochs_that_run_out_give_a_new_producer_id(cluster: MemoryCluster) -> None:
    broker = await connected(cluster)
    first = await broker.init_producer_id("w", 1000)
    txn = cluster.transactions.get("w")
    assert txn is not None
    txn.epoch = 32_766
    last = await broker.init_producer_id("w", 1000)
    assert (last.epoch, last.id != first.id) == (0, True)
    with pytest.raises(RpcError) as refused:
        await broker.add_partitions(first, [T0])
    assert refused.value.code == 49
