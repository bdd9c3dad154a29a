"""Put records on a topic, fast: whole batches per partition, idempotent, in order, in bounded memory.

Partitions are chosen by murmur2 of the key, as Java's default partitioner does it, and with aiokafka's own
function and not the engine's, so that the two can disagree where one of them is wrong.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code
from aiokafka.partitioner import murmur2

from feeds.record import Record

BATCH_BYTES = 256 * 1024
# Batches on their way per partition; with the one being filled they bound the memory: 1.25 MB a partition.
IN_FLIGHT = 4
# How many records go into batches before other tasks get a turn: some milliseconds.
TURN_RECORDS = 2_000

# Events carry the time at which they happened, in 2013 for the flights: retention by time would delete
# them at once, and a segment per week of event time would make fifty files a partition.
TOPIC_CONFIGS = {"retention.ms": "-1", "segment.ms": "9223372036854775807"}


async def publish(
    broker: str,
    topic: str,
    records: Iterable[Record],
    *,
    partitions: int = 4,
    replication_factor: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Publish all records in their order and return their number once the broker has acknowledged every one.

    `broker` is `host:port,host:port`, also with `kafka://`. The topic is created with `partitions` partitions
    where it is missing; one that is there keeps its own number. `progress` is called with the number of records
    handed over so far, every few milliseconds, and at the end. Raises aiokafka's `KafkaError` where the broker
    refuses or stays away; what was acknowledged until then stays on the topic.
    """
    bootstrap = broker.removeprefix("kafka://")
    await create_topic(bootstrap, topic, partitions, replication_factor)
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        enable_idempotence=True,
        max_batch_size=BATCH_BYTES,
        max_request_size=8 * 1024 * 1024,
    )
    await producer.start()
    try:
        return await _publish(producer, topic, records, progress)
    finally:
        await producer.stop()


async def create_topic(broker: str, topic: str, partitions: int, replication_factor: int | None = None) -> None:
    """Create a topic for events of any age, by default with three replicas where there are three brokers.

    One that exists stays as it is.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.removeprefix("kafka://"))
    await admin.start()
    try:
        if replication_factor is None:
            brokers = (await admin.describe_cluster())["brokers"]
            replication_factor = 3 if len(brokers) >= 3 else 1
        answer: Any = await admin.create_topics(
            [NewTopic(topic, partitions, replication_factor, topic_configs=TOPIC_CONFIGS)]
        )
        for name, code, *detail in answer.topic_errors:
            if code not in (0, TopicAlreadyExistsError.errno):
                raise for_code(code)(f"topic {name!r} was not created: {detail}")
    finally:
        await admin.close()


async def _publish(
    producer: AIOKafkaProducer, topic: str, records: Iterable[Record], progress: Callable[[int], None] | None
) -> int:
    partitions = sorted(await producer.partitions_for(topic))
    count = len(partitions)

    @lru_cache(maxsize=100_000)
    def partition_of(key: bytes) -> int:
        return partitions[(murmur2(key) & 0x7FFFFFFF) % count]

    open_batches = {partition: producer.create_batch() for partition in partitions}
    in_flight: dict[int, deque[asyncio.Future[Any]]] = {partition: deque() for partition in partitions}

    async def send(partition: int) -> None:
        sent = in_flight[partition]
        while len(sent) >= IN_FLIGHT or (sent and sent[0].done()):
            await sent.popleft()
        sent.append(await producer.send_batch(open_batches[partition], topic, partition=partition))
        open_batches[partition] = producer.create_batch()

    published = 0
    for key, value, timestamp_ms in records:
        partition = partition_of(key)
        while open_batches[partition].append(timestamp=timestamp_ms, key=key, value=value) is None:
            await send(partition)
        published += 1
        if published % TURN_RECORDS == 0:
            if progress is not None:
                progress(published)
            await asyncio.sleep(0)

    for partition, batch in open_batches.items():
        if batch.record_count():
            await send(partition)
    for sent in in_flight.values():
        while sent:
            await sent.popleft()
    if progress is not None:
        progress(published)
    return published
