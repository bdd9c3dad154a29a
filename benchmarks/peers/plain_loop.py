"""The least that is exactly-once while nothing fails: one loop on aiokafka and RocksDB, one transaction per poll.

It is the limit that a Python worker can reach, not a product: no fencing by the group, no recovery of its state (the
changelog is written, nobody reads it), no window, no conflicts, one bad record ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from rocksdict import AccessType, BlockBasedOptions, Options, Rdict, WriteBatch

GROUP = "plain-loop"
BATCH_BYTES = 900_000
MIB = 1 << 20


async def run(
    broker: str, *, source: str, sink: str, changelog: str, state: str, expected: int, poll: int
) -> dict[str, Any]:
    consumer = AIOKafkaConsumer(
        source, bootstrap_servers=broker, group_id=GROUP, enable_auto_commit=False, auto_offset_reset="earliest",
        isolation_level="read_committed", max_partition_fetch_bytes=4 * MIB,
    )  # fmt: skip
    producer = AIOKafkaProducer(
        bootstrap_servers=broker, transactional_id=f"{GROUP}-1", max_batch_size=BATCH_BYTES, max_request_size=8 * MIB
    )
    db = Rdict(state, _options(), access_type=AccessType.read_write())
    await producer.start()
    await consumer.start()
    done, started, cpu = 0, 0.0, 0.0
    try:
        while done < expected:
            polled = await consumer.getmany(timeout_ms=200, max_records=poll)
            if not polled:
                continue
            if not done:
                started, cpu = time.perf_counter(), time.process_time()
            fresh: dict[bytes, bytes] = {}
            offsets: dict[TopicPartition, int] = {}
            async with producer.transaction():
                for tp, records in polled.items():
                    events = [orjson.loads(r.value) for r in records]
                    ids = [e["id"].encode() for e in events]
                    known = db.get(ids)
                    outputs: list[Any] = []
                    for record, event, key, mark in zip(records, events, ids, known, strict=True):
                        if mark is not None or key in fresh:
                            continue
                        fresh[key] = b"%d" % record.offset
                        event["merchant"] = event["merchant"].upper()
                        outputs.append((record.timestamp, key, orjson.dumps(event), fresh[key]))
                    # Same key, same number of partitions: the partition is the source's.
                    await _send(producer, sink, tp.partition, [(at, key, value) for at, key, value, _ in outputs])
                    await _send(producer, changelog, tp.partition, [(at, key, mark) for at, key, _, mark in outputs])
                    offsets[tp] = records[-1].offset + 1
                    done += len(records)
                await producer.send_offsets_to_transaction(offsets, GROUP)
            batch = WriteBatch(raw_mode=True)
            for key in sorted(fresh):
                batch.put(key, fresh[key])
            db.write(batch)
        return {
            "events": done,
            "seconds": time.perf_counter() - started,
            "cpu_s": time.process_time() - cpu,
        }
    finally:
        await consumer.stop()
        await producer.stop()
        db.close()


async def _send(
    producer: AIOKafkaProducer, topic: str, partition: int, records: list[tuple[int, bytes, bytes]]
) -> None:
    batch = producer.create_batch()
    for at, key, value in records:
        if batch.append(timestamp=at, key=key, value=value) is None:
            await producer.send_batch(batch, topic, partition=partition)
            batch = producer.create_batch()
            batch.append(timestamp=at, key=key, value=value)
    if batch.record_count():
        await producer.send_batch(batch, topic, partition=partition)


def _options() -> Options:
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_memtable_prefix_bloom_ratio(0.1)
    options.set_memtable_whole_key_filtering(True)
    options.set_write_buffer_size(16 * MIB)
    return options


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.plain_loop")
    for name in ("broker", "source", "sink", "changelog", "state"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--poll", type=int, default=5_000, help="records in a transaction, at most")
    a = parser.parse_args()
    work = run(
        a.broker, source=a.source, sink=a.sink, changelog=a.changelog, state=a.state, expected=a.events, poll=a.poll
    )
    found = asyncio.run(work)
    sys.stdout.buffer.write(orjson.dumps(found) + b"\n")


if __name__ == "__main__":
    main()
