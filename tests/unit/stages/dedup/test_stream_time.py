"""Stream time of pipelines without dedup: the events' own, in the epoch of the event that moved it, and refused to none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import orjson
import pytest

from semel import Dedup, Pipeline, Retry, Topic
from semel.state.positions import StreamTime
from semel.worker.view import EngineView
from tests.unit.harness import APP, World, dead_letters, given_up

HOUR = 3_600_000
A1 = "a1"
STYLES = ("stream", "batches", "function", "coroutine")


@dataclass
class Reading:
    id: str
    at: Any = None
    fails: int = 0
    sleep_ms: int = 0


def passing_on(world: World, style: str = "stream", *, time: Any = None, **declared: Any) -> Pipeline:
    async def each(readings: Any) -> Any:
        async for reading in readings:
            await world.work.attempt(reading)
            world.work.maybe_fail(reading)
            yield reading

    async def batches(readings: Any) -> Any:
        async for batch in readings.batches():
            for reading in batch:
                await world.work.attempt(reading)
                world.work.maybe_fail(reading)
                yield reading

    def at_once(reading: Reading) -> Reading:
        world.work.maybe_fail(reading)  # type: ignore[arg-type]
        return reading

    async def awaited(reading: Reading) -> Reading:
        await world.work.attempt(reading)  # type: ignore[arg-type]
        return at_once(reading)

    agents = {"stream": each, "batches": batches, "function": at_once, "coroutine": awaited}
    return Pipeline(
        APP,
        source=Topic("payments", value=Reading, time=time),
        agent=agents[style],
        sink=Topic("settlements", value=Reading),
        retry=Retry(attempts=2, first_delay=timedelta(milliseconds=20)),
        **declared,
    )


def send(world: World, id: str, *, at_ms: int | None = None, **fields: Any) -> None:
    world.write({"id": id, **fields}, A1, at_ms=at_ms)


def now_ms(world: World) -> int:
    return int(world.clock.time() * 1000)


def stream(world: World) -> StreamTime:
    return world.committed_positions()[world.place(A1).partition].stream_time


def ids(world: World) -> list[str]:
    return [orjson.loads(r.value or b"")["id"] for log in world.cluster.committed("settlements") for r in log]


def dead(world: World) -> list[str]:
    return [reason for _, reason in dead_letters([r for log in world.cluster.committed(f"{APP}.dlq") for r in log])]


@pytest.mark.parametrize("style", STYLES)
async def test_without_dedup_stream_time_is_the_greatest_timestamp(world: World, style: str) -> None:
    world.pipeline = passing_on(world, style)
    start = now_ms(world) - 10 * HOUR
    for n, ahead in enumerate((0, 500, 200, -20 * HOUR)):
        send(world, str(n), at_ms=start + ahead)
    worker = world.start()
    await world.drained()
    assert ids(world) == ["0", "1", "2", "3"]
    assert stream(world) == StreamTime(start + 500)
    tasks = EngineView(worker.engine).pipelines()[0]["tasks"]
    assert {task["stream_time_ms"] for task in tasks} == {start + 500, None}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("time", ["at", lambda reading: reading.at])
async def test_a_topic_says_what_gives_the_time_of_its_events(world: World, style: str, time: Any) -> None:
    world.pipeline = passing_on(world, style, time=time)
    start = now_ms(world) - 10 * HOUR
    for n, at in enumerate((start, "2020-01-01T00:00:00", start + 7, start + 3)):
        send(world, str(n), at=at)
    world.start()
    await world.drained()
    assert len(ids(world)) == 4
    assert stream(world) == StreamTime(start + 7)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("odd", [None, "yesterday", 1_764_150_000, 2**63 - 1])
async def test_an_event_whose_declared_time_cannot_be_read_is_a_dead_letter(world: World, style: str, odd: Any) -> None:
    world.pipeline = passing_on(world, style, time="at")
    start = now_ms(world) - HOUR
    send(world, "odd, first", at=odd)
    send(world, "good", at=start)
    send(world, "odd", at=odd)
    world.write(b"not json", A1)
    world.start()
    await world.drained()
    assert ids(world) == ["good"]
    assert dead(world) == ["missing", "missing", "undecodable"]
    assert all(error.startswith("the event time cannot be read: ") for _, error, _ in given_up(world)[:2])
    assert stream(world) == StreamTime(start)
    counts = world.committed_positions()[world.place(A1).partition].counts
    assert (counts["in"], counts["out"], counts["dead"]) == (4, 1, 3)


@pytest.mark.parametrize("style", STYLES)
async def test_a_record_without_a_timestamp_takes_effect_and_moves_nothing(world: World, style: str) -> None:
    world.pipeline = passing_on(world, style)
    start = now_ms(world) - HOUR
    send(world, "timeless", at_ms=-1)
    world.start()
    await world.drained()
    assert stream(world) == StreamTime()
    world.write(b"not json", A1, at_ms=start + 5)
    for id, at_ms in (("timed", start), ("timeless too", -1)):
        send(world, id, at_ms=at_ms)
    await world.drained()
    assert ids(world) == ["timeless", "timed", "timeless too"]
    assert stream(world) == StreamTime(start)


async def test_an_event_far_ahead_of_the_clock_takes_effect_and_moves_nothing(world: World) -> None:
    world.pipeline = passing_on(world, time="at")
    now = now_ms(world)
    for id, at in (("now", now - 10), ("future", now + 2 * HOUR), ("late", now - 5 * HOUR), ("soon", now + HOUR // 2)):
        send(world, id, at=at)
    world.start()
    await world.drained()
    assert ids(world) == ["now", "future", "late", "soon"]
    # Never past the wall clock.
    assert now - 10 <= (stream(world).ms or 0) <= now_ms(world)


async def test_one_bad_clock_does_not_move_stream_time_without_dedup_either_three_that_agree_do(world: World) -> None:
    world.pipeline = passing_on(world)
    start = now_ms(world) - 20 * HOUR
    for n, ahead in enumerate((0, 10 * HOUR, 1, 10 * HOUR, 10 * HOUR + 1)):
        send(world, str(n), at_ms=start + ahead)
    worker = world.start()
    await world.drained()
    assert stream(world) == StreamTime(start + 1, (start + 10 * HOUR, start + 10 * HOUR + 1))
    # What agrees is remembered over a restart.
    worker.kill()
    await worker.gone()
    world.lose_store("w1")
    world.start()
    send(world, "5", at_ms=start + 10 * HOUR + 2)
    await world.drained()
    assert stream(world) == StreamTime(start + 10 * HOUR + 2)
    assert len(ids(world)) == 6


async def test_several_agents_of_a_topic_are_one_witness_of_its_events_time(world: World) -> None:
    plan = passing_on(world).plan()
    world.plan = lambda: replace(plan, agents=[replace(plan.agents[0], name=name) for name in ("a", "b", "c")])
    start = now_ms(world) - 20 * HOUR
    send(world, "0", at_ms=start)
    world.start()
    await world.drained()
    send(world, "1", at_ms=start + 10 * HOUR)
    await world.drained()
    assert len(ids(world)) == 6
    assert stream(world) == StreamTime(start, (start + 10 * HOUR,))


async def test_a_tombstone_of_a_topic_with_a_time_has_its_timestamp(world: World) -> None:
    async def process(readings: Any) -> Any:
        async for _ in readings:
            pass

    world.pipeline = Pipeline(APP, source=Topic("payments", value=Reading | None, time="at"), agent=process)
    start = now_ms(world) - HOUR
    world.write({"id": "a", "at": start}, A1)
    world.write(None, A1, at_ms=start + 1)
    world.start()
    await world.drained()
    assert stream(world) == StreamTime(start + 1)
    assert dead(world) == []


@pytest.mark.parametrize("time", [None, "at"])
async def test_stream_time_is_of_the_events_below_the_position(world: World, time: Any) -> None:
    """Between two events of one slice the epoch may be cut, and events fail on their way."""
    world.pipeline = passing_on(world, time=time)
    start = now_ms(world) - 10 * HOUR

    async def let_commits_in(reading: Any) -> None:
        await asyncio.sleep(0.02)

    world.work.before = let_commits_in
    worker = world.start(commit_interval_ms=1)
    await world.until_running(worker)
    for n in range(30):
        at = start + n * 60_000
        if n % 5 == 4:
            world.write(b"not json", A1, at_ms=at)
        else:
            # What is given up moves stream time as what takes effect does.
            send(world, str(n), at_ms=at, at=at, fails={7: -1, 11: 1}.get(n, 0))
    await world.drained()
    assert worker.engine.stats["commits"] > 5
    p = world.place(A1).partition
    records = [r for r in world.cluster.committed("payments")[p] if r.value != b"not json"]
    for position in world.position_history()[p]:
        at = position.topics["payments"].next
        assert position.stream_time.ms == max((r.timestamp for r in records if r.offset < at), default=None)


@pytest.mark.parametrize("style", STYLES)
async def test_the_time_of_a_topic_and_of_its_dedup_rule_are_one(world: World, style: str) -> None:
    rules: list[tuple[Any, Any]] = [("at", None), (None, "at"), ("at", "at")]
    plans = [
        passing_on(world, style, time=of_topic, dedup=Dedup("id", window=timedelta(hours=1), time=of_rule)).plan()
        for of_topic, of_rule in rules
    ]
    assert len({(plan.shape(), plan.types(), plan.program) for plan in plans}) == 1
    assert {plan.agents[0].event_time(plan.sources["payments"]) for plan in plans} == {"at"}
    # What was stored under one is read under another.
    start = now_ms(world) - 20 * HOUR
    for n, (of_topic, of_rule) in enumerate(rules):
        rule = Dedup("id", window=timedelta(hours=1), time=of_rule)
        world.pipeline = passing_on(world, style, time=of_topic, dedup=rule)
        worker = world.start()
        send(world, f"new {n}", at=start + n * HOUR // 2)
        send(world, "again", at=start)
        await world.drained()
        assert stream(world).ms == start + n * HOUR // 2
        await worker.stop()
    assert ids(world) == ["new 0", "again", "new 1", "new 2"]


async def test_stream_time_begins_anew_where_something_else_gives_the_time(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    start = now_ms(world) - 2000 * HOUR
    for n, time in enumerate((None, "at", "at")):
        world.pipeline = passing_on(world, time=time)
        caplog.clear()
        worker = world.start()
        send(world, str(n), at=start + n)
        await world.drained()
        await worker.stop()
        assert ("what gives the time of events of payments is another" in caplog.text) == (n == 1)
        assert (stream(world).ms == start + n) == (n > 0)
    assert stream(world).ms == start + 2


async def test_a_position_of_before_without_stream_time_goes_on(world: World) -> None:
    """The version before had no stream time without dedup."""
    world.pipeline = passing_on(world)
    start = now_ms(world) - HOUR
    send(world, "timeless", at_ms=-1)
    worker = world.start()
    await world.drained()
    await worker.stop()
    assert stream(world).ms is None
    send(world, "timed", at_ms=start)
    world.start()
    await world.drained()
    assert ids(world) == ["timeless", "timed"] and stream(world).ms == start
