"""Work queue: events that failed and records of the source come by turns, so that neither keeps the other waiting."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from semel import Pipeline, Retry, Topic
from semel.state.parked import ParkedQueue, Queued
from semel.state.parked_event import ParkedEvent
from semel.state.store import StoreError
from semel.testing import PipelineTester

POISONED, HEALTHY, EVENTS = 40, 20, 500
CONCURRENCIES = [1, 2, 8]
# Where the events that come after the poisoned ones are: with them, or where nothing has failed.
PARTITIONS = [0, 1]


def pipeline(agent: Any, **declared: Any) -> Pipeline:
    return Pipeline("pay", source=Topic("events", value=int), agent=agent, sink=Topic("done", value=int), **declared)


def send(t: PipelineTester, partition: int = 0) -> None:
    for n in range(POISONED):
        t.send(n, key=f"k{n}", partition=0, settle=False)
    t.advance_time(timedelta(minutes=2))
    for n in range(POISONED, POISONED + HEALTHY):
        t.send(n, key=f"k{n}", partition=partition, settle=False)


def healthy_done(t: PipelineTester) -> bool:
    return sorted(out.value for out in t.outputs()) == [*range(POISONED, POISONED + HEALTHY)]


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("concurrency", CONCURRENCIES)
def test_an_agent_that_halts_at_poisoned_events_comes_to_those_behind_them(
    monkeypatch: pytest.MonkeyPatch, concurrency: int, partition: int
) -> None:
    """It tries one now and then; were that always one that has failed, nothing would ever succeed."""
    monkeypatch.setattr("semel.testing.deployment.HALT_AFTER", 10)

    async def handle(event: int) -> int:
        if event < POISONED:
            raise ValueError("poisoned")
        return event

    declared = pipeline(handle, concurrency=concurrency, retry=Retry(attempts=3))
    with PipelineTester(declared, partitions=2) as t:
        send(t, partition)
        t.advance_time(timedelta(minutes=25))
        assert healthy_done(t)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("concurrency", CONCURRENCIES)
def test_retries_that_take_all_there_is_keep_no_record_of_the_source_waiting(concurrency: int, partition: int) -> None:
    attempts = 0

    async def handle(event: int) -> int:
        nonlocal attempts
        if event < POISONED:
            attempts += 1
            await asyncio.sleep(1)
            raise ValueError("poisoned")
        return event

    delays = (timedelta(seconds=2),)
    declared = pipeline(handle, concurrency=concurrency, retry=Retry(delays=delays, then="park"))
    with PipelineTester(declared, partitions=2) as t:
        send(t, partition)
        t.advance_time(timedelta(seconds=2 * POISONED + HEALTHY))
        assert healthy_done(t)
        before = attempts
        t.advance_time(timedelta(seconds=10))
        assert attempts > before


@pytest.mark.parametrize("concurrency", CONCURRENCIES)
def test_records_of_the_source_that_take_all_there_is_keep_no_retry_waiting(concurrency: int) -> None:
    failed = 0

    async def handle(event: int) -> int:
        nonlocal failed
        if event == 0 and failed < 2:
            failed += 1
            raise ConnectionError("down")
        await asyncio.sleep(1)
        return event

    declared = pipeline(handle, concurrency=concurrency, retry=Retry(first_delay=timedelta(milliseconds=100)))
    with PipelineTester(declared, partitions=1) as t:
        for n in range(EVENTS):
            t.send(n, key=f"k{n}", settle=False)
        t.advance_time(timedelta(seconds=30))
        done = [out.value for out in t.outputs()]
        assert 0 in done and len(done) < EVENTS


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_store_that_fails_while_the_next_event_is_looked_for_is_all_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, concurrency: int
) -> None:
    down, event, failures = True, ParkedQueue.event, 0

    async def handle(number: int) -> int:
        if down:
            raise ConnectionError("down")
        return number

    def fails_once(queue: ParkedQueue, queued: Queued) -> ParkedEvent:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise StoreError("the disk is away")
        return event(queue, queued)

    declared = pipeline(handle, concurrency=concurrency, retry=Retry(delays=(timedelta(seconds=2),), then="park"))
    with PipelineTester(declared, partitions=3) as t:
        for n in range(6):
            t.send(n, key=f"k{n}", partition=n % 3, settle=False)
        t.advance_time(timedelta(seconds=1))
        down = False
        # Of a worker that has handled nothing yet.
        t.crash()
        monkeypatch.setattr(ParkedQueue, "event", fails_once)
        t.advance_time(timedelta(minutes=1))
        assert sorted(out.value for out in t.outputs()) == [*range(6)] and failures > 6
        assert [r.name for r in caplog.records if r.levelname == "ERROR"] == ["semel.engine"]
