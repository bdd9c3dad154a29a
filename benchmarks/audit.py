"""Whether what was measured was also right: outputs and rows against the independent truth of `feeds.truth`.

A benchmark whose result is wrong is void, however fast it was.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from benchmarks.rig import Failed, Worker
from feeds.truth import FlightsTruth, Outputs, PaymentsTruth, compare, compare_outputs
from semel.web.paths import query, table_path

Truth = PaymentsTruth | FlightsTruth
PAGE_ROWS = 1000


def audit(worker: Worker, broker: str, truth: Truth, published: Mapping[str, int]) -> list[str]:
    """Every departure from the truth, in words; empty: all is right. `published`: records by kind of delivery."""
    found: list[str] = []
    for table, expected in truth.tables.items():
        found += map(str, compare(table, expected, dict(rows(worker, table))))
    topic, outputs = _outputs(truth)
    found += map(str, compare_outputs(topic, outputs, committed_json(broker, topic)))
    counts = (worker.view() or {}).get("counts", {})
    again = sum(published.values()) - published["original"] - published.get("conflict", 0)
    for name, expected in (
        ("in", sum(published.values())),
        ("conflicts", published.get("conflict", 0)),
        ("duplicates", again),
        ("out", len(outputs)),
    ):
        if counts.get(name) != expected:
            found.append(f"count of {name}: expected {expected}, found {counts.get(name)}")
    return found


def rows(worker: Worker, table: str) -> Iterator[tuple[str, Any]]:
    """Every row of a table, through the worker's web view."""
    page: str | None = None
    while True:
        found = worker.get(table_path(table) + query([("limit", PAGE_ROWS), ("page", page)]))
        if found is None:
            raise Failed(f"the rows of {table} cannot be read. {worker.log_end()}")
        for row in found["rows"]:
            yield row["key"], row["value"]
        page = found["next"]
        if page is None:
            return


def committed_json(broker: str, topic: str) -> list[tuple[str, dict[str, Any]]]:
    """Keys and values of all committed records, in the order of their partitions."""
    return [(r.key.decode(), orjson.loads(r.value)) for r in asyncio.run(committed(broker, topic))]


def faults_of_ids(broker: str, topic: str, expected: set[str]) -> list[str]:
    """What is wrong with the ids on a topic that is to hold each of `expected` once."""
    seen = Counter(value["id"] for _, value in committed_json(broker, topic))
    found = {
        "lost": len(expected - seen.keys()),
        "doubled": sum(n > 1 for n in seen.values()),
        "unexpected": len(seen.keys() - expected),
    }
    return [f"{topic}: {count} {fault}" for fault, count in found.items() if count]


async def committed(broker: str, topic: str) -> list[Any]:
    """All committed records of a topic, up to the last stable offset it has now."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 << 20,
    )
    await consumer.start()
    try:
        found: list[Any] = []
        for partition in await partitions(broker, topic):
            # One after the other, so that what is read is in the order of the log.
            tp = TopicPartition(topic, partition)
            consumer.assign([tp])
            end = (await consumer.end_offsets([tp]))[tp]
            await consumer.seek_to_beginning(tp)
            while await consumer.position(tp) < end:
                for batch in (await consumer.getmany(tp, timeout_ms=200)).values():
                    found += batch
        return found
    finally:
        await consumer.stop()


async def partitions(broker: str, topic: str) -> list[int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        (found,) = await admin.describe_topics([topic])
    finally:
        await admin.close()
    if not found["partitions"]:
        raise Failed(f"there is no topic {topic}")
    return sorted(p["partition"] for p in found["partitions"])


def _outputs(truth: Truth) -> tuple[str, Outputs]:
    if isinstance(truth, PaymentsTruth):
        return "settlements", truth.settlements
    return "late-flights", truth.late_flights
