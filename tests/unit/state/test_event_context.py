"""The key of an event is of the declared type, whichever way a handler comes by it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from semel import Output, Pipeline, Topic, current_event
from semel.testing import PipelineTester

TesterOf = Callable[..., PipelineTester]


def pipeline_of(agent: Any) -> Pipeline:
    return Pipeline("keys", source=Topic("in", key=int, value=str), agent=agent, sink=Topic("out", key=int, value=list))


def test_the_key_is_the_same_by_events_and_by_current_event(tester_of: TesterOf) -> None:
    async def by_events(stream: Any) -> AsyncIterator[Any]:
        async for event in stream.events():
            now = current_event()
            assert now is not None
            yield [event.key, now.key]

    tester = tester_of(pipeline_of(by_events))
    tester.send("x", key=41)
    tester.send("x")
    assert [o.value for o in tester.outputs()] == [[41, 41], [None, None]]


def test_a_function_finds_the_decoded_key_in_its_event(tester_of: TesterOf) -> None:
    def next_key(_: str) -> Output:
        now = current_event()
        assert now is not None
        return Output([now.key], key=now.key + 1)

    tester = tester_of(pipeline_of(next_key))
    tester.send("x", key=41)
    assert [(o.key, o.value) for o in tester.outputs()] == [(42, [41])]
