"""The same work by every kind of agent, for PipelineTester and for a worker. Named by `PIPELINE` and `KIND`."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import semel
from semel import Output, Pipeline, Reject, Retry, Table, Topic


def pipeline_of(kind: str, name: str) -> Pipeline:
    """An event without `n` is rejected, one of a negative `n` fails, 0 has no result; the others are summed by key."""
    sums = Table("sums", key=str, value=int, default=int)

    def work(value: dict[str, Any], event: Any = None) -> Any:
        if "n" not in value:
            raise Reject("no n")
        sums[value["account"]] += value["n"]
        if value["n"] < 0:
            raise ValueError("below 0")
        if not value["n"]:
            return None
        result: dict[str, Any] = {"n": value["n"], "sum": sums[value["account"]], "type": type(event).__name__}
        if event is not None:
            result |= {"at": [event.topic, event.partition, event.offset, event.timestamp], "key": event.key}
            result["headers"] = {h: (v or b"").decode() for h, v in event.headers.items()}
        return result

    async def values(stream: Any) -> Any:
        async for value in stream:
            yield work(value)

    async def events(stream: Any) -> Any:
        async for event in stream.events():
            yield work(event.value, event)

    async def current(stream: Any) -> Any:
        async for value in stream:
            yield work(value, semel.current_event())

    async def batches(stream: Any) -> Any:
        async for batch in stream.batches():
            for value in batch:
                yield work(value)

    async def items(stream: Any) -> Any:
        async for key, value in stream.items():
            result = work(value)
            yield result and {**result, "key": key}

    async def filtered(stream: Any) -> Any:
        async for value in stream.filter(lambda value: value.get("n") != 2):
            yield work(value)

    async def enumerated(stream: Any) -> Any:
        async for _, value in stream.enumerate():
            yield work(value)

    async def sending(stream: Any) -> Any:
        async for value in stream:
            result = work(value)
            if result is not None:
                yield Output(result, key="another", headers={"h": b"2"})

    def function(value: dict[str, Any]) -> Any:
        return work(value, semel.current_event())

    async def coroutine(value: dict[str, Any]) -> Any:
        return work(value)

    agents = (values, events, current, batches, items, filtered, enumerated, sending, function, coroutine)
    return Pipeline(
        name,
        source=Topic(f"{name}.payments", key=str, value=dict),
        agent={agent.__name__: agent for agent in agents}[kind],
        tables=[sums],
        sink=Topic(f"{name}.settlements", key=str, value=dict),
        retry=Retry(attempts=2, first_delay=timedelta(milliseconds=20)),
    )


if "KIND" in os.environ:
    pipeline = pipeline_of(os.environ["KIND"], os.environ["PIPELINE"])
