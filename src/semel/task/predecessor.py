"""Predecessor: whether results of another app stand where this one's are to go, as those of one that was renamed do."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping

from semel.plan import Plan
from semel.port import EARLIEST, LATEST, TP, Broker, FetchRequest, Record, RpcError, RpcLost, TopicInfo
from semel.state import lineage

log = logging.getLogger("semel.restore")

# Of a topic that results go to: so many partitions, and of each so many of its last offsets, some of which end transactions.
PARTITIONS, OFFSETS = 8, 50
_BYTES = 100_000


async def look(broker: Broker, plan: Plan, known: Mapping[str, TopicInfo]) -> None:
    """Warn at the first start of an app whose sources and results are those of another. Brokers that do not tell are not asked
    again: nothing depends on it."""
    for name in sorted(plan.sinks):
        if name in known:
            try:
                former = await _writer_of(broker, plan, known[name])
            except (RpcError, RpcLost) as exc:
                log.debug("whether %s has results of another app: %s", name, exc)
                continue
            if former is not None:
                log.warning(
                    "%s has results of the app %r from %s, which %r reads, too. If that is the same pipeline under its former "
                    "name: its tables and dedup marks are not carried over, so that what it has handled is handled again, and "
                    "its results are written twice. Keep the former name, or give the new one another sink, or start=\"latest\"",
                    name, former.app, former.topic, plan.app,
                )  # fmt: skip
                return


async def _writer_of(broker: Broker, plan: Plan, topic: TopicInfo) -> lineage.Lineage | None:
    """Whoever wrote one of its last records from a source of this app, and is not this app."""
    async for record in last_records(broker, topic):
        header = lineage.of(record.headers)
        writer = lineage.parse(header) if header is not None else None
        if writer is not None and writer.app != plan.app and writer.topic in plan.sources:
            return writer
    return None


async def last_records(broker: Broker, topic: TopicInfo) -> AsyncIterator[Record]:
    """Some of its last committed records, of each partition the newest first."""
    tps = [TP(topic.name, partition) for partition in range(min(topic.partitions, PARTITIONS))]
    ends = await broker.list_offsets(tps, LATEST)
    starts = await broker.list_offsets(tps, EARLIEST)
    leaders = await broker.leaders(tps)
    for tp in tps:
        begin = max(starts[tp], ends[tp] - OFFSETS)
        if begin >= ends[tp] or tp not in leaders:
            continue
        answer = await broker.fetch(FetchRequest(leaders[tp], {tp: begin}, 1, _BYTES, _BYTES, purpose="restore"))
        for record in reversed(answer[tp].records if tp in answer else []):
            yield record
