"""What is not promised (docs/exactly-once.md), shown: a pipeline that relies on it is found out by a test like these."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from semel import Dedup, Output, Pipeline, Reject, Retry, Table, Topic
from semel.codec import codec_for
from semel.testing import NotSettled, PipelineTester, deployment

TesterOf = Callable[..., PipelineTester]
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Order:
    id: str
    shop: str


def pipeline_of(agent: Any, **declared: Any) -> Pipeline:
    return Pipeline(
        "limits-test",
        source=Topic("orders", key=str, value=Order),
        dedup=Dedup("id", window=timedelta(days=7)),
        agent=agent,
        sink=Topic("done", key=str, value=str),
        **declared,
    )


def test_one_id_in_two_partitions_is_two_events(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(lambda order: order.id), partitions=2)
    tester.send(Order("o1", "north"), partition=0)
    tester.send(Order("o1", "north"), partition=1)
    tester.send(Order("o1", "north"), partition=1)
    assert [output.value for output in tester.outputs()] == ["o1", "o1"]
    assert (tester.counts.accepted, tester.counts.duplicates) == (2, 1)


def test_one_id_under_two_keys_of_one_partition_is_one_event(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(lambda order: order.id), partitions=1)
    tester.send(Order("o1", "north"), key="north")
    tester.send(Order("o1", "north"), key="south")
    assert [output.key for output in tester.outputs()] == ["north"]
    assert tester.counts.duplicates == 1


def test_a_failed_attempt_is_undone_in_tables_and_not_in_local_variables(tester_of: TesterOf) -> None:
    seen = Table("seen", key=str, value=int, default=int)

    local: dict[str, int] = {}

    def number(order: Order) -> str:
        seen[order.shop] += 1
        local[order.shop] = local.get(order.shop, 0) + 1
        if order.id == "o1":
            raise ConnectionError("the shop does not answer")
        return f"{seen[order.shop]} by the table, {local[order.shop]} by the variable"

    tester = tester_of(pipeline_of(number, tables=[seen], retry=Retry(attempts=1)))
    tester.send(Order("o1", "north"), key="north")
    tester.send(Order("o2", "north"), key="north")
    assert [letter.value.id for letter in tester.dead_letters()] == ["o1"]
    assert [output.value for output in tester.outputs()] == ["1 by the table, 2 by the variable"]


def test_a_retry_holds_up_its_own_key_and_is_overtaken_by_others(tester_of: TesterOf) -> None:
    failed: list[str] = []

    def handle(order: Order) -> str:
        if order.shop == "closed":
            raise Reject("closed on Sundays")
        if order.id == "o1" and not failed:
            failed.append(order.id)
            raise ConnectionError("the shop does not answer")
        return order.id

    tester = tester_of(pipeline_of(handle, retry=Retry(attempts=2, first_delay=MINUTE, max_delay=MINUTE)))
    tester.send(Order("o1", "north"), key="north", partition=0, settle=False)
    tester.send(Order("o2", "north"), key="north", partition=0, settle=False)
    tester.send(Order("o3", "south"), key="south", partition=0, settle=False)
    tester.send(Order("o4", "closed"), key="closed", partition=0, settle=False)
    tester.advance_time(timedelta(seconds=1))
    # The later events of other keys are done: a result, and a dead letter.
    assert [output.value for output in tester.outputs()] == ["o3"]
    assert [letter.value.id for letter in tester.dead_letters()] == ["o4"]
    tester.settle()
    assert [output.value for output in tester.outputs()] == ["o3", "o1", "o2"]


def loop_of(again: Callable[[int], int | None], wait_s: float = 0.0) -> Pipeline:
    """Its agent answers a number with another one, to its own source."""
    source = Topic("numbers", key=str, value=int)

    async def count(number: int) -> Output | None:
        await asyncio.sleep(wait_s)
        following = again(number)
        return None if following is None else Output(following, topic=source)

    return Pipeline("loop-test", source=source, agent=count)


@pytest.mark.parametrize("wait", ["advance_time", "settle", "settle_slowly"])
def test_an_agent_that_sends_to_its_own_source_without_end_is_named(wait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "OWN_OFFSETS", 200)
    with PipelineTester(loop_of(lambda number: number, wait_s=float(wait == "settle_slowly"))) as tester:
        tester.send(1, key="a", settle=False)
        with pytest.raises(NotSettled, match=r"agent 'count' sends to the pipeline's own source 'numbers'.*Let it end"):
            tester.advance_time(timedelta(seconds=1)) if wait == "advance_time" else tester.settle()


def test_one_that_comes_to_an_end_is_waited_for_and_one_that_takes_its_time_ends_with_the_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployment, "OWN_OFFSETS", 200)
    with PipelineTester(loop_of(lambda number: number - 1 if number else None)) as tester:
        tester.send(90, key="a")
        assert tester.counts.received == 91
    with PipelineTester(loop_of(lambda number: number + 1, wait_s=1.0)) as tester:
        tester.send(0, key="a", settle=False)
        tester.advance_time(timedelta(seconds=300))
        assert 290 <= tester.counts.received <= 300


def test_what_ends_a_test_is_no_failed_attempt_of_an_event() -> None:
    def interrupted(order: dict[str, int]) -> None:
        pytest.fail("the time is up")

    pipeline = Pipeline("limits-test-over", source=Topic("orders", value=dict), agent=interrupted)
    with pytest.raises(pytest.fail.Exception, match="the time is up"), PipelineTester(pipeline, partitions=1) as tester:
        tester.send({"n": 1}, key="a")


@pytest.mark.parametrize("ends", [KeyboardInterrupt, pytest.fail.Exception])
@pytest.mark.parametrize("sent", [{"value": Order("o1", "north")}, {"value": b"", "key": Order("o1", "north")}])
def test_what_ends_a_test_while_it_encodes_a_value_is_no_mistake_of_the_test(
    tester_of: TesterOf, ends: type[BaseException], sent: dict[str, Any]
) -> None:
    def interrupted(order: Order) -> bytes:
        raise ends("the time is up")

    codec = dataclasses.replace(codec_for(Order), encode=interrupted)
    tester = tester_of(
        Pipeline("limits-test", source=Topic("orders", key=codec, value=codec), agent=lambda order: None)
    )
    with pytest.raises(ends, match="the time is up"):
        tester.send(**sent)
