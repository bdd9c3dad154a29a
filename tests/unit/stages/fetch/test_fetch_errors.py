"""Partitions that cannot be read: said, counted, shown, and read again when they can be; the others go on meanwhile."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from semel.memory.faults import Call, Fault, refuse, unsent
from semel.port import TP, RpcError
from semel.stages.fetch.fetch_errors import PATIENT_S
from semel.worker.metrics import exposition
from semel.worker.view import EngineView
from tests.unit.harness import APP, Payment, Worker, World

BAD = TP("payments", 0)


def account_of(world: World, partition: int) -> str:
    return next(f"a{n}" for n in range(100) if world.place(f"a{n}").partition == partition)


def done(worker: Worker, partition: int) -> int:
    return worker.engine.tasks[partition].committed.topics["payments"].next


def lag(worker: Worker, partition: int) -> int | None:
    [pipeline] = EngineView(worker.engine).pipelines()
    return next(t["lag"] for t in pipeline["tasks"] if t["partition"] == partition)


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if words in r.getMessage()]


def unreadable(worker: Worker) -> dict[str, str]:
    ready, detail = EngineView(worker.engine).readiness()
    assert ready is ("unreadable" not in detail)
    return dict(detail.get("unreadable", {}))


async def stuck_at(world: World, events: int, *, at: int) -> Worker:
    """A worker whose partition 0 has a damaged batch there."""
    for n in range(events):
        world.pay(account_of(world, 0), n)
    world.cluster.log(BAD).damage(at)
    worker = world.start()
    await world.until(lambda: worker.engine.restored and done(worker, 0) == at)
    await world.clock.sleep(1)
    return worker


async def test_a_damaged_batch_stops_its_partition_and_that_is_said_counted_and_shown(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await stuck_at(world, 50, at=20)
    [words] = said(caplog, "cannot be read")
    assert "payments[0] cannot be read from offset 20" in words
    assert "CORRUPT_MESSAGE" in words
    assert list(unreadable(worker)) == ["payments[0]"]
    assert lag(worker, 0) == 30
    text = exposition(worker.engine).decode()
    assert 'semel_source_fetch_errors_total{error="2",partition="0",pipeline="payments",topic="payments"}' in text
    # The others go on.
    for n in range(50):
        world.pay(account_of(world, 1), n)
    await world.until(lambda: done(worker, 1) == 50)
    assert lag(worker, 1) == 0
    assert done(worker, 0) == 20
    world.cluster.log(BAD).mend()
    await world.drained()
    world.check()
    assert unreadable(worker) == {}
    assert len(said(caplog, "can be read again")) == 1


async def test_what_cannot_be_read_for_long_is_said_now_and_then_and_asked_for_now_and_then(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    fetches: list[Call] = []

    def count(call: Call) -> Fault | None:
        if call.api == "Fetch" and BAD in call.args["wants"]:
            fetches.append(call)
        return None

    worker = await stuck_at(world, 50, at=20)
    world.cluster.faults.script(count)
    for n in range(60):
        world.pay(account_of(world, 1), n)
        await world.clock.sleep(10)
    assert 9 <= len(said(caplog, "cannot be read")) <= 12
    assert "from offset 20, for 61 s now" in caplog.text
    assert 200 < len(fetches) < 500
    assert lag(worker, 0) == 30


async def test_the_lag_of_a_partition_that_cannot_be_read_grows(world: World) -> None:
    worker = await stuck_at(world, 50, at=20)
    for n in range(100):
        world.pay(account_of(world, 0), n)
    await world.clock.sleep(4)
    assert lag(worker, 0) == 130


@pytest.mark.parametrize("rights", [["Read"], ["Read", "Describe"]], ids=" and ".join)
async def test_a_right_that_is_taken_away_is_said_and_work_goes_on_when_it_is_back(
    world: World, caplog: pytest.LogCaptureFixture, rights: list[str]
) -> None:
    worker = world.start()
    world.pay_many(50)
    await world.drained()
    world.cluster.faults.deny("payments", *rights)
    world.pay_many(200)
    await world.clock.sleep(20)
    assert set(unreadable(worker)) == {"payments[0]", "payments[1]"}
    words = said(caplog, "cannot be read")
    assert any("grant Read on the topic" in w for w in words), words
    total = EngineView(worker.engine).pipelines()[0]["lag"]
    if "Describe" in rights:
        # Nobody says how far the log is: no number is better than that of long ago.
        assert total is None
        assert "semel_source_lag_records{" not in exposition(worker.engine).decode()
    else:
        assert total == 200
    world.cluster.faults.allow("payments")
    await world.drained()
    world.check()
    assert unreadable(worker) == {}


async def test_what_passes_by_itself_is_not_cried_over(world: World, caplog: pytest.LogCaptureFixture) -> None:
    worker = world.start()
    world.pay_many(50)
    await world.drained()
    for _ in range(10):
        world.cluster.faults.add("Fetch", unsent(), times=3)
        world.cluster.move_leader(BAD, 1)
        world.pay_many(5)
        await world.clock.sleep(0.5)
        world.cluster.move_leader(BAD, 0)
        await world.clock.sleep(0.5)
    await world.drained()
    assert said(caplog, "cannot be read") == []
    assert unreadable(worker) == {}
    assert sum(worker.engine.troubles.counts.values()) > 0


@pytest.mark.parametrize("fault", [unsent(), refuse(56), refuse(-1)], ids=["no broker", "its disk fails", "who knows"])
async def test_what_does_not_pass_is_said_after_a_while(
    world: World, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    worker = world.start()
    world.pay_many(50)
    await world.drained()
    rule = world.cluster.faults.add("Fetch", fault, times=None)
    await world.clock.sleep(PATIENT_S - 1)
    assert said(caplog, "cannot be read") == []
    await world.clock.sleep(PATIENT_S)
    assert len(said(caplog, "cannot be read")) == 2
    assert set(unreadable(worker)) == {"payments[0]", "payments[1]"}
    rule._left = 0
    world.pay_many(50)
    await world.drained()
    assert unreadable(worker) == {}


async def test_an_answer_that_makes_no_sense_is_said_with_where_it_was_met(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = world.start()
    world.pay_many(50)
    await world.drained()

    async def senseless(*_: object, **__: object) -> None:
        raise OverflowError("a varint of eleven bytes")

    with monkeypatch.context() as patched:
        patched.setattr(worker.engine.broker, "fetch", senseless)
        await world.clock.sleep(5)
        words = said(caplog, "cannot be read")
        assert len(words) == 2
        assert "a varint of eleven bytes" in words[0]
        assert set(unreadable(worker)) == {"payments[0]", "payments[1]"}
    world.pay_many(50)
    await world.drained()
    world.check()


@pytest.mark.parametrize("log", ["balances-changelog", "dedup-changelog", "positions"])
async def test_a_damaged_batch_in_a_log_of_the_state_is_said_while_the_restore_waits(
    world: World, caplog: pytest.LogCaptureFixture, log: str
) -> None:
    world.pay_many(200)
    worker = world.start()
    await world.drained()
    await worker.stop()
    shutil.rmtree(world.path / "w1")
    there = TP(f"{APP}-{log}", 0)
    world.cluster.log(there).damage(world.cluster.log(there).log_start)
    worker = world.start()
    await world.until(lambda: worker.engine.troubles.current() != {})
    assert list(worker.engine.troubles.current()) == [there]
    assert f"{there.topic}[0] cannot be read" in caplog.text
    ready, detail = EngineView(worker.engine).readiness()
    assert not ready
    assert f"{there.topic}[0]" in detail["unreadable"]
    await world.clock.sleep(30)
    world.cluster.log(there).mend()
    world.pay_many(20)
    await world.drained()
    world.check()
    assert EngineView(worker.engine).readiness()[0]


async def test_a_log_whose_restore_was_broken_off_is_no_trouble_of_a_worker_that_reads_it_no_more(world: World) -> None:
    world.pay_many(50)
    worker = world.start()
    await world.drained()
    await worker.stop()
    shutil.rmtree(world.path / "w1")
    logs = [world.cluster.log(TP(f"{APP}-positions", p)) for p in range(world.partitions)]
    for log in logs:
        log.damage(log.log_start)
    first = world.start("w1")
    await world.until(lambda: len(first.engine.troubles.current()) == 2)
    second = world.start("w2")
    await world.until(lambda: len(first.engine.tasks) == len(second.engine.tasks) == 1)
    for log in logs:
        log.mend()
    await world.until_running(first, second)
    assert unreadable(first) == unreadable(second) == {}


async def test_a_partition_that_is_given_up_while_its_leader_is_asked_for_is_no_trouble(world: World) -> None:
    worker = world.start()
    await world.until_running(worker)
    given_up = asyncio.Event()

    def give_up(call: Call) -> Fault | None:
        if call.api == "Metadata" and not given_up.is_set():
            given_up.set()
            worker.engine.drop_everything()
            return refuse(5)
        return refuse(6) if call.api == "Fetch" else None

    world.cluster.faults.script(give_up)
    await world.until(given_up.is_set)
    await world.clock.sleep(1)
    assert BAD not in worker.engine.troubles


async def test_the_lag_of_a_partition_that_is_not_asked_for_grows(world: World) -> None:
    """Its agent is busy, and enough waits for it: nobody fetches, and the log grows all the same."""
    go = asyncio.Event()

    async def wait(payment: Payment) -> None:
        await go.wait()

    world.work.before = wait
    world.cluster.write(BAD, [(b"a", b'{"id":"%d","account":"a","amount":1}' % n) for n in range(6_000)])
    worker = world.start()
    await world.clock.sleep(5)
    before = lag(worker, 0)
    world.cluster.write(BAD, [(b"a", b'{"id":"%d","account":"a","amount":1}' % n) for n in range(6_000, 16_000)])
    await world.clock.sleep(5)
    assert (before, lag(worker, 0)) == (6_000, 16_000)
    go.set()


@pytest.mark.parametrize("code", [1, 3, 5, 6, 29, 56, 76, 100, 999])
def test_each_code_has_its_words(code: int) -> None:
    from semel.stages.fetch.fetch_errors import _reason

    why, _, kind = _reason(RpcError("Fetch", code))
    assert why
    assert kind == str(code)
