"""The job of `benchmarks.failing`: a sum per key, and events that say how often handling them fails."""

from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from datetime import timedelta
from typing import Any

from semel import Dedup, Pipeline, Table, Topic

SOURCE, SINK = "failing", "failing-done"
sums = Table("sums", key=str, value=int, default=int)
failures: Counter[str] = Counter()


async def add(events: AsyncIterable[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    async for event in events:
        sums[event["key"]] += 1
        if failures[event["id"]] < event["fails"]:
            failures[event["id"]] += 1
            raise ConnectionError(f"{event['id']} fails")
        yield {"id": event["id"], "sum": sums[event["key"]]}


pipeline = Pipeline(
    "failing",
    source=Topic(SOURCE, key=str, value=dict),
    dedup=Dedup("id", window=timedelta(days=7)),
    agent=add,
    tables=[sums],
    sink=Topic(SINK, key=str, value=dict),
)
