"""The jobs of `benchmarks.waiting`: a sum per key, and handlers that wait for 100 ms."""

import asyncio
import time
from datetime import timedelta
from typing import Any

from semel import Dedup, Pipeline, Table, Topic

SOURCE, SINK = "waiting", "waiting-done"
WAIT_S = 0.1
sums = Table("sums", key=str, value=int, default=int)


def done(event: dict[str, Any], began: float) -> dict[str, Any]:
    sums[event["key"]] += 1
    return {"id": event["id"], "sum": sums[event["key"]], "began": began, "ended": time.time()}


async def wait(event: dict[str, Any]) -> dict[str, Any]:
    began = time.time()
    await asyncio.sleep(WAIT_S)
    return done(event, began)


def block(event: dict[str, Any]) -> dict[str, Any]:
    began = time.time()
    time.sleep(WAIT_S)
    return done(event, began)


def pipeline_of(agent: Any, **declared: Any) -> Pipeline:
    return Pipeline(
        "waiting",
        source=Topic(SOURCE, key=str, value=dict),
        dedup=Dedup("id", window=timedelta(days=7)),
        agent=agent,
        tables=[sums],
        sink=Topic(SINK, key=str, value=dict),
        **declared,
    )


one_by_one = pipeline_of(wait)
concurrency = pipeline_of(wait, concurrency=100)
threads = pipeline_of(block, threads=100)
