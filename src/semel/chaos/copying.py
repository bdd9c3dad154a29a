"""Recorded input from a topic of a cluster that is only read: the newest committed records, as they are."""

from __future__ import annotations

from semel.chaos.events import Input, Made, recorded
from semel.config import Settings
from semel.errors import ConfigError
from semel.kafka import KafkaBroker
from semel.port import EARLIEST, LATEST, TP
from semel.runtime.host import kafka_broker

FETCH_BYTES = 1 << 20
WAIT_MS = 500


async def copy(topic: str, broker: str | None, events: int) -> Input:
    """The last `events` records of the topic, the same number from each partition, ordered by time.

    RpcLost where no broker answers; ConfigError where there is no such topic, or nothing in it.
    """
    settings = Settings.load(None, broker=broker)
    there = kafka_broker(settings, client_id="semel-chaos-copy")
    assert isinstance(there, KafkaBroker)
    await there.start()
    try:
        info = (await there.topics([topic])).get(topic)
        if info is None:
            raise ConfigError(f"there is no topic {topic!r} on {settings.bootstrap}; name another with --from-topic")
        tps = [TP(topic, partition) for partition in range(info.partitions)]
        starts = await there.list_offsets(tps, EARLIEST)
        ends = await there.list_offsets(tps, LATEST, committed=True)
        share = -(-events // info.partitions)
        found: list[Made] = []
        for tp in tps:
            found += await _partition(there, tp, max(starts[tp], ends[tp] - share), ends[tp])
    finally:
        await there.close()
    if not found:
        raise ConfigError(f"topic {topic!r} on {settings.bootstrap} holds no records to copy")
    found.sort(key=lambda made: made.timestamp_ms or 0)
    return recorded(found[-events:], f"{min(events, len(found)):,} events copied from {topic} on {settings.bootstrap}")


async def _partition(there: KafkaBroker, tp: TP, start: int, end: int) -> list[Made]:
    found: list[Made] = []
    at = start
    while at < end:
        node = (await there.leaders([tp])).get(tp)
        if node is None:
            raise ConfigError(f"{tp.topic}[{tp.partition}] has no leader now; try again")
        fetched = (
            await there.fetch(
                node,
                {tp: at},
                committed=True,
                max_wait_ms=WAIT_MS,
                max_bytes=FETCH_BYTES,
                partition_max_bytes=FETCH_BYTES,
            )
        )[tp]
        if fetched.error or fetched.next_offset <= at:
            break
        for record in fetched.records:
            if record.offset < end:
                found.append(Made(record.key, record.value, tuple(record.headers), record.timestamp))
        at = fetched.next_offset
    return found
