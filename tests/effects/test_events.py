"""The effects of a pipeline's events, on a real PostgreSQL: the key comes from the event, whatever becomes of the worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from semel import Dedup, Inbox, Pipeline, Retry, Topic, current_event
from semel.errors import OutsideEvent
from semel.testing import PipelineTester
from tests.postgres import Postgres

Testing = Callable[..., PipelineTester]


@dataclass(frozen=True)
class Order:
    id: str
    amount: int = 10


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
