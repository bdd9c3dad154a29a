"""Declarations that change (rule 24): what goes on with the old state, what is made anew of it, and what is refused."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest

from semel import Pipeline, Table, Topic
from semel.errors import ShapeChanged, TopicChanged
from semel.plan import Plan
from semel.port import TP
from semel.state import positions
from tests.unit.harness import APP, Payment, Worker, World
from tests.unit.payments import declared


async def test_a_table_whose_changelog_holds_rows_of_an_earlier_life_is_refused(world: World) -> None:
    world.pipeline = declared()
    await world.settled(40)
    log = f"{APP}-counts-changelog"
    world.cluster.create_topic(log, world.partitions, {"cleanup.policy": "compact"})
    world.cluster.write(TP(log, 0), [(b"a1", b"7")])
    world.pipeline = declared(extra="counts")
    error = await world.fate(world.start())
    assert isinstance(error, TopicChanged)
    assert log in str(error) and "did not write" in str(error)


@pytest.mark.parametrize("change", [{"value": float}, {"version": 2}, {"id": "account"}, "table gone"], ids=str)
async def test_a_changed_shape_is_refused_and_nothing_is_touched(world: World, change: Any) -> None:
    world.pipeline = declared(extra="counts") if change == "table gone" else declared()
    await world.settled(60)
    before = [r.value for log in world.cluster.committed(f"{APP}-balances-changelog") for r in log]
    world.pipeline = declared() if change == "table gone" else declared(**change)
    error = await world.fate(world.start())
    assert isinstance(error, ShapeChanged)
    assert "migrate=" in str(error) and "another name" in str(error)
    assert [r.value for log in world.cluster.committed(f"{APP}-balances-changelog") for r in log] == before
    # Declared as it was, it goes on.
    world.pipeline = declared(extra="counts") if change == "table gone" else declared()
    world.pay_many(10)
    world.start()
    await world.drained(within_s=60)


@dataclass
class Account:
    balance: int


@dataclass
class Konto:
    balance: int
    currency: str = "EUR"


@dataclass
class Renamed:
    amount: int = 0


@dataclass
class Required:
    balance: int
    currency: str


def to_account(made: Any) -> Any:
    def book(balances: Table, payment: Payment) -> None:
        old = balances.get(payment.account)
        balances[payment.account] = made((old.balance if old else 0) + payment.amount)

    return book


def rows_of(worker: Worker) -> dict[str, Any]:
    tasks = worker.engine.tasks.values()
    return {k.decode(): t.tables["balances"].decode(v) for t in tasks for k, v in t.tables["balances"].scan()}


async def test_a_renamed_class_and_a_field_with_a_default_go_on_with_the_old_rows(world: World) -> None:
    world.pipeline = declared(value=Account, default=None, book=to_account(Account))
    world.pay("a1", 10)
    await (await world.caught_up()).stop()
    for balance in (11, 12):
        world.pipeline = declared(value=Konto, default=None, book=to_account(Konto))
        world.pay("a1", 1)
        worker = await world.caught_up()
        assert rows_of(worker) == {"a1": Konto(balance)}
        await worker.stop()


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (Renamed, "field balance is gone, and what stands in it would be lost"),
        (Required, "field currency is new and has no default"),
    ],
)
async def test_a_row_type_that_would_lose_or_miss_something_is_refused(world: World, now: Any, why: str) -> None:
    world.pipeline = declared(value=Account, default=None, book=to_account(Account))
    world.pay("a1", 10)
    await (await world.caught_up()).stop()
    world.pipeline = declared(value=now, default=None, book=to_account(now))
    error = await world.fate(world.start())
    assert isinstance(error, ShapeChanged)
    assert why in str(error) and "'balances'" in str(error) and "migrate=" in str(error)


async def test_state_of_a_version_that_noted_no_types_is_compared_by_their_names(world: World) -> None:
    world.pipeline = declared(value=Account, default=None, book=to_account(Account))
    world.pay("a1", 10)
    await (await world.caught_up()).stop()
    forget_types(world)
    world.lose_store("w1")
    world.pipeline = declared(value=Konto, default=None, book=to_account(Konto))
    assert isinstance(await world.fate(world.start()), ShapeChanged)
    world.pipeline = declared(value=Account, default=None, book=to_account(Account))
    world.pay("a1", 1)
    worker = await world.caught_up()
    assert rows_of(worker) == {"a1": Account(11)}
    await worker.stop()
    # From now on they are known.
    world.pipeline = declared(value=Konto, default=None, book=to_account(Konto))
    assert rows_of(await world.caught_up()) == {"a1": Konto(11)}


def forget_types(world: World) -> None:
    """What the position records of earlier versions did not have."""
    for p in range(world.partitions):
        for record in world.cluster.log(TP(f"{APP}-positions", p)).committed():
            if record.key == positions.KEY:
                found = orjson.loads(record.value or b"")
                found.pop("types")
                record.value = orjson.dumps(found)


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("crash", [None, "commit.before_store", "barrier.after_seal", "restore.end"])
async def test_rows_are_migrated_once_each_before_any_event_sees_them(
    world: World, monkeypatch: pytest.MonkeyPatch, noted: bool, crash: str | None
) -> None:
    monkeypatch.setattr("semel.task.migration.CHUNK_ROWS", 3)
    world.pipeline = declared()
    for n in range(16):
        world.pay(f"a{n}", 10 + n)
    await (await world.caught_up()).stop()
    if not noted:
        forget_types(world)
        world.lose_store("w1")

    def migrated(old: Any) -> Required:
        assert isinstance(old, int), "a row was migrated twice"
        return Required(old, "EUR")

    def book(balances: Table, payment: Payment) -> None:
        balances[payment.account].balance += payment.amount

    new = declared(value=Required, default=None, migrate=migrated, book=book)
    world.pipeline = new
    world.pay("a3", 100)
    for nth in (2, 3) if crash else ():
        worker = world.start()
        reached = worker.kill_at(crash, nth)
        await world.until(lambda reached=reached: reached.is_set() or world.is_drained())
        worker.kill()
        await worker.gone()
        if (
            nth == 2
            and crash == "commit.before_store"
            and any(at.migrating for at in world.committed_positions().values())
        ):
            # Half of the rows are new: neither the old declaration nor a third one may read them.
            for other in (declared(), declared(value=float, migrate=float)):
                world.pipeline = other
                assert "half migrated" in str(await world.fate(world.start("w2")))
            world.pipeline = new
    worker = await world.caught_up()
    assert rows_of(worker) == {f"a{n}": Required(10 + n + (100 if n == 3 else 0), "EUR") for n in range(16)}
    await worker.stop()
    assert not any(at.migrating for at in world.committed_positions().values())
    # The changelog has them, too, and the way there may be taken out of the declaration.
    world.lose_store("w1")
    world.pipeline = declared(value=Required, default=None, book=book)
    assert len(rows_of(await world.caught_up())) == 16


async def test_a_migration_that_fails_names_the_row_and_the_error(world: World) -> None:
    world.pipeline = declared()
    world.pay("a1", 10)
    await (await world.caught_up()).stop()
    world.pipeline = declared(value=str, default=str, migrate=lambda old: old)
    error = await world.fate(world.start())
    assert isinstance(error, ShapeChanged)
    assert "row b'a1'" in str(error) and "expected str, got int" in str(error)


async def test_a_window_may_change_and_marks_stay_findable(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.pipeline = declared(days=7)
    now_ms = int(world.clock.time() * 1000)
    day = 86_400_000
    for n in range(6):
        world.pay(f"a{n}", 1, id=f"p{n}", at_ms=now_ms - (6 - n) * day)
    await (await world.caught_up()).stop()
    for days in (14, 1, 30):
        world.pipeline = declared(days=days)
        world.pay("a5", 1, id="p5", at_ms=now_ms)
        worker = await world.caught_up()
        assert f"is {days * day} ms" in caplog.text
        words = "from before the new one are not known any more" if days == 1 else "had expired by the old one"
        assert words in caplog.text
        caplog.clear()
        await worker.stop()
    counts = [at.counts for at in world.committed_positions().values()]
    assert sum(c["conflicts"] + c["duplicates"] for c in counts) == 3
    assert sum(c["out"] for c in counts) == 6


@pytest.mark.parametrize("conflict", ["quarantine", "pass"])
async def test_another_compare_makes_no_conflicts_of_events_from_before(world: World, conflict: str) -> None:
    world.pipeline = declared(conflict=conflict)
    event = world.pay("a1", 10)
    await (await world.caught_up()).stop()
    world.pipeline = declared(compare=["amount"], conflict=conflict)
    world.write({**event, "fails": 0}, "a1")
    later = world.pay("a1", 5)
    world.write({**later, "amount": 6}, "a1")
    worker = await world.caught_up()
    counts = worker.engine.tasks[world.place("a1").partition].counts
    # Of the later one there is a hash by the new rule.
    assert counts["duplicates"] == 1
    assert counts["out"] == (2 if conflict == "quarantine" else 3)
    assert counts["conflicts"] == (1 if conflict == "quarantine" else 0)


async def test_another_function_as_dedup_key_is_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.pipeline = declared(id=lambda payment: payment.id)
    await world.settled(20)
    world.pipeline = declared(
        id=lambda payment: (
            payment.id  # laid out otherwise
        )
    )
    await (await world.caught_up()).stop()
    assert "dedup key" not in caplog.text
    world.pipeline = declared(id=lambda payment: payment.id + payment.account)
    await world.caught_up()
    assert caplog.text.count("the function that makes the dedup key of 'payments' is another") == 1


class Agents:
    """Plans with several agents of one topic, and what each of them saw."""

    def __init__(self, world: World) -> None:
        self.seen: dict[str, list[str]] = {}
        self.world = world
        self.pipeline = Pipeline(APP, source=Topic("payments", key=str, value=Payment), agent=lambda payment: None)

    def declare(self, *names: str) -> None:
        def plan() -> Plan:
            plan = self.pipeline.plan()
            plan.agents = [replace(plan.agents[0], name=name, run=self._seen_by(name)) for name in names]
            return plan

        self.world.plan = plan  # type: ignore[method-assign]

    def _seen_by(self, name: str) -> Any:
        seen = self.seen.setdefault(name, [])

        def handle(payment: Payment) -> None:
            seen.append(payment.id)

        return handle


@pytest.mark.parametrize("others", [("settle",), ("settle", "audit")])
async def test_an_agent_that_was_taken_out_and_comes_back_misses_nothing(world: World, others: tuple[str, ...]) -> None:
    agents = Agents(world)
    ids: list[str] = []
    for names in (others, (*others, "notify"), others, others, (*others, "notify"), (*others, "notify")):
        agents.declare(*names)
        ids += [world.pay()["id"] for _ in range(20)]
        await (await world.caught_up()).stop()
    assert sorted(agents.seen["settle"]) == sorted(ids)
    # It began where the app stood when it came first.
    assert sorted(agents.seen["notify"]) == sorted(ids[20:])


async def test_an_agent_that_left_before_that_was_noted_begins_where_the_app_stands(world: World) -> None:
    agents = Agents(world)
    agents.declare("settle", "audit", "notify")
    world.pay_many(20)
    await (await world.caught_up()).stop()
    # The version of then: it knew that there was a third one, and nothing else of it.
    for p in range(world.partitions):
        for record in world.cluster.log(TP(f"{APP}-positions", p)).committed():
            if record.key == positions.KEY:
                found = orjson.loads(record.value or b"")
                found.pop("types")
                record.value = orjson.dumps(found)
    world.lose_store("w1")
    for _ in range(3):
        agents.declare("settle", "audit")
        world.pay_many(20)
        await (await world.caught_up()).stop()
        for p in range(world.partitions):
            log = world.cluster.log(TP("payments", p))
            log.delete_before(log.end)
    agents.seen["notify"].clear()
    agents.declare("settle", "audit", "notify")
    ids = [world.pay()["id"] for _ in range(20)]
    await (await world.caught_up()).stop()
    assert sorted(agents.seen["notify"]) == sorted(ids)


async def test_an_agent_that_comes_back_too_late_is_refused(world: World) -> None:
    agents = Agents(world)
    for names in (("settle", "notify"), ("settle",)):
        agents.declare(*names)
        for _ in range(20):
            world.pay()
        await (await world.caught_up()).stop()
    for p in range(world.partitions):
        log = world.cluster.log(TP("payments", p))
        log.delete_before(log.end)
    agents.declare("settle", "notify")
    error = await world.fate(world.start())
    assert isinstance(error, TopicChanged)
    assert "'notify'" in str(error) and "another name" in str(error)


async def test_another_source_is_said_and_the_first_is_read_on_from_where_it_was_left(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.cluster.create_topic("others", world.partitions)
    world.pipeline = declared()
    world.pay("a1", 1)
    await (await world.caught_up()).stop()
    world.pipeline = declared(source="others")
    worker = world.start()
    await world.until_running(worker)
    world.cluster.write(TP("others", world.place("a1").partition), [(b"a1", b'{"id":"o1","account":"a1","amount":5}')])
    await world.until(lambda: sum(at.counts["out"] for at in world.committed_positions().values()) == 2)
    assert "read payments at offset" in caplog.text
    await worker.stop()
    # The group forgets in time; the positions do not.
    await asyncio.sleep(15)
    world.cluster.groups._offsets[APP].visible.clear()
    world.pipeline = declared()
    world.pay("a1", 1)
    worker = await world.caught_up()
    assert rows_of(worker) == {"a1": 7}
    assert sum(len(log) for log in world.cluster.committed("settlements")) == 3


async def test_a_table_that_is_new_starts_empty_beside_rows_that_stay_what_they_were(world: World) -> None:
    world.pipeline = declared()
    for n in range(8):
        world.pay(f"a{n}", 10 + n)
    worker = world.start()
    await world.drained()
    await worker.stop()
    # By name it comes before the other.
    world.pipeline = declared(extra="accounts")
    worker = world.start()
    await world.until_running(worker)
    tasks = worker.engine.tasks.values()
    assert {k.decode(): int(v) for t in tasks for k, v in t.tables["balances"].scan()} == {
        f"a{n}": 10 + n for n in range(8)
    }
    assert [k for t in tasks for k, _ in t.tables["accounts"].scan()] == []
    world.pay("a1", 5)
    await world.drained()
    assert {k.decode(): int(v) for t in tasks for k, v in t.tables["accounts"].scan()} == {"a1": 1}


async def test_tables_keep_their_rows_where_a_store_is_opened_again_and_is_empty(world: World) -> None:
    world.pipeline = declared()
    for n in range(8):
        world.pay(f"a{n}", 10 + n)
    await (await world.caught_up()).stop()
    # By name it comes before the other, by its number behind it.
    world.pipeline = declared(extra="accounts")
    worker = await world.caught_up()
    worker.fail_writes(1)
    world.pay("a0", 1)
    await world.until(lambda: "no space" in worker.engine.paused_by)
    worker.store.close()
    shutil.rmtree(worker.store.path)
    await world.until(lambda: not worker.engine.paused_by)
    world.pay("a1", 1)
    await world.drained()
    for n in range(2):
        tasks = worker.engine.tasks.values()
        rows = {
            name: {k.decode(): int(v) for t in tasks for k, v in t.tables[name].scan()}
            for name in ("balances", "accounts")
        }
        assert rows["balances"] == {f"a{n}": 10 + n + (n < 2) for n in range(8)}, n
        assert rows["accounts"] == {"a0": 1, "a1": 1}, n
        await worker.stop()
        worker = await world.caught_up()
