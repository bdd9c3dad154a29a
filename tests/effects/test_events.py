"""The effects of a pipeline's events, on a real PostgreSQL: the key comes from the event, whatever becomes of the worker."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import semel
from semel import Dedup, Inbox, Pipeline, Retry, Topic, current_event
from semel.effects.inbox import default_inbox
from semel.errors import OutsideEvent
from semel.testing import DeadLetter, PipelineTester
from semel.testing.clock import run_virtual
from tests.postgres import Postgres
from tests.unit.harness import APP, Payment, World

Testing = Callable[..., PipelineTester]


@dataclass(frozen=True)
class Order:
    id: str
    amount: int = 10


@dataclass(frozen=True)
class TimedOrder:
    id: str
    at: int


@pytest.fixture
def tester_of() -> Iterator[Testing]:
    made: list[PipelineTester] = []

    def make(agent: Any, *, name: str, **declared: Any) -> PipelineTester:
        declared.setdefault("dedup", Dedup("id", window=timedelta(days=7)))
        made.append(
            PipelineTester(Pipeline(name, source=Topic("orders", key=str, value=Order), agent=agent, **declared))
        )
        return made[-1]

    yield make
    for tester in made:
        tester.close()


def counted(postgres: Postgres, key: str) -> dict[str, int]:
    """Rows of a test, by what stands after its key."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        found = connection.execute(
            "SELECT key, count(*) FROM rows WHERE key LIKE %s GROUP BY key", (f"{key}/%",)
        ).fetchall()
    return {name.removeprefix(f"{key}/"): n for name, n in found}


INSERT = "INSERT INTO rows (key) VALUES (%s)"


@pytest.fixture(params=["sync", "async", "stream"])
def agent(request: pytest.FixtureRequest, inbox: Inbox, key: str) -> Any:
    """Books each order as a row, and notes in `runs` that it ran."""
    runs: list[str] = []

    def sync(order: Order) -> None:
        runs.append(order.id)
        with inbox.once(order) as connection:
            connection.execute(INSERT, (f"{key}/{order.id}",))

    async def awaited(order: Order) -> None:
        runs.append(order.id)
        async with inbox.once() as connection:
            await connection.execute(INSERT, (f"{key}/{order.id}",))

    async def stream(orders: Any) -> None:
        async for event in orders.events():
            runs.append(event.value.id)
            async with inbox.once(event) as connection:
                await connection.execute(INSERT, (f"{key}/{event.value.id}",))

    chosen: Any = {"sync": sync, "async": awaited, "stream": stream}[request.param]
    chosen.runs = runs
    return chosen


@pytest.mark.parametrize("point", ["barrier.before_seal", "commit.after_offsets"])
def test_a_row_happens_once_though_the_worker_dies_between_it_and_the_commit(
    postgres: Postgres, tester_of: Testing, agent: Any, key: str, point: str
) -> None:
    tester = tester_of(agent, name=f"p-{key}")
    crash = tester.crash(at=point)
    tester.send(Order("o1"), key="k")
    assert crash.happened
    tester.redeliver()
    tester.redeliver()
    assert agent.runs == ["o1", "o1"]
    assert counted(postgres, key) == {"o1": 1}
    assert tester.dead_letters() == []


def test_without_a_dedup_rule_an_event_is_known_by_its_place(
    postgres: Postgres, tester_of: Testing, agent: Any, key: str
) -> None:
    tester = tester_of(agent, name=f"p-{key}", dedup=None)
    tester.crash(at="barrier.before_seal")
    tester.send(Order("o1"), key="k")
    assert counted(postgres, key) == {"o1": 1}
    tester.send(Order("o1"), key="k")
    assert counted(postgres, key) == {"o1": 2}


def test_an_event_that_fails_after_its_effect_has_it_once_through_its_retries(
    postgres: Postgres, tester_of: Testing, inbox: Inbox, key: str
) -> None:
    outcomes: list[Any] = []

    def book(order: Order) -> None:
        once = inbox.once(order)
        with once as connection:
            connection.execute(INSERT, (f"{key}/{order.id}",))
            once.outcome = {"row": len(outcomes)}
        outcomes.append(once.outcome)
        if len(outcomes) < 3:
            raise ValueError("after the effect")

    tester = tester_of(book, name=f"p-{key}", retry=Retry(attempts=5))
    tester.send(Order("o1"), key="k")
    assert outcomes == [{"row": 0}] * 3
    assert counted(postgres, key) == {"o1": 1}
    assert tester.dead_letters() == []


def test_two_effects_of_an_event_need_names_and_have_them(
    postgres: Postgres, tester_of: Testing, inbox: Inbox, key: str
) -> None:
    def book(order: Order) -> None:
        for step in ("a", "b") if order.amount else ("", ""):
            with inbox.once(order, step=step) as connection:
                connection.execute(INSERT, (f"{key}/{order.id}{step}",))

    tester = tester_of(book, name=f"p-{key}", retry=Retry(attempts=1))
    tester.send(Order("o1"), key="k")
    tester.send(Order("o2", 0), key="k")
    assert counted(postgres, key) == {"o1a": 1, "o1b": 1, "o2": 1}
    [letter] = tester.dead_letters()
    assert 'needs a name of its own, as once(event, step="receipt")' in letter.error


def test_an_id_that_comes_again_after_its_window_is_another_event(
    postgres: Postgres, tester_of: Testing, agent: Any, key: str
) -> None:
    tester = tester_of(agent, name=f"p-{key}", dedup=Dedup("id", window=timedelta(hours=1)))
    tester.send(Order("o1"), key="k")
    tester.advance_time(timedelta(hours=3))
    for n in range(2, 5):
        # One alone does not move stream time.
        tester.send(Order(f"o{n}"), key="k")
    tester.crash(at="barrier.before_seal")
    tester.send(Order("o1", 12), key="k")
    assert agent.runs.count("o1") == 3
    assert counted(postgres, key) == {"o1": 2, "o2": 1, "o3": 1, "o4": 1}
    assert tester.dead_letters() == []


def test_batches_and_what_is_not_in_hand(postgres: Postgres, tester_of: Testing, inbox: Inbox, key: str) -> None:
    kept: list[Any] = []

    async def book(orders: Any) -> AsyncIterator[None]:
        async for batch in orders.batches():
            for event in batch.events:
                async with inbox.once(event) as connection:
                    await connection.execute(INSERT, (f"{key}/{event.value.id}",))
                kept.append(event)
            yield None

    tester = tester_of(book, name=f"p-{key}", sink=Topic("results", key=str, value=str))
    tester.crash(at="barrier.before_seal")
    tester.send_all([Order(f"o{n}") for n in range(5)], key="id")
    assert counted(postgres, key) == {f"o{n}": 1 for n in range(5)}
    with pytest.raises(OutsideEvent, match="not in hand any more"):
        inbox.once(kept[0])
    with pytest.raises(OutsideEvent, match="no event is in hand"):
        inbox.once()


def test_handlers_in_threads_have_effects_of_their_events(
    postgres: Postgres, tester_of: Testing, inbox: Inbox, key: str
) -> None:
    def book(order: Order) -> None:
        event = current_event()
        assert event is not None and event.value == order
        with inbox.once() as connection:
            connection.execute(INSERT, (f"{key}/{order.id}",))

    tester = tester_of(book, name=f"p-{key}", threads=4)
    tester.crash(at="barrier.before_seal")
    tester.send_all([Order(f"o{n}") for n in range(8)], key="id")
    assert counted(postgres, key) == {f"o{n}": 1 for n in range(8)}


def test_rows_of_events_are_forgotten_below_what_is_done_and_past_their_window_only(
    postgres: Postgres, tester_of: Testing, agent: Any, inbox: Inbox, key: str
) -> None:
    from semel.effects.inbox import DoneBelow

    tester = tester_of(agent, name=f"p-{key}")
    tester.send_all([Order(f"o{n}") for n in range(3)], key=lambda order: "k")
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        mine = "scope = %s"
        [(topic_id, partition)] = connection.execute(
            f"SELECT DISTINCT topic_id, partition FROM semel.effects WHERE {mine}".encode(), (f"p-{key}",)
        ).fetchall()
        below = (DoneBelow(f"p-{key}", "orders", topic_id, partition, 2),)
        connection.execute(
            f"UPDATE semel.effects SET done_at = done_at - interval '3 days' WHERE {mine}".encode(), (f"p-{key}",)
        )
        assert inbox.purge(timedelta(days=1), done=below) == 0
        connection.execute(
            f"UPDATE semel.effects SET done_at = done_at - interval '5 days' WHERE {mine}".encode(), (f"p-{key}",)
        )
        assert inbox.purge(timedelta(days=1)) == 0
        assert inbox.purge(timedelta(days=1), done=below) == 2


# -- events that are given up, wait, and come back


def test_an_event_that_times_out_in_its_block_or_after_it_has_its_effect_once(
    postgres: Postgres, tester_of: Testing, inbox: Inbox, key: str
) -> None:
    runs: list[tuple[str, bool | None]] = []
    calls: list[str] = []

    async def book(order: Order) -> None:
        calls.append(order.id)
        once = inbox.once(order)
        async with once as connection:
            await connection.execute(INSERT, (f"{key}/{order.id}",))
            runs.append(("in", once.repeated))
            if len(runs) == 1:
                await asyncio.sleep(3600)
        runs.append(("after", once.repeated))
        if len(runs) < 4:
            await asyncio.sleep(3600)

    tester = tester_of(book, name=f"p-{key}", timeout=timedelta(seconds=1), retry=Retry(attempts=5))
    tester.send(Order("o1"), key="k")
    tester.redeliver()
    assert counted(postgres, key) == {"o1": 1}
    assert tester.dead_letters() == []
    # Undone, done, and remembered; each time it is the first event of its run.
    assert runs == [("in", None), ("in", None), ("after", False), ("after", True)]
    assert len(calls) == 3


def test_a_thread_that_is_left_behind_in_its_block_holds_the_key_and_then_knows_no_event(
    postgres: Postgres, inbox: Inbox, key: str, tmp_path: Path
) -> None:
    go, over = threading.Event(), threading.Event()
    runs: list[str] = []
    said: list[Any] = []

    def handle(payment: Payment) -> None:
        runs.append(payment.id)
        first, event = len(runs) == 1, current_event()
        with inbox.once() as connection:
            connection.execute(INSERT, (f"{key}/{payment.id}",))
            if first:
                go.wait(20)
        if first:
            for given in ((event,), ()):
                try:
                    said.append(inbox.once(*given, step="b"))
                except Exception as refused:
                    said.append(type(refused))
            over.set()

    async def hangs_once() -> None:
        world = World(tmp_path)
        world.pipeline = Pipeline(
            APP, source=Topic("payments", key=str, value=Payment), agent=handle, threads=1, timeout=timedelta(seconds=2)
        )
        await world.until_running(world.start())
        world.pay("a1", 1, id=key)
        loop: Any = asyncio.get_running_loop()
        while not runs:  # noqa: ASYNC110
            await asyncio.sleep(0)
        times_out, ends = loop.time() + 3, time.monotonic() + 60
        while len(runs) < 2 and time.monotonic() < ends:
            # Virtual time stands still while a thread works; and a thread takes its time to begin.
            loop.advance(0.01 if loop.time() < times_out else 0)
            await asyncio.sleep(0)
        go.set()
        await world.drained()
        await world.close()

    run_virtual(hangs_once())
    assert over.wait(20)
    assert runs == [key, key]
    assert said == [OutsideEvent, OutsideEvent]
    assert counted(postgres, key) == {key: 1}


def test_two_tasks_of_an_event_with_one_effect_are_told(
    postgres: Postgres, tester_of: Testing, inbox: Inbox, key: str
) -> None:
    async def one(order: Order) -> None:
        async with inbox.once(order) as connection:
            await connection.execute(INSERT, (f"{key}/{order.id}",))

    async def book(order: Order) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one(order))
            tasks.create_task(one(order))

    tester = tester_of(book, name=f"p-{key}", retry=Retry(attempts=1))
    tester.send(Order("o1"), key="k")
    [letter] = tester.dead_letters()
    assert "unhandled errors in a TaskGroup" in letter.error
    assert counted(postgres, key) in ({}, {"o1": 1})


def test_an_effect_of_an_event_that_fails_may_be_tried_again_in_its_handler(
    postgres: Postgres, tester_of: Testing, inbox: Inbox, key: str
) -> None:
    def book(order: Order) -> None:
        try:
            with inbox.once(order) as connection:
                connection.execute(INSERT, (f"{key}/{order.id}",))
                connection.execute("SELECT 1 / 0")
        except psycopg.errors.DivisionByZero:
            with inbox.once(order) as connection:
                connection.execute(INSERT, (f"{key}/{order.id}",))

    tester = tester_of(book, name=f"p-{key}", retry=Retry(attempts=1))
    tester.send(Order("o1"), key="k")
    assert counted(postgres, key) == {"o1": 1}
    assert tester.dead_letters() == []


@pytest.mark.parametrize("trouble", ["crash", "rebalance"])
def test_a_parked_event_finds_its_effect_again_on_another_worker(
    postgres: Postgres, tester_of: Testing, inbox: Inbox, key: str, trouble: str
) -> None:
    repeated: list[bool | None] = []

    def book(order: Order) -> None:
        once = inbox.once(order)
        with once as connection:
            connection.execute(INSERT, (f"{key}/{order.id}",))
        repeated.append(once.repeated)
        if len(repeated) < 3:
            raise ValueError("after the effect")

    tester = tester_of(
        book, name=f"p-{key}", retry=Retry(attempts=5, first_delay=timedelta(minutes=1), max_delay=timedelta(minutes=1))
    )
    tester.send(Order("o1"), key="k", settle=False)
    tester.advance_time(timedelta(seconds=5))
    assert repeated == [False]
    if trouble == "crash":
        tester.crash(lose_state=True)
    else:
        tester.rebalance(2)
    tester.settle()
    assert repeated == [False, True, True]
    assert counted(postgres, key) == {"o1": 1}


@pytest.mark.parametrize("rule", [Dedup("id", window=timedelta(days=7)), None], ids=["by id", "by place"])
def test_events_of_many_keys_at_a_time_have_each_its_effect_once_though_the_worker_dies(
    postgres: Postgres, tester_of: Testing, inbox: Inbox, key: str, rule: Dedup | None
) -> None:
    async def book(order: Order) -> None:
        async with inbox.once(order) as connection:
            await connection.execute(INSERT, (f"{key}/{order.id}",))
            await asyncio.sleep(0.05)

    tester = tester_of(book, name=f"p-{key}", concurrency=8, dedup=rule)
    crashes = [tester.crash(at="commit.after_offsets"), tester.crash(at="barrier.before_seal", nth=3)]
    tester.send_all([Order(f"o{n}") for n in range(40)], key="id")
    assert all(crash.happened for crash in crashes)
    if rule is not None:
        tester.redeliver()
    assert counted(postgres, key) == {f"o{n}": 1 for n in range(40)}
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        [(kinds,)] = connection.execute(
            "SELECT array_agg(DISTINCT substr(id, 1, 1)) FROM semel.effects WHERE scope = %s", (f"p-{key}",)
        ).fetchall()
    assert kinds == [b"p" if rule is None else b"i"]


def replay(tester: PipelineTester, letter: DeadLetter, *, edited: Order | None = None) -> None:
    """As an operator does it."""
    headers = [("semel.replay", b"%d" % (int(letter.headers.get("semel.replay") or b"0") + 1))]
    if hold := letter.letter_headers.get("semel.hold"):
        headers.append(("semel.hold", hold))
    if edited is not None or "semel.edited" in letter.headers:
        headers.append(("semel.edited", b"-"))
    tester.send(
        edited or letter.value, key=letter.key, headers=headers, timestamp=letter.timestamp, partition=letter.partition
    )


@pytest.mark.parametrize("then", ["dead", "hold"])
def test_a_replay_finds_the_effect_of_its_event_and_an_edited_one_has_its_own_once(
    postgres: Postgres, tester_of: Testing, inbox: Inbox, key: str, then: Any
) -> None:
    fails, repeated = ["o1"], list[bool | None]()

    def book(order: Order) -> None:
        once = inbox.once(order)
        with once as connection:
            connection.execute(INSERT, (f"{key}/{order.id}:{order.amount}",))
        if order.id == "o1":
            repeated.append(once.repeated)
        if order.id in fails:
            raise ValueError("after the effect")

    tester = tester_of(book, name=f"p-{key}", retry=Retry(attempts=1, then=then))
    tester.send(Order("o1"), key="k")
    tester.send(Order("o2"), key="k")
    replay(tester, tester.dead_letters()[0])
    assert repeated == [False, True]
    replay(tester, tester.dead_letters()[-1], edited=Order("o1", 12))
    assert repeated == [False, True, False]
    fails.clear()
    # What was edited before comes back as it is.
    replay(tester, tester.dead_letters()[-1])
    assert repeated == [False, True, False, True]
    assert counted(postgres, key) == {"o1:10": 1, "o1:12": 1, "o2:10": 1}
    assert tester.counts.accepted == 2


def test_an_event_of_another_batch_is_not_taken_for_one_of_this(
    postgres: Postgres, tester_of: Testing, inbox: Inbox, key: str
) -> None:
    kept: list[Any] = []

    async def book(orders: Any) -> None:
        async for batch in orders.batches():
            kept.extend(batch.events)
            async with inbox.once(kept[0]) as connection:
                await connection.execute(INSERT, (f"{key}/{kept[0].value.id}",))

    tester = tester_of(book, name=f"p-{key}", retry=Retry(attempts=1))
    tester.send(Order("o1"), partition=0)
    tester.send(Order("o2"), partition=0)
    tester.send(Order("o3"), partition=1)
    assert counted(postgres, key) == {"o1": 1}
    assert [letter.value.id for letter in tester.dead_letters()] == ["o2", "o3"]
    assert "is not in the batch in hand" in tester.dead_letters()[0].error


def test_the_window_of_an_id_goes_by_the_time_that_its_topic_declares(
    postgres: Postgres, inbox: Inbox, key: str
) -> None:
    def book(order: TimedOrder) -> None:
        with inbox.once(order) as connection:
            connection.execute(INSERT, (f"{key}/{order.id}",))

    rule = Dedup("id", window=timedelta(hours=1))
    source = Topic("orders", key=str, value=TimedOrder, time="at")
    with PipelineTester(Pipeline(f"p-{key}", source=source, agent=book, dedup=rule), partitions=1) as tester:
        began = int(tester.now.timestamp() * 1000) - 100_000_000
        # By their records' times all are of one moment.
        for n, hours in enumerate((0, 3, 3, 3)):
            tester.send(TimedOrder(f"o{n}", began + hours * 3_600_000), key="k")
        tester.send(TimedOrder("o0", began + 3 * 3_600_000), key="k")
        assert tester.counts.accepted == 5
    assert counted(postgres, key) == {"o0": 2, "o1": 1, "o2": 1, "o3": 1}


def test_semel_once_in_an_event_needs_a_key_and_a_database_and_works_as_anywhere(
    postgres: Postgres, tester_of: Testing, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semel.effects.inbox._default", [])
    monkeypatch.delenv("SEMEL_INBOX_URL", raising=False)
    calls: list[str] = []

    def book(order: Order) -> None:
        semel.once([key, order.id], order.amount).run(lambda: calls.append(order.id))
        if len(calls) < 2:
            raise ValueError("after the effect")

    tester = tester_of(book, name=f"p-{key}", retry=Retry(attempts=2))
    tester.send(Order("o0"), key="k")
    [letter] = tester.dead_letters()
    assert "set SEMEL_INBOX_URL" in letter.error
    monkeypatch.setenv("SEMEL_INBOX_URL", postgres.url())
    tester.send_all([Order("o1"), Order("o2")], key="id")
    assert sorted(calls) == ["o1", "o2"]
    default_inbox().close()
