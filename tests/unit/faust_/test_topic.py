"""What is sent, by whomever: once, with the event it belongs to, or not at all."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from semel.errors import DeclarationError, StaleIncarnation
from semel.memory.faults import lose_answer, lose_request, refuse
from semel.state.event_context import FAILED_ATTEMPTS, EventHistory, EventStatus
from semel.worker.deadline import Threads
from tests.unit.faust_.harness import Stage


async def test_what_a_task_of_a_failed_attempt_sends_is_not_committed(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.topic("orders")
    app = stage.app()
    out = app.topic("out")
    ends: list[BaseException] = []

    async def later(attempt: int) -> None:
        await asyncio.sleep(0.01)
        try:
            await out.send(value=attempt)
        except StaleIncarnation as exc:
            ends.append(exc)

    tasks: list[asyncio.Task[None]] = []

    @app.agent(app.topic("orders", value_type=int))
    async def orders(stream: Any) -> None:
        async for _ in stream:
            tasks.append(asyncio.create_task(later(len(tasks))))
            if len(tasks) < 4:
                raise ValueError("not yet")

    stage.send("orders", 1)
    await stage.start(app)
    await stage.done(app, 1)
    await stage.clock.sleep(1)
    assert stage.read("out") == [3]
    assert len(ends) == 3
    assert ["after that event was undone" in r.getMessage() for r in caplog.records].count(True) == 1


async def test_what_a_task_sends_while_its_event_is_uncommitted_commits_with_it(stage: Stage) -> None:
    """An epoch that is undone takes it along; the event is handled again, and so is the task."""
    stage.topic("orders")
    app = stage.app(commit_interval_ms=200)
    out = app.topic("out")
    started: list[asyncio.Task[Any]] = []

    @app.agent(app.topic("orders", value_type=int))
    async def orders(stream: Any) -> None:
        async for value in stream:
            started.append(asyncio.create_task(out.send(value=value)))

    lost = stage.cluster.faults.add("AddOffsetsToTxn", refuse(48))
    stage.send("orders", 7)
    await stage.start(app)
    await stage.done(app, 1)
    await stage.clock.sleep(2)
    assert lost.hits == 1
    assert len(started) == 2
    assert stage.read("out") == [7]


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
async def test_what_a_task_sends_while_its_epoch_has_no_answer_counts_if_that_epoch_does(
    stage: Stage, arrives: bool
) -> None:
    stage.topic("orders")
    app = stage.app()
    out = app.topic("out")
    handled: list[int] = []
    sending: list[asyncio.Task[Any]] = []

    async def when_sealed(value: int) -> None:
        while not ending.hits:  # noqa: ASYNC110  (a rule is no event)
            await asyncio.sleep(0.001)
        await out.send(value=value)

    @app.agent(app.topic("orders", value_type=int))
    async def orders(stream: Any) -> None:
        async for value in stream:
            handled.append(value)
            sending.append(asyncio.create_task(when_sealed(value)))

    await stage.running(await stage.start(app))
    await stage.clock.sleep(1)  # the epoch of the event is not the first one, in which the position is noted
    ending = stage.cluster.faults.add("EndTxn", lose_answer(after_s=0.5) if arrives else lose_request(after_s=0.5))
    stage.send("orders", 7)
    await stage.done(app, 1)
    await stage.clock.sleep(5)
    assert len(handled) == (1 if arrives else 2)
    assert stage.read("out") == [7]


async def test_a_message_sent_long_after_its_event_survives_a_rebalance_and_so_does_the_worker(stage: Stage) -> None:
    stage.topic("orders", 2)
    app = stage.app(topic_partitions=1)
    out = app.topic("out")

    async def later(value: int) -> None:
        await asyncio.sleep(6)
        await out.send(value=value)

    @app.agent(app.topic("orders", value_type=int))
    async def orders(stream: Any) -> None:
        async for value in stream:
            app.add_future(later(value))

    await stage.running(await stage.start(app))
    stage.send("orders", 1)
    await stage.done(app, 1)
    app.engine.group.request_rejoin()
    await stage.clock.sleep(8)
    await stage.until(lambda: stage.read("out") == [1])
    assert app.crash_reason is None


async def test_a_future_of_an_event_that_is_undone_ends_without_its_message_and_without_the_worker(
    stage: Stage,
) -> None:
    stage.topic("orders")
    app = stage.app()
    out = app.topic("out")
    attempts: list[int] = []

    async def later(attempt: int) -> None:
        await asyncio.sleep(0.01)
        await out.send(value=attempt)

    @app.agent(app.topic("orders", value_type=int))
    async def orders(stream: Any) -> None:
        async for _ in stream:
            attempts.append(len(attempts))
            app.add_future(later(attempts[-1]))
            if len(attempts) == 1:
                raise ValueError("once")

    stage.send("orders", 1)
    await stage.start(app)
    await stage.done(app, 1)
    await stage.until(lambda: stage.read("out") == [1])
    assert app.crash_reason is None


async def test_a_callback_is_called_once_when_what_was_sent_is_committed(stage: Stage) -> None:
    stage.topic("orders")
    app = stage.app()
    out = app.topic("out")
    told: list[tuple[int, int]] = []
    attempts = 0

    def committed(attempt: int, sent: Any) -> None:
        told.append((attempt, len(stage.read("out"))))

    @app.agent(app.topic("orders", value_type=int))
    async def orders(stream: Any) -> None:
        nonlocal attempts
        async for value in stream:
            attempts += 1
            await out.send(value=value, callback=partial(committed, attempts))
            if attempts == 1:
                raise ValueError("once")

    stage.send("orders", 1)
    await stage.start(app)
    await stage.done(app, 1)
    await stage.until(lambda: told)
    assert told == [(2, 1)]
    told.clear()
    await (await out.send(value=2, callback=partial(committed, 0)))
    assert told == [(0, 2)]


async def test_a_partitioner_of_ones_own_places_what_is_sent(stage: Stage) -> None:
    stage.topic("orders", 4)
    app = stage.app(producer_partitioner=lambda key, every, available: every[int(key) % 2])
    out = app.topic("out", key_type=str)

    @app.agent(app.topic("orders", value_type=int))
    async def orders(stream: Any) -> None:
        async for value in stream:
            await out.send(key=str(value), value=value)

    stage.send("orders", *range(6))
    await stage.start(app)
    await stage.done(app, 6)
    found = [[r.value for r in records] for records in stage.cluster.committed("out")]
    assert found == [[b"0", b"2", b"4"], [b"1", b"3", b"5"], [], []]


async def test_an_output_topic_is_created_as_it_was_declared(stage: Stage) -> None:
    stage.topic("orders", 2)
    app = stage.app()
    out = app.topic(
        "out", partitions=3, retention=3600, compacting=True, deleting=True, config={"max.message.bytes": 2_000_000}
    )
    sunk = app.topic("sunk", retention=60)

    @app.agent(app.topic("orders", value_type=int), sink=[sunk])
    async def orders(stream: Any) -> Any:
        async for value in stream:
            await out.send(value=value)
            yield value

    stage.send("orders", 1)
    await stage.start(app)
    await stage.done(app, 1)
    topic = stage.cluster.known_topic("out")
    assert topic is not None
    assert len(topic.logs) == 3
    said = {"retention.ms": "3600000", "cleanup.policy": "compact,delete", "max.message.bytes": "2000000"}
    assert said.items() <= dict(topic.configs).items()
    sink = stage.cluster.known_topic("sunk")
    assert sink is not None
    assert dict(sink.configs)["retention.ms"] == "60000"


async def test_what_a_topic_cannot_be_is_refused_where_it_is_declared(stage: Stage) -> None:
    app = stage.app()
    with pytest.raises(DeclarationError, match="replication_factor=3"):
        app.topic("orders", replicas=3)
    with pytest.raises(DeclarationError, match="acks=False"):
        app.topic("orders", acks=False)
    assert stage.app(replication_factor=3).topic("orders", replicas=3).replicas == 3


def test_attempts_that_failed_are_known_within_a_bound_and_older_ones_count_as_undone() -> None:
    history = EventHistory()
    for number in range(1, FAILED_ATTEMPTS + 3):
        history.failed(number)
    history.commit(FAILED_ATTEMPTS + 10)
    assert history.status(FAILED_ATTEMPTS + 3, alive=False) is EventStatus.COMMITTED
    assert history.status(FAILED_ATTEMPTS + 2, alive=False) is EventStatus.VOID
    assert history.status(1, alive=False) is EventStatus.VOID
    assert len(history._failed) == FAILED_ATTEMPTS


@pytest.mark.parametrize("way", ["wait_for", "executor", "own task"])
async def test_what_a_failed_attempt_sends_is_undone_however_the_agent_came_by_its_event(
    stage: Stage, way: str
) -> None:
    stage.topic("orders")
    app = stage.app()
    out = app.topic("out")
    attempts: list[int] = []
    loop = asyncio.get_running_loop()

    def in_a_thread(value: int) -> None:
        asyncio.run_coroutine_threadsafe(out.send(value=value), loop).result(10)

    async def handle(value: int) -> None:
        attempts.append(value)
        if way == "executor":
            await loop.run_in_executor(None, in_a_thread, len(attempts))
        else:
            await out.send(value=len(attempts))
        if len(attempts) < 4:
            raise ValueError("not yet")

    @app.agent(app.topic("orders", value_type=int))
    async def orders(stream: Any) -> None:
        events = aiter(stream)
        while True:
            if way == "wait_for":
                await handle(await asyncio.wait_for(anext(events), 60))
            elif way == "own task":
                await handle(await asyncio.create_task(anext(events)))
            else:
                await handle(await anext(events))

    stage.send("orders", 1)
    loop.set_default_executor(Threads())
    await stage.start(app)
    await stage.done(app, 1)
    await stage.clock.sleep(1)
    assert stage.read("out") == [4]
