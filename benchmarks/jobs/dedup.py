"""The job of the comparison: drop duplicates by id, change one field, pass on. Its peers do the same."""

from collections.abc import AsyncIterable, AsyncIterator
from datetime import timedelta
from typing import Any

from semel import Dedup, Pipeline, Topic

SOURCE, SINK = "events", "events-once"


async def shout(events: AsyncIterable[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    async for event in events:
        event["merchant"] = event["merchant"].upper()
        yield event


pipeline = Pipeline(
    "once",
    source=Topic(SOURCE, key=str, value=dict),
    dedup=Dedup("id", window=timedelta(days=7)),
    agent=shout,
    sink=Topic(SINK, key=str, value=dict),
)
