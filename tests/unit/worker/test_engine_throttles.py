"""Brokers that ask to wait: the client does, the transaction does not suffer from it, and it is said and counted."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest

from semel.local.watch import Watch, WorkerState
from semel.memory.faults import Call, Fault, Quota, throttle
from semel.port import TP
from semel.worker.metrics import exposition
from semel.worker.view import EngineView
from tests.unit.harness import World

COMMIT = ("AddPartitionsToTxn", "AddOffsetsToTxn", "Produce", "TxnOffsetCommit", "EndTxn")


def aborted_records(world: World) -> int:
    """Of the sink, in the log and not committed."""
    there = sum(world.cluster.log(TP("settlements", p)).end for p in range(world.partitions))
    committed = sum(len(records) for records in world.cluster.committed("settlements"))
    return there - committed


async def under_a_quota(world: World, bytes_per_s: float, events: int = 400) -> Quota:
    world.pay_many(events)
    quota = Quota(world.clock.monotonic, bytes_per_s)
    world.cluster.faults.script(quota)
    world.start()
    await world.drained(within_s=3_000)
    world.check()
    return quota


@pytest.mark.parametrize("bytes_per_s", [300_000, 30_000, 3_000])
async def test_a_producer_quota_means_waiting_and_not_one_transaction_is_lost_to_it(
    world: World, bytes_per_s: int, caplog: pytest.LogCaptureFixture
) -> None:
    quota = await under_a_quota(world, bytes_per_s)
    [worker] = world.workers.values()
    assert quota.early == 0
    assert (worker.engine.stats["unknown"], worker.engine.stats["aborts"]) == (0, 0)
    # Of each transaction its marker.
    assert aborted_records(world) <= 2 * worker.engine.stats["commits"]
    if bytes_per_s == 3_000:
        assert max(quota.waits) > 5, "longer than a commit may take"
        [said] = [r for r in caplog.records if "throttles Produce" in r.getMessage()][:1]
        assert said.levelno == logging.WARNING


async def test_a_throttled_worker_keeps_its_place_in_the_group(world: World) -> None:
    quota = await under_a_quota(world, 2_000)
    [worker] = world.workers.values()
    assert max(quota.waits) > 10, "longer than its session"
    assert worker.engine.stats["rebalances"] == 1
    assert worker.engine.stats["fences"] == 0


@pytest.mark.parametrize(
    "api", [*COMMIT, "Heartbeat", "OffsetFetch", "ListOffsets", "Fetch", "Metadata", "InitProducerId"]
)
async def test_any_request_may_be_throttled(world: World, api: str) -> None:
    told: list[Call] = []

    def each(call: Call) -> Fault | None:
        if call.api != api:
            return None
        told.append(call)
        return throttle(0.3)

    world.cluster.faults.script(each)
    world.pay_many(60)
    worker = world.start()
    await world.clock.sleep(2)
    world.pay_many(60)
    await world.drained(within_s=300)
    world.check()
    assert told
    assert worker.engine.stats["unknown"] == 0
    assert worker.engine.broker.throttles.answers[api] == len(told)


async def test_requests_of_a_kind_are_as_far_apart_as_the_broker_asked(world: World) -> None:
    at: list[float] = []

    def each(call: Call) -> Fault | None:
        if call.api != "Produce":
            return None
        at.append(world.clock.monotonic())
        return throttle(0.7)

    world.cluster.faults.script(each)
    world.start()
    for _ in range(30):
        world.pay_many(5)
        await world.clock.sleep(0.1)
    await world.drained()
    assert len(at) > 2
    assert min(b - a for a, b in pairwise(at)) >= 0.69


async def test_a_transaction_that_would_outlive_itself_is_begun_anew_and_smaller(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many requests an epoch, each throttled: what cannot end in time is given up before its end is asked for."""
    monkeypatch.setattr("semel.stages.commit.transaction.BATCH_BYTES", 2_000)
    quota = await under_a_quota(world, 3_000, events=300)
    [worker] = world.workers.values()
    assert quota.early == 0
    assert worker.engine.stats["unknown"] == 0
    assert aborted_records(world) < 3_000


async def test_what_brokers_ask_to_wait_is_counted_and_shown(world: World) -> None:
    world.cluster.faults.add("Produce", throttle(8.0), times=1)
    worker = world.start()
    world.pay_many(10)
    await world.until(lambda: worker.engine.broker.throttles.answers["Produce"] == 1)
    view = EngineView(worker.engine)
    assert view.pipelines()[0]["throttled_s"] > 7
    assert list(view.pipelines()[0]["throttled"]) == ["Produce"]
    assert view.readiness()[0]
    text = exposition(worker.engine).decode()
    assert 'semel_broker_throttles_total{pipeline="payments",request="Produce"} 1.0' in text
    assert 'semel_broker_throttled_seconds_total{pipeline="payments",request="Produce"} 8.0' in text
    world.pay_many(10)
    await world.drained()
    assert (view.pipelines()[0]["throttled_s"], view.pipelines()[0]["throttled"]) == (0, {})
    world.check()


async def test_a_worker_that_restores_nothing_for_a_quota_says_for_how_long(world: World) -> None:
    """Seed 20261205 of chaos: a broker asked to wait 98 s with Fetch, and what showed was a task that restores."""
    await world.settled()
    world.lose_store("w1")
    world.cluster.faults.add("Fetch", throttle(98.0), times=1)
    worker = world.start()
    await world.until(lambda: worker.engine.broker.throttles.answers["Fetch"] == 1)
    view = EngineView(worker.engine).pipelines()[0]
    assert view["throttled_s"] == 0
    assert 97 < view["throttled"]["Fetch"] <= 98
    watch = Watch("payments", 2, {"w1": WorkerState("w1", "http://w1")})
    watch.hear("w1", view)
    assert any(line.startswith("w1: waits with Fetch for 9") for line in watch.trouble())


async def test_a_worker_that_is_told_to_stop_while_it_is_throttled_stops_and_loses_nothing(world: World) -> None:
    world.cluster.faults.add("Produce", throttle(3_600.0), times=1)
    worker = world.start()
    world.pay_many(10)
    await world.until(lambda: worker.engine.broker.throttles.answers["Produce"] == 1)
    world.pay_many(10)
    await worker.stop()
    world.start("w2")
    await world.drained(within_s=120)
    world.check()
