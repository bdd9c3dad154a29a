"""Events that say how much they are to cost: time, results, failures. For the benchmark of the memory budget."""

from __future__ import annotations

import asyncio
from typing import Any

from semel import Output, Pipeline, Reject, Table, Topic

SOURCE = "budget-events"
counted = Table("counted", key=str, value=int, default=int)


async def handle(event: dict[str, Any]) -> Output | None:
    if event.get("sleep_ms"):
        await asyncio.sleep(event["sleep_ms"] / 1000)
    if event.get("reject"):
        raise Reject("as asked for")
    counted[event["key"]] += 1
    size = event.get("result_bytes")
    return Output("x" * size) if size else None


pipeline = Pipeline(
    "budget",
    source=Topic(SOURCE, key=str, value=dict),
    agent=handle,
    tables=[counted],
    sink=Topic(
        "budget-results", key=str, value=str, configs={"retention.bytes": "100000000", "segment.bytes": "20000000"}
    ),
)
