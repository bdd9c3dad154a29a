"""A cluster in virtual time for the tests of the in-memory broker itself."""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable, Sequence

from semel.memory.broker import MemoryBroker
from semel.memory.cluster import ClusterSettings, MemoryCluster
from semel.port import TP, Broker, MemberIdRequired, Membership, Producer
from semel.testing.clock import VirtualClock, run_virtual

TOPIC = "t"
T0 = TP(TOPIC, 0)


def virtual(test: Callable[[MemoryCluster], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in virtual time on a cluster with the topic "t" of two partitions."""

    async def main() -> None:
        cluster = MemoryCluster(VirtualClock(), rng=random.Random(7), settings=ClusterSettings(brokers=3))
        cluster.create_topic(TOPIC, 2)
        await test(cluster)

    # Without __wrapped__, for which pytest would look for a fixture named as the parameter.
    @functools.wraps(test)
    def run() -> None:
        run_virtual(main())

    del run.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    return run


async def connected(cluster: MemoryCluster, name: str = "client") -> MemoryBroker:
    broker = MemoryBroker(cluster, name)
    await broker.start()
    return broker


async def begun(broker: Broker, transactional_id: str, tps: Sequence[TP], timeout_ms: int = 60_000) -> Producer:
    producer = await broker.init_producer_id(transactional_id, timeout_ms)
    await broker.add_partitions(producer, tps)
    return producer


def batch(broker: Broker, producer: Producer, *values: bytes | None, key: bytes | None = b"k", base: int = 0) -> bytes:
    builder = broker.batch_builder(1 << 20)
    for value in values:
        builder.append(None, key, value, [])
    return builder.build(producer, base)


async def member(broker: Broker, group: str, instance: str | None = None) -> Membership:
    """Joins and syncs as the only member."""

    async def join(member_id: str) -> Membership:
        joined = await broker.join_group(
            group, member_id, instance, b"m", session_timeout_ms=10_000, rebalance_timeout_ms=60_000
        )
        return Membership(group, joined.generation, joined.member_id, instance)

    try:
        own = await join("")
    except MemberIdRequired as required:
        own = await join(required.member_id)
    await broker.sync_group(own, {own.member_id: b"all"})
    return own


def values(cluster: MemoryCluster, partition: int = 0) -> list[bytes | None]:
    return [record.value for record in cluster.committed(TOPIC)[partition]]
