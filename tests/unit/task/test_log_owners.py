"""Names that meet: whose a log is, where two apps could have it."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from semel import Pipeline, Table, Topic
from semel.errors import RecoveryError, TopicChanged
from semel.port import TP
from semel.runtime.settings import EngineSettings
from semel.state import positions
from semel.state.positions import Position
from semel.testing.clock import VirtualClock
from semel.worker import engine
from semel.worker.reset import reset
from semel.worker.view import EngineView
from tests.unit.harness import Payment, Worker, World


def sums(app: str, table: str, amount: int) -> Pipeline:
    """Two of these may have one changelog: app `pay` with table `eu-sums`, app `pay-eu` with table `sums`."""
    rows = Table(table, key=str, value=int, default=int)

    def add(payment: Payment) -> None:
        rows[payment.account] += amount

    return Pipeline(app, source=Topic("payments", key=str, value=Payment), agent=add, tables=[rows])


def start_app(world: World, pipeline: Pipeline, name: str) -> Worker:
    world.plan = pipeline.plan  # type: ignore[method-assign]
    return world.start(name)


def sums_in(worker: Worker, table: str) -> dict[str, int]:
    return {k.decode(): int(v) for t in worker.engine.tasks.values() for k, v in t.tables[table].scan()}


@pytest.mark.parametrize("apart_s", [0.0, 5.0])
async def test_of_two_apps_with_one_changelog_the_second_is_refused(world: World, apart_s: float) -> None:
    pay, pay_eu = sums("pay", "eu-sums", 1), sums("pay-eu", "sums", 1000)
    first = start_app(world, pay, "p1")
    await asyncio.sleep(apart_s)
    second = start_app(world, pay_eu, "e1")
    over: list[Worker] = []
    async with asyncio.timeout(60):
        while not over:
            await asyncio.sleep(0.1)
            over = [w for w in (first, second) if w.over]
    refused = {w.name: await world.fate(w) for w in over}
    for error in refused.values():
        assert isinstance(error, TopicChanged)
        assert "pay-eu-sums-changelog" in str(error) and "'pay'" in str(error) and "'pay-eu'" in str(error)
    assert set(refused) == {"e1"}
    await world.until_running(first)
    for _ in range(10):
        world.pay("a1")
    await world.until(lambda: sums_in(first, "eu-sums") == {"a1": 10})
    await first.stop()
    # Also at the next start, and without its disk.
    for lost in (False, True):
        if lost:
            world.lose_store("e1")
            world.lose_store("p1")
        error = await world.fate(start_app(world, pay_eu, "e1"))
        assert isinstance(error, TopicChanged) and "same name" in str(error)
        owner = start_app(world, pay, "p1")
        await world.until(lambda owner=owner: sums_in(owner, "eu-sums") == {"a1": 10})
        await owner.stop()


def claim(world: World, app: str, log: str, at_ms: int) -> None:
    """A worker of that app said that it is about to write there, and is gone."""
    world.cluster.create_topic(f"{app}-positions", world.partitions)
    for p in range(world.partitions):
        said = Position({}, claims={log: at_ms}).encode()
        world.cluster.write(TP(f"{app}-positions", p), [(positions.KEY, said)])


@pytest.mark.parametrize("ahead_s", [7200, -7200])
@pytest.mark.parametrize(("app", "table", "other"), [("pay", "eu-sums", "pay-eu"), ("pay-eu", "sums", "pay")])
async def test_the_claim_of_a_worker_that_is_gone_is_waited_for_as_long_as_it_could_live_whatever_its_clock(
    world: World, caplog: pytest.LogCaptureFixture, app: str, table: str, other: str, ahead_s: int
) -> None:
    claim(world, other, "pay-eu-sums-changelog", int((world.clock.time() + ahead_s) * 1000))
    worker = start_app(world, sums(app, table, 1), "w1")
    await world.clock.sleep(8)
    assert not worker.engine.restored
    assert f"app {other!r} said that it is about to write to pay-eu-sums-changelog, too" in caplog.text
    await world.until_running(worker, within_s=60)


@pytest.mark.parametrize("ahead_s", [7200, -7200])
async def test_of_two_apps_with_one_changelog_the_second_is_refused_also_where_clocks_are_apart(
    world: World, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    first = start_app(world, sums("pay", "eu-sums", 1), "p1")
    other_clock = VirtualClock()
    other_clock.jump(world.clock.time() + ahead_s - other_clock.time())
    monkeypatch.setattr(world, "clock_of", lambda name: other_clock if name == "e1" else world.clock)  # pyright: ignore
    second = start_app(world, sums("pay-eu", "sums", 1000), "e1")
    assert isinstance(await world.fate(second, within_s=60), TopicChanged)
    await world.until_running(first)


async def test_a_task_that_waits_for_another_app_keeps_no_other_from_being_restored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "RESTORES", 1)
    claim(world, "pay-eu", "pay-eu-sums-changelog", int(world.clock.time() * 1000))
    worker = start_app(world, sums("pay", "eu-sums", 1), "p1")
    await world.until_running(worker, within_s=25)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("rights", [["Describe"], ["Read"], ["Read", "Describe"]], ids=" and ".join)
async def test_an_app_that_may_not_see_the_positions_of_another_runs_and_says_what_it_does_not_know(
    world: World, caplog: pytest.LogCaptureFixture, rights: list[str], there: bool
) -> None:
    if there:
        world.cluster.create_topic("pay-positions", world.partitions)
        for p in range(world.partitions):
            world.cluster.write(TP("pay-positions", p), [(positions.KEY, Position({}).encode())])
    world.cluster.faults.deny("pay-positions", *rights)
    pipeline = sums("pay-eu", "sums", 1)
    worker = start_app(world, pipeline, "e1")
    await world.until_running(worker)
    await world.clock.sleep(10)
    assert EngineView(worker.engine).readiness()[0]
    unseen = [r for r in caplog.messages if "pay-positions" in r and "is not known" in r]
    assert bool(unseen) is (there or "Describe" in rights)
    assert len(unseen) <= world.partitions
    assert all("grant Describe and Read on it" in r for r in unseen)
    await worker.stop()
    await asyncio.sleep(15)
    broker = await world.connected("reset")
    said: list[str] = []
    await reset(pipeline.plan(), EngineSettings(), broker, world.clock, "earliest", say=said.append)
    assert any("pay-positions" in text and "is not known" in text for text in said) is bool(unseen)
    await broker.close()


async def test_a_changelog_that_had_an_owner_before_owners_were_noted_is_nobody_elses(world: World) -> None:
    pay, pay_eu = sums("pay", "eu-sums", 1), sums("pay-eu", "sums", 1000)
    first = start_app(world, pay, "p1")
    await world.until_running(first)
    for n in range(10):
        world.pay(f"a{n}")
    await world.until(lambda: len(sums_in(first, "eu-sums")) == 10)
    await first.stop()
    for p in range(world.partitions):
        for record in world.cluster.log(TP("pay-positions", p)).committed():
            if record.key == positions.KEY:
                found = orjson.loads(record.value or b"")
                for name in ("types", "claims"):
                    found.pop(name, None)
                record.value = orjson.dumps(found)
    world.lose_store("p1")
    assert isinstance(await world.fate(start_app(world, pay_eu, "e1")), TopicChanged)
    owner = start_app(world, pay, "p1")
    await world.until_running(owner)
    assert len(sums_in(owner, "eu-sums")) == 10


async def test_a_reset_deletes_no_other_apps_state(world: World) -> None:
    first = start_app(world, sums("pay", "eu-sums", 1), "p1")
    await world.until_running(first)
    await first.stop()
    await asyncio.sleep(15)
    broker = await world.connected("reset")
    plan = sums("pay-eu", "sums", 1).plan()
    with pytest.raises(RecoveryError, match="holds state of app 'pay'"):
        await reset(plan, EngineSettings(), broker, world.clock, "earliest", say=lambda text: None)
    assert "pay-eu-sums-changelog" in world.cluster.topics()
