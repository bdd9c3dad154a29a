"""Recorded input from a topic of a cluster that is only read: the newest committed records, as they are."""

from __future__ import annotations

from semel.chaos.events import Input, Made, recorded
from semel.config import Settings
from semel.errors import ConfigError
from semel.port import EARLIEST, LATEST, TP
from semel.proof.logs import Logs
from semel.runtime.clock import SystemClock
from semel.worker.node import kafka_broker


async def copy(topic: str, broker: str | None, events: int) -> Input:
    """The last `events` records of the topic, the same number from each partition, ordered by time.

    RpcLost where no broker answers, Unreadable where it does not go on; ConfigError where there is no such topic, or
    nothing in it.
    """
    settings = Settings.load(None, broker=broker)
    there = kafka_broker(settings, client_id="semel-chaos-copy")
    await there.start()
    try:
        info = (await there.topics([topic])).get(topic)
        if info is None:
            raise ConfigError(f"there is no topic {topic!r} on {settings.bootstrap}; name another with --from-topic")
        tps = [TP(topic, partition) for partition in range(info.partitions)]
        starts = await there.list_offsets(tps, EARLIEST)
        ends = await there.list_offsets(tps, LATEST, committed=True)
        share = -(-events // info.partitions)
        logs = Logs(there, SystemClock())
        copied = [
            Made(record.key, record.value, tuple(record.headers), record.timestamp)
            for tp in tps
            async for piece in logs.read(tp, max(starts[tp], ends[tp] - share), ends[tp])
            for record in piece.records
        ]
    finally:
        await there.close()
    if not copied:
        raise ConfigError(f"topic {topic!r} on {settings.bootstrap} holds no records to copy")
    copied.sort(key=lambda made: made.timestamp_ms or 0)
    return recorded(
        copied[-events:], f"{min(events, len(copied)):,} events copied from {topic} on {settings.bootstrap}"
    )
