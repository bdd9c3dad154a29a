"""Events that fail as often as they are told to, and the agents that handle them, for tests of what is parked."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from semel import Table
from semel.testing import PipelineTester


@dataclass
class Event:
    id: str
    key: str
    n: int


@dataclass
class Flaky:
    """`fails`: how often an event of that id fails; `done`: ids in the order in which they were handled to their end."""

    fails: dict[str, int] = field(default_factory=dict[str, int])
    attempts: Counter[str] = field(default_factory=Counter[str])
    done: list[str] = field(default_factory=list[str])

    def __call__(self, event: Event) -> None:
        self.attempts[event.id] += 1
        if self.attempts[event.id] <= self.fails.get(event.id, 0):
            raise OSError(f"{event.id} fails")
        self.done.append(event.id)


def handling(flaky: Flaky, sums: Table[str, int]) -> Callable[[Event], dict[str, Any]]:
    def handle(event: Event) -> dict[str, Any]:
        sums[event.key] += event.n
        flaky(event)
        return {"id": event.id, "sum": sums[event.key]}

    return handle


def streaming(flaky: Flaky, sums: Table[str, int]) -> Callable[[Any], Any]:
    async def stream_agent(stream: Any) -> AsyncIterator[dict[str, Any]]:
        async for event in stream:
            sums[event.key] += event.n
            flaky(event)
            yield {"id": event.id, "sum": sums[event.key]}

    return stream_agent


def batching(flaky: Flaky, sums: Table[str, int]) -> Callable[[Any], Any]:
    async def batch_agent(stream: Any) -> AsyncIterator[dict[str, Any]]:
        async for batch in stream.batches():
            for event in batch:
                sums[event.key] += event.n
                flaky(event)
                yield {"id": event.id, "sum": sums[event.key]}

    return batch_agent


AGENTS = [handling, streaming, batching]


def events(*ids: str) -> list[Event]:
    """`a1` is the first event of the key a."""
    return [Event(id, id[0], int(id[1:])) for id in ids]


def ids(t: PipelineTester) -> list[str]:
    return [out.value["id"] for out in t.outputs()]
