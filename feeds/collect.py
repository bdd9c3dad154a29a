"""Read a whole topic as it was committed: what a run is judged by, with aiokafka alone and not with semel's reader."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

MAX_POLL_RECORDS = 5_000


async def committed(broker: str, topic: str) -> AsyncIterator[ConsumerRecord]:
    """Every committed record of the topic up to where it ends at the call, in order within each partition.

    Raises LookupError where there is no such topic.
    """
    partitions = await _partitions(broker.removeprefix("kafka://"), topic)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.removeprefix("kafka://"),
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        consumer.assign(partitions)
        # Asked as read_committed, the end is the last stable offset.
        ends = await consumer.end_offsets(partitions)
        left = set(partitions)
        while left:
            for partition in list(left):
                if await consumer.position(partition) >= ends[partition]:
                    left.discard(partition)
                    consumer.pause(partition)
            if left:
                fetched = await consumer.getmany(*left, timeout_ms=200, max_records=MAX_POLL_RECORDS)
                for partition, records in fetched.items():
                    for record in records:
                        if record.offset < ends[partition]:
                            yield record
    finally:
        await consumer.stop()


async def outputs(broker: str, topic: str) -> list[tuple[str, dict[str, Any]]]:
    """The committed outputs as `truth.compare_outputs` takes them: (key, value).

    ValueError for a record without key or value, which none of our pipelines writes.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    async for record in committed(broker, topic):
        if record.key is None or record.value is None:
            raise ValueError(f"{topic}[{record.partition}] has no key or no value at offset {record.offset}")
        found.append((record.key.decode(), orjson.loads(record.value)))
    return found


async def _partitions(broker: str, topic: str) -> list[TopicPartition]:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        # All topics: asking for one by name could create it.
        for found in await admin.describe_topics():
            if found["topic"] == topic:
                return [TopicPartition(topic, partition["partition"]) for partition in found["partitions"]]
    finally:
        await admin.close()
    raise LookupError(f"there is no topic {topic!r} on {broker}")
