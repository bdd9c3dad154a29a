"""Fill the topics that the benchmarks read.

    python -m benchmarks.inputs payments --broker 127.0.0.1:9092 --events 1000000 --share 0.2
    python -m benchmarks.inputs payments --broker 127.0.0.1:9092 --events 1000000 --accounts 1000000 --share 0
    python -m benchmarks.inputs flights  --broker 127.0.0.1:9092
    python -m benchmarks.inputs payments --broker 127.0.0.1:9092 --events 60000 --share 0 --rate 1000

The first is the job of throughput: a million payments, a fifth of them once more. The second makes a million
dedup keys and a million rows of state, for memory and for restore. With `--rate` the load is open-loop: each
record is sent at its moment, whatever became of those before it, and its timestamp is that moment, so that
latency is the time a reader of the output has when it comes, less the timestamp. One JSON document on standard
output says what was sent; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer

from feeds import flights, payments
from feeds.publish import create_topic, publish
from feeds.record import Record
from feeds.redelivery import redeliver

# Of a paced load: how many sent records may lack their acknowledgement before the broker counts as too slow.
UNACKNOWLEDGED = 100_000


def main() -> None:
    asked = _arguments().parse_args()
    counts: Counter[str] = Counter()
    records = deliveries(
        asked.input, asked.events, seed=asked.seed, share=asked.share, accounts=asked.accounts, counts=counts
    )
    topic = asked.topic or asked.input
    started = time.perf_counter()
    if asked.rate:
        sending = publish_at_rate(asked.broker, topic, records, asked.rate, partitions=asked.partitions)
    else:
        sending = publish(asked.broker, topic, records, partitions=asked.partitions, progress=progress())
    published = asyncio.run(sending)
    seconds = time.perf_counter() - started
    report: dict[str, Any] = {
        "topic": topic,
        "seed": asked.seed,
        "published": published,
        "seconds": round(seconds, 2),
        "events_per_s": round(published / seconds),
        **counts,
    }
    sys.stderr.write("\n")
    sys.stdout.write(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n")


def deliveries(
    name: str, events: int | None, *, seed: int, share: float, accounts: int = 10_000, counts: Counter[str]
) -> Iterator[Record]:
    """The records of an input ("payments" or "flights") with their redeliveries, counted by kind into `counts`."""
    if name == "flights":
        stream, altered = flights.records(islice(flights.events(), events)), flights.altered
    else:
        made = payments.events(events or 1_000_000, seed, accounts=accounts)
        stream, altered = payments.records(made), payments.altered
    for kind, record in redeliver(stream, seed, share=share, altered=altered):
        counts[kind] += 1
        yield record


async def publish_at_rate(
    broker: str, topic: str, records: Iterable[Record], events_per_s: float, *, partitions: int = 4
) -> int:
    """Send each record at its moment with that moment as its timestamp; return their number once all are acknowledged.

    RuntimeError where the broker or this process falls so far behind that the load is no longer the one asked for.
    """
    await create_topic(broker, topic, partitions)
    producer = AIOKafkaProducer(bootstrap_servers=broker.removeprefix("kafka://"), enable_idempotence=True)
    await producer.start()
    waiting: set[asyncio.Future[Any]] = set()
    failed: list[BaseException] = []

    def done(future: asyncio.Future[Any]) -> None:
        waiting.discard(future)
        if (error := future.exception()) is not None:
            failed.append(error)

    sent = 0
    try:
        start = time.time()
        for record in records:
            due = start + sent / events_per_s
            behind = time.time() - due
            if behind < 0:
                await asyncio.sleep(-behind)
            if failed:
                raise failed[0]
            if behind > 1 or len(waiting) > UNACKNOWLEDGED:
                raise RuntimeError(f"{events_per_s:g} events/s are too many here: {behind:.1f} s behind after {sent}")
            future = await producer.send(topic, record.value, key=record.key, timestamp_ms=int(due * 1000))
            waiting.add(future)
            future.add_done_callback(done)
            sent += 1
        await producer.flush()
    finally:
        await producer.stop()
    if failed:
        raise failed[0]
    return sent


def progress() -> Callable[[int], None]:
    shown = 0.0

    def show(published: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= 1:
            shown = now
            sys.stderr.write(f"\r{published:,} records")
            sys.stderr.flush()

    return show


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inputs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("input", choices=("payments", "flights"))
    parser.add_argument("--broker", required=True, help="host:port")
    parser.add_argument("--topic", help="by default the input's name")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument(
        "--events", type=int, help="before redeliveries; by default a million payments, a year of flights"
    )
    parser.add_argument("--accounts", type=int, default=10_000, help="of the payments")
    parser.add_argument("--share", type=float, default=0.2, help="of events to redeliver, 0 to 1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--rate", type=float, help="events per second, sent at their moment; as fast as possible without"
    )
    return parser


if __name__ == "__main__":
    main()
