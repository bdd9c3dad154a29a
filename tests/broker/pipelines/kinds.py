"""The same work by every kind of agent, for PipelineTester and for a worker. Named by `PIPELINE` and `KIND`."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterable, AsyncIterator
from datetime import timedelta
from typing import Any

import semel
from semel import Output, Pipeline, Reject, Retry, Table, Topic

KINDS = (
    "values", "events", "current", "batches", "gathered", "returning", "items", "filtered", "enumerated", "sending", "elsewhere",
    "function", "coroutine", "looping", "delegating", "asking", "asking_events", "handing_on", "object", "method", "partial",
    "decorated", "iterable", "class",
)  # fmt: skip
# Whose functions do not show what they take.
SAID: dict[str, Any] = {"delegating": "stream", "asking": "stream", "asking_events": "stream"}

SILENT = frozenset(("looping", *SAID))
# Whose events say their time themselves.
TIMED = frozenset(("values", "events", "batches", "function"))


def audit_of(name: str) -> str:
    return f"{name}.audit"


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
            assert event.value == value
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

    async def gathered(stream: Any) -> Any:
        async def of(event: Any) -> tuple[Any, Any]:
            return event, work(event.value, event)

        async for batch in stream.batches():
            for event, result in await asyncio.gather(*map(of, batch.events)):
                if result is not None:
                    yield Output(result, of=event)

    async def returning(stream: Any) -> Any:
        async for value in stream:
            yield work(value)
            return

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

    async def elsewhere(stream: Any) -> Any:
        async for value in stream:
            result = work(value)
            if result is not None:
                yield Output(result, topic=Topic(audit_of(name), key=str, value=dict)) if value["n"] % 2 else result

    def function(value: dict[str, Any]) -> Any:
        return work(value, semel.current_event())

    async def coroutine(value: dict[str, Any]) -> Any:
        return work(value)

    async def looping(stream: Any) -> None:
        async for value in stream:
            work(value)

    async def delegating(stream: Any) -> None:
        await looping(stream)

    async def asking(stream: Any) -> None:
        values = aiter(stream)
        while True:
            work(await anext(values))

    async def asking_events(stream: Any) -> None:
        events = stream.events()
        while True:
            event = await anext(events)
            work(event.value, event)

    def handing_on(stream: AsyncIterable[Any]) -> AsyncIterator[Any]:
        return values(stream)

    class Worker:
        async def __call__(self, stream: Any) -> Any:
            async for value in stream:
                yield work(value)

        async def method(self, stream: Any) -> Any:
            async for event in stream.events():
                yield work(event.value, event)

    class Settling:
        def __init__(self, stream: AsyncIterable[Any]) -> None:
            self.stream = stream

        async def __aiter__(self) -> Any:
            async for value in self.stream:
                yield work(value)

    def iterable(stream: AsyncIterable[Any]) -> AsyncIterable[Any]:
        return Settling(stream)

    async def with_factor(factor: int, value: dict[str, Any]) -> Any:
        return work(value) if factor else None

    def passing(agent: Any) -> Any:
        @functools.wraps(agent)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return agent(*args, **kwargs)

        return wrapper

    agents: dict[str, Any] = {
        "values": values, "events": events, "current": current, "batches": batches,
        "gathered": gathered, "returning": returning, "items": items, "filtered": filtered,
        "enumerated": enumerated, "sending": sending, "elsewhere": elsewhere, "function": function, "coroutine": coroutine,
        "looping": looping, "delegating": delegating, "asking": asking, "asking_events": asking_events,
        "handing_on": handing_on, "object": Worker(), "method": Worker().method, "partial": functools.partial(with_factor, 1),
        "decorated": passing(values), "iterable": iterable, "class": Settling,
    }  # fmt: skip
    return Pipeline(
        name,
        source=Topic(f"{name}.payments", key=str, value=dict, time="at" if kind in TIMED else None),
        agent=agents[kind],
        tables=[sums],
        # Of what takes the stream and has no yield nothing can come.
        sink=None if kind in SILENT else Topic(f"{name}.settlements", key=str, value=dict),
        retry=Retry(attempts=2, first_delay=timedelta(milliseconds=20)),
        kind=SAID.get(kind),
    )


if "KIND" in os.environ:
    pipeline = pipeline_of(os.environ["KIND"], os.environ["PIPELINE"])
