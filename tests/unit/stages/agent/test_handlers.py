"""What a handler may do to its epoch: take long, fail, break off, write too much. The others go on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from semel import Dedup, Output, Topic
from semel.errors import CommitError
from semel.memory.faults import Call, Fault, refuse
from semel.port import TP
from semel.stages.sink.destination import ProducerRecord
from tests.unit.harness import (
    APP,
    WINDOW,
    Settlement,
    World,
    committed_values,
    dead_letters,
    folded,
    payments_pipeline,
)

STYLES = ["stream", "coroutine", "batches"]


def outputs(world: World) -> list[bytes]:
    return [r.value or b"" for log in world.cluster.committed("settlements") for r in log]


def all_dead(world: World) -> list[tuple[int, str]]:
    return dead_letters([r for log in world.cluster.committed(f"{APP}.dlq") for r in log])


@pytest.mark.parametrize("style", STYLES)
async def test_a_failing_event_is_tried_again_without_a_trace_then_dead_lettered(world: World, style: str) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    world.pay("a1", 5)
    world.pay("a1", 7, fails=2)
    world.pay("a1", 11, fails=-1)
    world.pay("a1", 13)
    world.start()
    await world.drained()
    # Balances 5, 12, 25: the event that failed for good is in none of them.
    world.check()
    assert len(outputs(world)) == 3


@pytest.mark.parametrize("style", STYLES)
async def test_any_mix_of_input_is_done_once_whatever_kind_of_agent_handles_it(world: World, style: str) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    world.start()
    for _ in range(20):
        world.pay_many(40)
        await world.clock.sleep(0.02)
    await world.drained()
    world.check()


@pytest.mark.parametrize("style", STYLES)
async def test_a_slow_event_is_left_out_of_the_epoch_and_counts_when_it_is_done(world: World, style: str) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    worker = world.start(handler_timeout_ms=200)
    await world.until_running(worker)
    # One runner does both partitions, one event after the other: what came before the slow one is committed meanwhile.
    world.pay("a1", 1)
    world.pay("a1", 2, sleep_ms=3_000)
    world.pay("a1", 4)
    await asyncio.sleep(1.5)
    assert len(outputs(world)) == (0 if style == "batches" else 1)
    if style != "batches":
        assert worker.engine.stats["left_out"] == 1
    await world.drained()
    world.check()


async def test_a_commit_waits_for_no_event(world: World) -> None:
    world.cluster.create_topic("notes", 1)
    worker = world.start(handler_timeout_ms=60_000)
    await world.until_running(worker)
    world.pay("a1", 1, sleep_ms=10_000)
    await asyncio.sleep(1)
    before = world.clock.monotonic()
    for n in range(5):
        await worker.engine.outbox(ProducerRecord(TP("notes", 0), None, b"k", str(n).encode(), ()))
    assert world.clock.monotonic() - before < 2
    assert outputs(world) == []
    await world.drained()
    world.check()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("handler_timeout_ms", "attempts"), [(5_000, 1), (500, 2)], ids=["it ends", "it takes too long"]
)
async def test_a_last_commit_waits_for_the_event_that_runs(
    world: World, style: str, handler_timeout_ms: int, attempts: int
) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    worker = world.start(handler_timeout_ms=handler_timeout_ms)
    await world.until_running(worker)
    world.pay("a1", 1, id="slow", sleep_ms=2_000)
    await asyncio.sleep(1)
    await worker.stop()
    assert len(outputs(world)) == 2 - attempts
    world.start()
    await world.drained()
    world.check()
    assert world.work.handled.count("slow") == attempts


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("fate", [refuse(48), refuse(22), Fault(lost=True, answer_delay_s=0.1)],
                         ids=["aborted", "rejoin", "unknown"])  # fmt: skip
async def test_a_slow_event_whose_epochs_end_badly_is_handled_anew(world: World, style: str, fate: Fault) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    worker = world.start(handler_timeout_ms=100)
    await world.until_running(worker)
    world.pay("a1", 1)
    world.pay("a1", 2, sleep_ms=500)
    await asyncio.sleep(0.25)
    rule = world.cluster.faults.add("EndTxn", fate)
    world.pay_many(20)
    await asyncio.sleep(0.2)
    await world.drained()
    world.check()
    assert rule.hits == 1


async def test_a_handler_that_outlives_its_incarnation_writes_nothing(world: World) -> None:
    said: list[BaseException] = []

    async def stubborn(payment: Any) -> None:
        if payment.id == "slow" and not said:
            try:
                await asyncio.sleep(3)
            except asyncio.CancelledError as exc:
                said.append(exc)
                await asyncio.sleep(2)

    world.work.before = stubborn
    world.cluster.create_topic("notes", 1)
    worker = world.start(handler_timeout_ms=100)
    await world.until_running(worker)
    world.pay("a1", 1)
    world.pay("a1", 2, id="slow")
    world.pay("a1", 4)
    await asyncio.sleep(0.3)
    world.cluster.faults.add("EndTxn", refuse(48))
    done = worker.engine.outbox(ProducerRecord(TP("notes", 0), None, b"k", b"to have something to commit", ()))
    await done
    assert len(said) == 1
    # The new run has taken its place and waits for nothing; the old one comes back later, to nothing.
    await asyncio.sleep(5)
    await world.drained()
    world.check()


async def test_a_handler_that_turns_its_cancellation_into_an_error_does_not_steal_the_next_events(world: World) -> None:
    turned = 0

    async def converting(payment: Any) -> None:
        nonlocal turned
        if payment.id == "slow" and not turned:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                turned += 1
                raise RuntimeError("a library that means well") from None

    world.pipeline = payments_pipeline(world.work, style="coroutine")
    world.work.before = converting
    worker = world.start(handler_timeout_ms=100)
    await world.until_running(worker)
    world.pay("a1", 2, id="slow")
    await asyncio.sleep(0.3)
    # A rebalance gives the event up.
    second = world.start("w2")
    world.pay_many(30)
    await world.until_running(worker, second)
    await world.drained()
    assert turned == 1
    world.check()


@pytest.mark.parametrize("unit", ["event", "batch"])
async def test_a_body_that_returns_is_done_with_what_it_has_in_hand_and_starts_again(world: World, unit: str) -> None:
    work = world.work

    def make(tables: Any) -> Any:
        balances, journals = tables

        def book(payment: Any) -> Any:
            balances[payment.account] += payment.amount
            journals[payment.account].append(payment.id)
            return Settlement(payment.id, payment.account, balances[payment.account])

        async def one(payments: Any) -> Any:
            async for payment in payments:
                yield book(payment)
                return

        async def batch(payments: Any) -> Any:
            async for some in payments.batches():
                for payment in some:
                    yield book(payment)
                return

        return one if unit == "event" else batch

    world.pipeline = payments_pipeline(work, make=make)
    for n in range(19):
        world.pay(f"a{n % 5}", n + 1)
    world.start()
    await world.drained()
    world.check()


# ---------------------------------------------------------------------- records that a broker refuses (rule 2)


def refusing(world: World, word: bytes, code: int, topic: str = "settlements") -> list[Call]:
    """The broker refuses every batch of `topic` that holds `word`, for a reason nobody could have known before."""
    hits: list[Call] = []

    def script(call: Call) -> Fault | None:
        if call.api == "Produce":
            for tp, data in call.args["batches"].items():
                if tp.topic == topic and word in data:
                    hits.append(call)
                    return refuse(code)
        return None

    world.cluster.faults.script(script)
    return hits


@pytest.mark.parametrize("code", [10, 18, 32, 87])
@pytest.mark.parametrize("style", STYLES)
async def test_a_record_that_the_broker_refuses_is_found_and_its_event_dead_lettered(
    world: World, code: int, style: str
) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    for n in range(60):
        world.pay(f"a{n % 7}", n + 1, id="culprit" if n == 31 else None)
    hits = refusing(world, b'"culprit"', code)
    world.start()
    await world.drained()
    dead = all_dead(world)
    assert [reason for _, reason in dead] == ["refused"]
    assert len(outputs(world)) == 59
    # Once to be seen, once to be found: not more.
    assert len(hits) == 2
    # The culprit left no trace in the state: every balance is the sum of the outputs' events.
    amounts = sum(n + 1 for n in range(60)) - 32
    rows = [
        int(v)
        for p in range(2)
        for v in folded(committed_values(world.cluster, f"{APP}-balances-changelog", p)).values()
    ]
    assert sum(rows) == amounts


async def test_an_output_without_an_event_that_is_refused_fails_alone(world: World) -> None:
    world.cluster.create_topic("notes", 1)
    worker = world.start()
    await world.until_running(worker)
    refusing(world, b"culprit", 10, topic="notes")
    world.pay_many(40, trouble=False)
    done = [
        worker.engine.outbox(ProducerRecord(TP("notes", 0), None, b"k", text, ()))
        for text in (b"one", b"culprit", b"two")
    ]
    world.pay_many(40, trouble=False)
    said = await asyncio.gather(*done, return_exceptions=True)
    assert said[0] is None and said[2] is None
    assert isinstance(said[1], CommitError) and "refuses" in str(said[1])
    assert [r.value for r in world.cluster.committed("notes")[0]] == [b"one", b"two"]
    await world.drained()
    world.check()


async def test_where_even_the_dead_letter_is_refused_the_worker_pauses_and_says_so(world: World) -> None:
    worker = world.start()
    await world.until_running(worker)
    refusing(world, b'"culprit"', 10)
    refusing(world, b'"culprit"', 10, topic=f"{APP}.dlq")
    world.pay("a1", 1, id="culprit")
    world.pay("a1", 2)
    await world.until(lambda: "dlq" in worker.engine.paused_by, within_s=30)
    assert not world.is_drained()
    # Somebody mends the topic.
    world.cluster.faults.clear()
    refusing(world, b'"culprit"', 10)
    await world.drained(within_s=30)
    assert len(outputs(world)) == 1
    assert [why for _, why in all_dead(world)] == ["refused"]


async def test_a_topic_that_may_not_be_written_pauses_the_worker_and_says_so(world: World) -> None:
    worker = world.start()
    await world.until_running(worker)
    rule = world.cluster.faults.add("Produce", refuse(29), times=2)
    world.pay_many(30)
    await world.until(lambda: "cannot be written" in worker.engine.paused_by)
    await world.drained()
    assert rule.hits == 2 and worker.engine.paused_by == ""
    world.check()


async def test_batches_keep_to_what_a_topic_takes_at_once(world: World) -> None:
    world.cluster.create_topic("settlements", 2, {"max.message.bytes": "2000"})
    for _ in range(400):
        world.pay(amount=3)
    worker = world.start()
    await world.drained()
    world.check()
    assert worker.engine.stats["aborts"] == worker.engine.stats["unknown"] == 0


async def test_an_event_time_or_payload_that_cannot_be_read_costs_one_event(world: World, tmp_path: Path) -> None:
    def broken(payment: Any) -> Any:
        if payment.id == "broken":
            raise KeyError("nothing to compare")
        return payment.amount

    def absurd(payment: Any) -> Any:
        return -(10**30) if payment.id == "absurd" else 1_760_000_000_000

    world.pipeline = payments_pipeline(world.work, dedup=Dedup("id", window=WINDOW, compare=broken, time=absurd))
    world.pay("a1", 1, id="absurd")
    world.pay("a1", 1)
    world.pay("a1", 1, id="broken")
    world.pay("a1", 1)
    world.start()
    await world.drained()
    assert len(outputs(world)) == 2
    dead = all_dead(world)
    assert sorted(reason for _, reason in dead) == ["failed", "missing"]


@pytest.mark.parametrize("own", ["positions", "balances-changelog", "dedup-changelog"])
async def test_an_output_to_a_topic_that_semel_keeps_its_state_in_is_refused(world: World, own: str) -> None:
    foreign = Topic(f"{APP}-{own}", key=str, value=str)

    def make(tables: Any) -> Any:
        async def settle(payments: Any) -> Any:
            async for payment in payments:
                yield Output(payment.id, topic=foreign)

        return settle

    world.pipeline = payments_pipeline(world.work, make=make)
    world.pay("a1", 1)
    world.start()
    await world.drained()
    assert [reason for _, reason in all_dead(world)] == ["failed"]
    [letter] = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]
    assert foreign.name in dict(letter.headers)["semel.error"].decode()
    assert not any(r.key == b"a1" for log in world.cluster.committed(foreign.name) for r in log)


async def test_an_output_to_another_topic_is_in_the_same_epoch(world: World) -> None:
    audit = Topic("audit", key=str, value=str, partitions=1)

    def make(tables: Any) -> Any:
        balances, _ = tables

        async def settle(payments: Any) -> Any:
            async for payment in payments:
                balances[payment.account] += payment.amount
                yield Output(payment.id, topic=audit)

        return settle

    world.pipeline = payments_pipeline(world.work, make=make)
    for _ in range(30):
        world.pay("a1", 1)
    worker = world.start()
    world.cluster.faults.add("EndTxn", refuse(48))
    await world.drained()
    assert len(world.cluster.committed("audit")[0]) == 30
    assert worker.engine.stats["aborts"] == 1


@pytest.mark.parametrize("style", ["stream", "coroutine"])
async def test_a_slow_event_holds_up_its_partition_and_neither_epochs_nor_other_partitions(
    world: World, style: str
) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    world.cluster.create_topic("notes", 1)
    workers = [world.start(name, handler_timeout_ms=200) for name in ("w1", "w2")]
    await world.until_running(*workers)
    # One that only the slow one's worker has, and one of the other worker: there are two partitions.
    accounts = {world.place(f"a{n}").partition: f"a{n}" for n in range(8)}
    [holder] = [w for w in workers if 0 in w.engine.tasks]
    [other] = [w for w in workers if 1 in w.engine.tasks]
    assert holder is not other
    world.pay(accounts[0], 1, id="slow", sleep_ms=600_000)
    world.pay(accounts[0], 2, id="behind")
    await asyncio.sleep(1)
    for n in range(5):
        world.pay(accounts[1], 4, id=f"beside-{n}")
        await holder.engine.outbox(ProducerRecord(TP("notes", 0), None, b"k", str(n).encode(), ()))
        await asyncio.sleep(1)
    done = {orjson.loads(r.value or b"")["id"] for log in world.cluster.committed("settlements") for r in log}
    assert done == {f"beside-{n}" for n in range(5)}
    assert len(world.cluster.committed("notes")[0]) == 5, "epochs of its worker pass"
    # Alone, it has both partitions.
    await other.stop()
    await world.until(lambda: set(holder.engine.tasks) == {0, 1}, within_s=60)
    world.pay(accounts[1], 4, id="of the other")
    await asyncio.sleep(5)
    done = {orjson.loads(r.value or b"")["id"] for log in world.cluster.committed("settlements") for r in log}
    assert "of the other" in done and not done & {"slow", "behind"}
    await world.drained(within_s=1_500)
    world.check()
