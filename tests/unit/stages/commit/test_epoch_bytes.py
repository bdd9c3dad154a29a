"""An epoch is bounded in bytes, whatever comes in and however little the brokers take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from semel import Output, Table
from semel.errors import CarryOverFull
from semel.memory.faults import Call, Fault, delay, lose_request, refuse, unsent
from semel.port import TP
from semel.runtime.budget import shares
from semel.stages.agent.agent_loop import _run_stream
from semel.stages.commit.committer import EPOCH_LEAST_BYTES
from semel.stages.sink.destination import ProducerRecord
from semel.state.event_context import EventContext, EventStatus
from tests.unit.harness import APP, Payment, Settlement, Work, Worker, World, payments_pipeline

BUDGET = 64 << 20
SHARES = shares(BUDGET)


def large_results(
    work: Work, size: int, *, style: str = "coroutine", each: int = 1
) -> Callable[[tuple[Table, Table]], Any]:
    """The usual agent, whose results come with headers of `size` bytes; the amount says how many there are."""

    def make(tables: tuple[Table, Table]) -> Any:
        balances, journals = tables

        def book(payment: Payment) -> Output:
            work.handled.append(payment.id)
            balances[payment.account] += payment.amount
            journals[payment.account].append(payment.id)
            del journals[payment.account][:-20]
            settled = Settlement(payment.id, payment.account, balances[payment.account])
            return Output(settled, headers={"pad": b"x" * size, "of": payment.id.encode()})

        async def one(payment: Payment) -> Output:
            return book(payment)

        async def stream(payments: Any) -> Any:
            async for payment in payments:
                yield book(payment)

        async def batches(payments: Any) -> Any:
            async for batch in payments.batches():
                for payment in batch:
                    yield book(payment)

        return {"coroutine": one, "stream": stream, "batches": batches}[style]

    return make


def takes(world: World, bytes_per_s: float) -> None:
    """The brokers take so many bytes a second; a request that takes longer than the client waits arrives all the same."""

    def script(call: Call) -> Fault | None:
        if call.api != "Produce":
            return None
        return delay(there_s=sum(map(len, call.args["batches"].values())) / bytes_per_s)

    world.cluster.faults.script(script)


@pytest.mark.parametrize("style", ["coroutine", "stream", "batches"])
async def test_an_epoch_holds_no_more_than_its_share_however_long_the_commit_before_it_takes(
    world: World, style: str
) -> None:
    world.pipeline = payments_pipeline(world.work, make=large_results(world.work, 100_000, style=style))
    worker = world.start(memory_budget_bytes=BUDGET)
    await world.until_running(worker)
    reached, go = worker.hold_at("commit.before_partitions")
    most = 0
    world.pay("a1")
    await reached.wait()
    for _ in range(400):
        world.pay()
    for _ in range(300):
        await world.clock.sleep(0.01)
        most = max(most, worker.engine.epoch.bytes, sum(out.size for out in worker.engine.epoch.outputs))
    go.set()
    # An event that runs when the epoch is full ends in it; a batch is one unit.
    unit = 300_000 if style != "batches" else 256 * 110_000
    assert SHARES.epoch / 2 < most < SHARES.epoch + unit
    await world.drained()
    world.check()


@pytest.mark.parametrize("style", ["coroutine", "batches"])
async def test_brokers_that_take_little_get_smaller_epochs_until_they_commit(world: World, style: str) -> None:
    world.pipeline = payments_pipeline(world.work, make=large_results(world.work, 20_000, style=style))
    takes(world, 200_000)
    worker = world.start()
    for _ in range(200):
        world.pay()
    await world.drained(within_s=300)
    assert worker.engine.stats["unknown"] < 15
    assert worker.engine.epoch.limit_bytes < worker.engine.shares.epoch
    world.cluster.faults.clear()
    for _ in range(30):
        world.pay()
        await world.clock.sleep(0.2)
    await world.drained()
    # And larger ones again when they take more.
    assert worker.engine.epoch.limit_bytes == worker.engine.shares.epoch
    world.check()


def one_is_huge(results: int, size: int) -> Any:
    """The usual agent, but each result takes `size` bytes, and the event "huge" has so many of them."""

    def make(tables: tuple[Table, Table]) -> Any:
        balances, journals = tables

        async def pay_out(payments: Any) -> Any:
            async for payment in payments:
                balances[payment.account] += payment.amount
                journals[payment.account].append(payment.id)
                for _ in range(results if payment.id == "huge" else 1):
                    yield Output(
                        Settlement(payment.id, payment.account, balances[payment.account]),
                        headers={"pad": b"x" * size},
                    )

        return pay_out

    return make


async def test_one_event_whose_results_are_more_than_a_transaction_may_carry_is_dead_lettered(world: World) -> None:
    world.pipeline = payments_pipeline(world.work, make=one_is_huge(60, 500_000))
    world.start(memory_budget_bytes=BUDGET)
    for _ in range(5):
        world.pay("a1")
    world.pay("a1", 1000, id="huge")
    for _ in range(5):
        world.pay("a1")
    await world.drained()
    results = [orjson.loads(r.value or b"") for log in world.cluster.committed("settlements") for r in log]
    assert [r["balance"] for r in results] == list(range(1, 11))
    (dead,) = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]
    said = {name: (content or b"").decode() for name, content in dead.headers}
    assert said["semel.reason"] == "failed" and str(SHARES.event) in said["semel.error"]


async def test_one_event_that_never_gets_through_to_the_brokers_is_dead_lettered_and_the_others_are_not(
    world: World,
) -> None:
    world.pipeline = payments_pipeline(world.work, make=one_is_huge(40, 100_000))
    takes(world, 400_000)
    worker = world.start()
    for _ in range(8):
        world.pay("a1")
    world.pay("a1", 1000, id="huge")
    for _ in range(8):
        world.pay("a1")
    await world.drained(within_s=600)
    results = [orjson.loads(r.value or b"") for log in world.cluster.committed("settlements") for r in log]
    assert [r["balance"] for r in results] == list(range(1, 17))
    (dead,) = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]
    said = {name: (content or b"").decode() for name, content in dead.headers}
    assert said["semel.reason"] == "refused" and "commit_timeout_ms" in said["semel.error"]
    assert worker.engine.stats["unknown"] < 25


async def test_brokers_that_stall_dead_letter_nothing(world: World) -> None:
    world.pipeline = payments_pipeline(world.work, make=large_results(world.work, 200_000))
    worker = world.start()
    await world.until_running(worker)
    for _ in range(40):
        world.pay()
    world.cluster.faults.add("Produce", delay(there_s=30.0), times=12)
    await world.drained(within_s=600)
    assert worker.engine.stats["unknown"] >= 10
    world.check()
    assert not [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]


def six_results_each(size: int) -> Callable[[tuple[Table, Table]], Any]:
    """The usual agent, but each event's results are several, of `size` bytes, for two partitions of the sink."""

    def make(tables: tuple[Table, Table]) -> Any:
        balances, journals = tables

        async def pay_out(payments: Any) -> Any:
            async for payment in payments:
                balances[payment.account] += payment.amount
                journals[payment.account].append(payment.id)
                settled = Settlement(payment.id, payment.account, balances[payment.account])
                for key in ("a1", "a2", "a3", "a4", "a5", "a6"):
                    yield Output(settled, key=key, headers={"pad": b"x" * size})

        return pay_out

    return make


@pytest.mark.parametrize(
    "fault",
    [refuse(6), refuse(7), unsent(), lose_request(after_s=1.5), delay(there_s=30.0), delay(there_s=1.0)],
    ids=[
        "has no leader",
        "asks to come again",
        "is unreachable",
        "breaks off",
        "stands still",
        "stands still for a while",
    ],
)
async def test_an_outage_of_one_sink_partition_dead_letters_nothing(world: World, fault: Fault) -> None:
    """The other takes its part of each epoch meanwhile."""
    world.pipeline = payments_pipeline(world.work, make=six_results_each(100_000))
    worker = world.start()
    await world.until_running(worker)
    out = {TP("settlements", 0)}
    until = world.clock.monotonic() + 200

    def script(call: Call) -> Fault | None:
        away = world.clock.monotonic() < until and call.api == "Produce" and out & set(call.args["batches"])
        return fault if away else None

    world.cluster.faults.script(script)
    for _ in range(20):
        world.pay("a1")
    await world.clock.sleep(200)
    await world.drained(within_s=600)
    assert not [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]
    results = [orjson.loads(r.value or b"") for log in world.cluster.committed("settlements") for r in log]
    assert sorted(r["balance"] for r in results) == sorted([*range(1, 21)] * 6)


async def test_rows_count_as_results_do_and_one_written_again_and_again_counts_once(world: World) -> None:
    def make(tables: tuple[Table, Table]) -> Any:
        journals = tables[1]

        async def note(payment: Payment) -> None:
            for n in range(payment.amount):
                account = payment.account if payment.id == "same" else f"{payment.account}{n}"
                journals[account] = ["x" * 400_000]

        return note

    world.partitions = 1
    world.cluster.delete_topics(["payments"])
    world.cluster.create_topic("payments", 1)
    world.pipeline = payments_pipeline(world.work, make=make)
    world.start(memory_budget_bytes=BUDGET)
    world.pay("a", 100, id="same")
    world.pay("b", 100, id="many")
    world.pay("c", 2, id="two")
    await world.drained()
    (dead,) = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]
    assert dict(dead.headers)["semel.offset"] == b"1"
    keys = {r.key for r in world.cluster.committed(f"{APP}-journals-changelog")[0]}
    assert keys == {b"a", b"c0", b"c1"}


def note(value: bytes) -> ProducerRecord:
    return ProducerRecord(TP("notes", 0), None, b"k", value, (), len(value) + 100)


async def test_outputs_without_an_event_wait_within_their_share_of_bytes(world: World) -> None:
    world.cluster.create_topic("notes", 1)
    worker = world.start(memory_budget_bytes=BUDGET)
    await world.until_running(worker)
    reached, go = worker.hold_at("commit.before_partitions")
    done = [worker.engine.outbox(note(b"first"))]
    await reached.wait()
    with pytest.raises(CarryOverFull, match="memory_budget_bytes"):
        for _ in range(100):
            done.append(worker.engine.outbox(note(b"x" * 100_000)))
    assert SHARES.outbox - 100_500 < 100_000 * (len(done) - 1) <= SHARES.outbox
    go.set()
    await asyncio.gather(*done)
    assert len(world.cluster.committed("notes")[0]) == len(done)
    await worker.engine.outbox(note(b"x" * 100_000))


async def with_an_open_epoch(world: World) -> tuple[Worker, Callable[[bytes], Any], asyncio.Event]:
    """A worker with an event done in its open epoch, what a task sends that has outlived it, and what lets the epoch go."""
    world.cluster.create_topic("notes", 1)
    worker = world.start(memory_budget_bytes=BUDGET)
    await world.until_running(worker)
    reached, go = worker.hold_at("commit.before_partitions")
    world.pay("a1")
    await reached.wait()
    world.pay("a1")
    await world.clock.sleep(1)
    [context] = [runner.context for runner in worker.engine.runners]
    number = context.event
    assert context.history.status(number, alive=context.alive) is EventStatus.OPEN

    def send(value: bytes) -> Any:
        return worker.engine.follow(context, number, note(value))

    return worker, send, go


async def test_what_a_task_sends_that_has_outlived_its_event_counts_in_the_open_epoch(world: World) -> None:
    worker, send, go = await with_an_open_epoch(world)
    engine, sent = worker.engine, 0
    while not engine.epoch.closed:
        assert send(b"x" * 1_000_000) is None
        sent += 1
        assert sent < 100
    held = sum(out.size for out in engine.epoch.outputs)
    assert held - 1_000_000 < engine.epoch.limit_bytes <= engine.epoch.bytes
    assert abs(engine.epoch.bytes - held) < 1_000
    go.set()
    await world.drained()
    assert len(world.cluster.committed("notes")[0]) == sent
    assert not engine.epoch.closed


async def test_tasks_that_have_outlived_their_events_send_no_more_than_their_share_into_one_epoch(world: World) -> None:
    _, send, go = await with_an_open_epoch(world)
    sent = 0
    with pytest.raises(CarryOverFull, match="memory_budget_bytes"):
        for _ in range(1_000):
            send(b"x" * 100_000)
            sent += 1
    assert SHARES.event - 200_000 < 100_000 * sent <= SHARES.event
    go.set()
    await world.drained()
    assert len(world.cluster.committed("notes")[0]) == sent
    assert send(b"x" * 100_000) is None
    world.pay("a1")
    await world.drained()
    assert len(world.cluster.committed("notes")[0]) == sent + 1


def test_no_epoch_is_made_smaller_than_an_event_of_a_usual_size() -> None:
    assert shares(BUDGET).epoch > EPOCH_LEAST_BYTES


async def test_an_agent_that_yields_without_end_lets_go_of_the_loop() -> None:
    """In real time, which passes while it yields: in virtual time it does not."""
    turns = yielded = 0

    async def endless(_: Any) -> Any:
        nonlocal yielded
        while turns < 3:
            yielded += 1
            assert yielded < 10_000_000
            yield yielded

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    runner: Any = SimpleNamespace(
        plan=SimpleNamespace(run=endless),
        make_stream=lambda _: None,
        on_result=lambda found: None,
        services=SimpleNamespace(clock=SimpleNamespace(monotonic=time.monotonic)),
    )
    other = asyncio.create_task(others())
    await _run_stream(runner, EventContext())
    other.cancel()
    assert yielded > 1
