"""What a Kafka topic holds, written and read with aiokafka alone: nothing of semel tells these tests about itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.errors import CommitFailedError, KafkaError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.admin import DeleteGroupsRequest

NON_EMPTY_GROUP = 68

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Line:
    """One record of a log."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    def header(self, name: str) -> str:
        """The last header of that name, as text; empty where there is none."""
        return next((value.decode() for found, value in reversed(self.headers) if found == name), "")


@dataclass(frozen=True)
class Message:
    """A record to be produced."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp: int | None = None
    partition: int | None = None


@asynccontextmanager
async def admin_of(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def create(
    bootstrap: str, name: str, partitions: int, configs: Mapping[str, str] | None = None, replicas: int = 1
) -> None:
    async with admin_of(bootstrap) as admin:
        answer = await admin.create_topics([NewTopic(name, partitions, replicas, topic_configs=dict(configs or {}))])
        for _, code, *_ in answer.topic_errors:
            if code:
                raise for_code(code)(name)


async def delete(bootstrap: str, *names: str) -> None:
    """Delete topics and wait until nothing is left of them; one that is not there is no error."""
    async with admin_of(bootstrap) as admin:
        with suppress(UnknownTopicOrPartitionError):
            await admin.delete_topics(list(names))
        while set(names) & set(await admin.list_topics()):  # noqa: ASYNC110  (the broker rings no bell)
            await asyncio.sleep(0.05)


async def grow(bootstrap: str, name: str, partitions: int) -> None:
    async with admin_of(bootstrap) as admin:
        await admin.create_partitions({name: NewPartitions(partitions)})


async def trim(bootstrap: str, name: str, before: Mapping[int, int]) -> None:
    """DeleteRecords."""
    async with admin_of(bootstrap) as admin:
        await admin.delete_records(
            {TopicPartition(name, p): RecordsToDelete(before_offset=at) for p, at in before.items()}, timeout_ms=10_000
        )


async def configure(bootstrap: str, name: str, configs: dict[str, str]) -> None:
    """Set configs of a topic; the others go back to their defaults."""
    async with admin_of(bootstrap) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs)])


async def topics(bootstrap: str) -> set[str]:
    async with admin_of(bootstrap) as admin:
        return set(await admin.list_topics())


async def group_offsets(bootstrap: str, group: str) -> dict[tuple[str, int], int]:
    async with admin_of(bootstrap) as admin:
        found = await admin.list_consumer_group_offsets(group)
    return {(tp.topic, tp.partition): at.offset for tp, at in found.items() if at.offset >= 0}


async def move_group(
    bootstrap: str, group: str, offsets: Mapping[tuple[str, int], int], within_s: float = 30.0
) -> None:
    """What `kafka-consumer-groups --reset-offsets` does; its last member's session is waited out."""
    deadline = time.monotonic() + within_s
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(*tp) for tp in offsets])
        while True:
            try:
                await consumer.commit({TopicPartition(*tp): at for tp, at in offsets.items()})
                return
            except CommitFailedError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
    finally:
        await consumer.stop()


@asynccontextmanager
async def reader(bootstrap: str, *, committed: bool) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level="read_committed" if committed else "read_uncommitted",
        auto_offset_reset="none",
        enable_auto_commit=False,
        max_partition_fetch_bytes=16 << 20,
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def ends(bootstrap: str, topic: str, *, committed: bool = False) -> dict[int, int]:
    """Partition -> log end; `committed`: the last stable offset."""
    async with reader(bootstrap, committed=committed) as consumer:
        return await _ends(consumer, topic)


async def read(bootstrap: str, topic: str, *, committed: bool = True, within_s: float = 60.0) -> list[Line]:
    """A topic from its start to its end, in the order of each partition; an open transaction is waited for."""
    async with reader(bootstrap, committed=False) as whole:
        end = await _ends(whole, topic)
    found: list[Line] = []
    async with reader(bootstrap, committed=committed) as consumer:
        tps = [TopicPartition(topic, p) for p in end]
        starts = await consumer.beginning_offsets(tps)
        consumer.assign(tps)
        for tp in tps:
            consumer.seek(tp, starts[tp])
        left = {tp for tp in tps if starts[tp] < end[tp.partition]}
        deadline = time.monotonic() + within_s
        while left:
            if time.monotonic() > deadline:
                pytest.fail(f"{sorted(left)} did not come to their ends {end}: a transaction is open")
            for tp, records in (await consumer.getmany(*left, timeout_ms=200)).items():
                found += [Line(tp.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in records]
            left = {tp for tp in left if await consumer.position(tp) < end[tp.partition]}
    return found


async def _ends(consumer: AIOKafkaConsumer, topic: str) -> dict[int, int]:
    while not (partitions := consumer.partitions_for_topic(topic)):
        await consumer._client.force_metadata_update()
        if topic not in await consumer.topics():
            raise UnknownTopicOrPartitionError(topic)
    found = await consumer.end_offsets([TopicPartition(topic, p) for p in partitions])
    return {tp.partition: at for tp, at in found.items()}


async def send(
    bootstrap: str, topic: str, messages: Iterable[Message], *, per_s: float | None = None, large: bool = False
) -> None:
    """Produce in order, each key's order kept; `per_s` paces it. Waits until all is acknowledged."""
    limit = 32 << 20 if large else 1 << 20
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=2, max_request_size=limit
    )
    await producer.start()
    began, sent = time.monotonic(), 0
    acknowledged: list[asyncio.Future[object]] = []
    try:
        for m in messages:
            acknowledged.append(
                await producer.send(
                    topic, m.value, m.key, partition=m.partition, timestamp_ms=m.timestamp, headers=list(m.headers)
                )
            )
            sent += 1
            if per_s is not None and sent % 20 == 0:
                await asyncio.sleep(max(0.0, began + sent / per_s - time.monotonic()))
        await asyncio.gather(*acknowledged)
    finally:
        await producer.stop()


@asynccontextmanager
async def transaction(bootstrap: str, name: str) -> AsyncIterator[AIOKafkaProducer]:
    """A producer with an open transaction; it ends as the caller says, and is aborted where nothing is said."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=name)
    await producer.start()
    try:
        await producer.begin_transaction()
        yield producer
    finally:
        await producer.stop()


async def eventually(bootstrap: str, topic: str, within_s: float = 60.0) -> None:
    """Waits until a topic is there."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if topic in await topics(bootstrap):
                return
        except KafkaError:
            pass
        if time.monotonic() > deadline:
            pytest.fail(f"topic {topic} was not created within {within_s} s")
        await asyncio.sleep(0.1)


async def subscriptions(bootstrap: str, group: str) -> list[list[str]]:
    """The topics that each member of a group says it reads: their offsets are kept while the group is alive."""
    async with admin_of(bootstrap) as admin:
        [answer] = await admin.describe_consumer_groups([group])
    _, _, _, _, _, members = answer.groups[0][:6]
    return [ConsumerProtocolMemberMetadata.decode(member[3]).subscription for member in members]


async def forget_group(bootstrap: str, group: str, within_s: float = 30.0) -> None:
    """Delete a group and its offsets, as a broker does when they expire; its last member's session is waited out."""
    deadline = time.monotonic() + within_s
    async with admin_of(bootstrap) as admin:
        node = await admin.find_coordinator(group)
        while True:
            answer = await admin._send_request(DeleteGroupsRequest([group]), node)
            [(_, code)] = answer.results
            if code == 0:
                return
            if code != NON_EMPTY_GROUP or time.monotonic() > deadline:
                raise for_code(code)(group)
            await asyncio.sleep(0.1)
