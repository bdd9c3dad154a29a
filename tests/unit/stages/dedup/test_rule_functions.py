"""What a function of a dedup rule raises, or does to a value, is the affair of that event, however many are judged at once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from semel import Dedup, Pipeline, Topic
from semel.testing import PipelineTester

EVENTS = 5
BAD = 3
START_MS = 1_700_000_000_000
DAY = timedelta(days=1)


class Panic(BaseException):
    """As native code raises it: no Exception."""


def raising(error: type[BaseException]) -> Callable[[dict[str, Any]], int]:
    def read(value: dict[str, Any]) -> int:
        if value["n"] == BAD:
            raise error("this one")
        return value["n"] + START_MS

    return read


def pipeline(**declared: Any) -> Pipeline:
    async def agent(value: dict[str, Any]) -> dict[str, Any]:
        return value

    time = declared.pop("time", None)
    return Pipeline(
        "p", source=Topic("in", value=dict, time=time), agent=agent, sink=Topic("out", value=dict), **declared
    )


RULES = {
    "time": lambda read: pipeline(time=read),
    "time and dedup": lambda read: pipeline(time=read, dedup=Dedup("n", window=DAY)),
    "key": lambda read: pipeline(dedup=Dedup(read, window=DAY)),
    "compare": lambda read: pipeline(dedup=Dedup("n", window=DAY, compare=read)),
}


@pytest.mark.parametrize("error", [ValueError, Panic, SystemExit, GeneratorExit])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("together", [True, False])
def test_an_error_of_a_rule_costs_its_own_event_and_no_other(
    rule: str, error: type[BaseException], together: bool
) -> None:
    with PipelineTester(RULES[rule](raising(error)), partitions=1) as tester:
        for n in range(EVENTS):
            tester.send({"n": n}, key="a", settle=not together)
        tester.settle()
        assert [out.value["n"] for out in tester.outputs()] == [n for n in range(EVENTS) if n != BAD]
        assert [letter.offset for letter in tester.dead_letters()] == [BAD]


@pytest.mark.parametrize("together", [True, False])
def test_a_key_function_that_changes_its_value_is_called_once_a_record(together: bool) -> None:
    rule = Dedup(lambda value: value.pop("id"), window=DAY)
    with PipelineTester(pipeline(dedup=rule), partitions=1) as tester:
        for n in range(EVENTS):
            tester.send({"n": n} if n == BAD else {"n": n, "id": n}, key="a", settle=not together)
        tester.settle()
        assert [out.value["n"] for out in tester.outputs()] == [n for n in range(EVENTS) if n != BAD]
        assert [(letter.offset, letter.reason) for letter in tester.dead_letters()] == [(BAD, "missing")]
