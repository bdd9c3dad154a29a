"""Timers with a name: of those that a key gives one name the last is pending, unless it is cancelled (rule 25)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from semel import Dedup, Output, Pipeline, Retry, Table, Topic
from semel.errors import RecoveryError
from semel.runtime import failpoints
from semel.state import timers
from semel.state.store import Store, StoreError
from semel.state.timers import DelayedOutput, EventTimers, TimerLog, TimerPlace, decode, is_name, name_row, place_of
from semel.testing import PipelineTester

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
REMINDERS = Topic("reminders", key=str, value=dict)


@dataclass
class Order:
    id: str
    customer: str
    # In how many seconds its reminder is sent; -1: that of the customer is cancelled.
    remind_s: int = 3600
    name: str | None = "reminder"
    fails: int = 0
    wait_s: float = 0.0


class Shop:
    def __init__(self) -> None:
        self.attempts: dict[str, int] = {}

    def result(self, order: Order) -> Output:
        if order.remind_s < 0:
            return Output.cancel(order.name or "")
        return Output({"remind": order.id}, topic=REMINDERS, at=timedelta(seconds=order.remind_s), name=order.name)

    async def finish(self, order: Order) -> None:
        self.attempts[order.id] = self.attempts.get(order.id, 0) + 1
        if order.wait_s:
            await asyncio.sleep(order.wait_s)
        if self.attempts[order.id] <= order.fails:
            raise OSError(f"{order.id} fails")


def streaming(shop: Shop) -> Callable[[Any], Any]:
    async def take(orders: Any) -> AsyncIterator[Any]:
        async for order in orders:
            yield shop.result(order)
            await shop.finish(order)

    return take


def batching(shop: Shop) -> Callable[[Any], Any]:
    async def take(orders: Any) -> AsyncIterator[Any]:
        async for batch in orders.batches():
            for order in batch:
                yield shop.result(order)
                await shop.finish(order)

    return take


def calling(shop: Shop) -> Callable[[Any], Any]:
    async def take(order: Order) -> Any:
        await shop.finish(order)
        return shop.result(order)

    return take


def shop_of(agent: Any = streaming, **options: Any) -> PipelineTester:
    pipeline = Pipeline(
        "shop", source=Topic("orders", key=str, value=Order), agent=agent(Shop()), dedup=Dedup("id", window=timedelta(days=1)),
        retry=Retry(attempts=3, first_delay=timedelta(seconds=1), max_delay=timedelta(seconds=2)),
        concurrency=options.pop("concurrency", 1),
    )  # fmt: skip
    return PipelineTester(pipeline, **options)


def reminded(t: PipelineTester) -> list[str]:
    return [out.value["remind"] for out in t.outputs(REMINDERS)]


EACH_AGENT = pytest.mark.parametrize("agent", [streaming, batching, calling])


@EACH_AGENT
def test_the_same_name_set_again_replaces_what_the_key_had_pending_and_no_others(agent: Any) -> None:
    with shop_of(agent) as t:
        t.send_all([Order("a1", "a"), Order("b1", "b"), Order("a2", "a", 7200), Order("a3", "a", 9000, "other"),
                    Order("a4", "a", 60, None)], key="customer")  # fmt: skip
        t.advance_time(HOUR + MINUTE)
        assert sorted(reminded(t)) == ["a4", "b1"]
        t.advance_time(HOUR)
        assert sorted(reminded(t)) == ["a2", "a4", "b1"]
        t.advance_time(HOUR)
        assert sorted(reminded(t)) == ["a2", "a3", "a4", "b1"]


@EACH_AGENT
def test_what_is_cancelled_is_never_sent_and_its_name_may_be_set_again(agent: Any) -> None:
    with shop_of(agent) as t:
        t.send_all([Order("a1", "a"), Order("b1", "b")], key="customer")
        t.send(Order("a2", "a", -1), key="a")
        t.advance_time(2 * HOUR)
        assert reminded(t) == ["b1"]
        t.send(Order("a3", "a"), key="a")
        t.advance_time(2 * HOUR)
        assert reminded(t) == ["b1", "a3"]


def test_cancelling_what_was_sent_or_never_set_changes_nothing() -> None:
    with shop_of() as t:
        t.send(Order("a0", "a", -1), key="a")
        t.send(Order("a1", "a", 60), key="a")
        t.advance_time(2 * MINUTE)
        t.send(Order("a2", "a", -1), key="a")
        t.send(Order("a3", "a", 60), key="a")
        t.advance_time(2 * MINUTE)
        assert reminded(t) == ["a1", "a3"]
        assert t.dead_letters() == []


def test_one_that_is_due_already_is_sent_with_its_event_and_replaces_as_any_other() -> None:
    with shop_of() as t:
        t.send(Order("a1", "a"), key="a")
        t.send(Order("a2", "a", 0), key="a")
        t.advance_time(2 * HOUR)
        assert reminded(t) == ["a2"]


STEPS = [name for name in failpoints.NAMES if name.startswith(("barrier.", "commit."))]


@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize("lose_state", [False, True])
def test_a_worker_that_dies_at_any_step_of_replacing_or_cancelling_does_either_once(at: str, lose_state: bool) -> None:
    with shop_of() as t:
        t.send_all([Order("a1", "a", 600), Order("b1", "b", 600), Order("c1", "c", 600)], key="customer")
        crash = t.crash(at=at, lose_state=lose_state)
        t.send_all([Order("a2", "a", 1200), Order("b2", "b", -1)], key="customer")
        assert crash.happened
        t.advance_time(11 * MINUTE)
        assert reminded(t) == ["c1"]
        t.crash(at=at, lose_state=lose_state)
        t.advance_time(20 * MINUTE)
        assert reminded(t) == ["c1", "a2"]
        t.send(Order("a3", "a", 600), key="a")
        t.crash(lose_state=True)
        t.advance_time(HOUR)
        assert reminded(t) == ["c1", "a2", "a3"]


@pytest.mark.parametrize("agent", [streaming, batching])
def test_an_event_that_fails_leaves_what_was_pending_and_its_last_attempt_counts(agent: Any) -> None:
    with shop_of(agent) as t:
        t.send_all([Order(f"{c}1", c) for c in "abcd"], key="customer")
        t.send_all([Order("a2", "a", -1, fails=2), Order("b2", "b", 7200, fails=2), Order("c2", "c", -1, fails=9),
                    Order("d2", "d", 7200, fails=9)], key="customer")  # fmt: skip
        t.advance_time(HOUR + MINUTE)
        assert sorted(reminded(t)) == ["c1", "d1"]
        t.advance_time(HOUR)
        assert sorted(reminded(t)) == ["b2", "c1", "d1"]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_event_that_waits_behind_a_parked_one_of_its_key_ends_what_is_pending_when_it_is_done(
    concurrency: int,
) -> None:
    with shop_of(concurrency=concurrency) as t:
        t.send_all([Order("a1", "a"), Order("b1", "b")], key="customer")
        # Of a the cancelling waits behind one that fails and sets it anew, of b the setting behind one that fails and cancels.
        t.send_all([Order("a2", "a", 7200, fails=2), Order("a3", "a", -1), Order("b2", "b", -1, fails=2), Order("b3", "b", 7200)],
                   key="customer")  # fmt: skip
        t.crash(lose_state=True)
        t.advance_time(HOUR + MINUTE)
        assert reminded(t) == []
        t.advance_time(2 * HOUR)
        assert reminded(t) == ["b3"]


def test_a_timer_of_a_parked_key_is_sent_before_the_event_that_would_have_cancelled_it() -> None:
    """That event waits for its turn; the one that set the timer is done, and has promised it."""
    with shop_of() as t:
        t.send(Order("a1", "a", 1), key="a")
        t.send_all([Order("a2", "a", 7200, "other", fails=2), Order("a3", "a", -1)], key="customer")
        t.advance_time(MINUTE)
        assert reminded(t) == ["a1"]
        t.advance_time(3 * HOUR)
        assert reminded(t) == ["a1", "a2"]


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(("then", "wanted"), [(-1, ["a1"]), (7200, ["a1", "a2"])])
@pytest.mark.parametrize("lose_state", [None, False, True])
def test_one_that_is_sent_while_an_event_is_in_hand_that_would_cancel_or_replace_it_is_sent(
    concurrency: int, then: int, wanted: list[str], lose_state: bool | None
) -> None:
    with shop_of(concurrency=concurrency) as t:
        t.send(Order("a1", "a", 60), key="a")
        t.advance_time(timedelta(seconds=58))
        # It has said so before the other is due, and is done after.
        t.send(Order("a2", "a", then, wait_s=4.0), key="a")
        t.advance_time(10 * MINUTE)
        assert reminded(t) == ["a1"]
        if lose_state is not None:
            t.crash(lose_state=lose_state)
        t.advance_time(2 * HOUR)
        assert reminded(t) == wanted
        assert t.dead_letters() == []


def test_keys_that_are_handled_side_by_side_have_their_own() -> None:
    with shop_of(concurrency=16) as t:
        many = [Order(f"{c}{n}", c, 600 + n, wait_s=0.01) for n in range(5) for c in "abcdefgh"]
        t.send_all([*many, *(Order(f"{c}9", c, -1) for c in "abcd")], key="customer")
        t.advance_time(HOUR)
        assert sorted(reminded(t)) == ["e4", "f4", "g4", "h4"]


def test_the_key_is_the_events_whatever_the_outputs_is_and_an_event_without_one_has_no_named_timer() -> None:
    def take(order: Order) -> Any:
        return Output({"remind": order.id}, topic=REMINDERS, at=HOUR, name="n", key=order.id)

    pipeline = Pipeline("shop", source=Topic("orders", key=str, value=Order), agent=take)
    with PipelineTester(pipeline) as t:
        t.send(Order("a1", "a"), key="a")
        t.send(Order("a2", "a"), key="a")
        t.send(Order("none", ""), key=None)
        [letter] = t.dead_letters()
        assert "this event has none" in letter.error
        t.advance_time(2 * HOUR)
        assert [(out.key, out.value["remind"]) for out in t.outputs(REMINDERS)] == [("a2", "a2")]


def test_a_batch_says_whose_it_cancels() -> None:
    async def take(orders: Any) -> AsyncIterator[Any]:
        async for batch in orders.batches():
            held = list(batch)
            for order in held:
                yield Output({"remind": order.id}, topic=REMINDERS, at=HOUR, name="n", of=order)
            yield Output.cancel("n", of=held[0])

    pipeline = Pipeline("shop", source=Topic("orders", key=str, value=Order), agent=take)
    with PipelineTester(pipeline) as t:
        t.send_all([Order("a1", "a"), Order("b1", "b")], key="customer")
        t.advance_time(2 * HOUR)
        assert reminded(t) == ["b1"]


def test_a_name_that_is_none_is_refused_where_it_is_given() -> None:
    with pytest.raises(ValueError, match="without at="):
        Output({}, name="n")
    with pytest.raises(ValueError, match="1 to 200 bytes"):
        Output({}, at=HOUR, name="")
    with pytest.raises(ValueError, match="1 to 200 bytes"):
        Output.cancel("ü" * 101)
    with pytest.raises(TypeError, match="is a str"):
        Output.cancel(b"n")  # type: ignore[arg-type]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_timer_that_comes_back_through_the_source_is_handled_as_an_event_of_its_key(concurrency: int) -> None:
    """The way to have code run at a time, and not only an output sent: it has the key's rows, its retries and its place."""
    orders, open_orders = Topic("orders", key=str, value=dict), Table("open_orders", key=str, value=str)
    handled: list[str] = []

    async def take(events: Any) -> AsyncIterator[Any]:
        async for event in events:
            handled.append(event["id"])
            if handled.count(event["id"]) <= event.get("fails", 0):
                raise OSError(f"{event['id']} fails")
            if event["type"] == "order":
                open_orders[event["order"]] = event["id"]
                expiry = {"type": "expiry", "id": f"{event['id']}-expiry", "order": event["order"], "fails": 2}
                yield Output(expiry, topic=orders, at=HOUR, name="expiry")
            elif event["type"] == "paid":
                yield Output.cancel("expiry")
            elif event["type"] == "expiry":
                yield Output({"remind": f"{event['id']} of {open_orders.pop(event['order'])}"}, topic=REMINDERS)

    pipeline = Pipeline(
        "shop", source=orders, agent=take, tables=[open_orders], dedup=Dedup("id", window=timedelta(days=1)),
        retry=Retry(attempts=3, first_delay=MINUTE, max_delay=MINUTE), concurrency=concurrency,
    )  # fmt: skip
    with PipelineTester(pipeline, partitions=3) as t:
        for c in "abc":
            t.send({"type": "order", "id": f"{c}1", "order": c}, key=c)
        t.send({"type": "paid", "id": "b2", "order": "b"}, key="b")
        t.crash(lose_state=True)
        t.advance_time(HOUR - timedelta(seconds=30))
        # It is parked when the timer of its key is due, which waits behind it.
        t.send({"type": "note", "id": "c2", "order": "c", "fails": 2}, key="c")
        t.advance_time(20 * MINUTE)
        assert sorted(reminded(t)) == ["a1-expiry of a1", "c1-expiry of c1"]
        assert {out.key for out in t.outputs(REMINDERS)} == {"a", "c"}
        assert dict(t.tables["open_orders"]) == {"b": "b1"}
        assert [id for id in handled if id.startswith("c")][-6:] == ["c2"] * 3 + ["c1-expiry"] * 3
        assert t.dead_letters() == []


# -- the log itself


def place(due_ms: int, offset: int) -> TimerPlace:
    return TimerPlace(due_ms, "orders", "take", offset, 0, named=True)


def test_rows_of_timers_with_a_name_are_read_back_and_names_come_after_all_of_them() -> None:
    at = TimerPlace(7, "orders", "take", 1 << 40, 3, named=True)
    assert place_of(at.encode()) == at
    assert place_of(at._replace(named=False).encode()) == at._replace(named=False)
    output = DelayedOutput("reminders", 5, b"k", b"value", [("a", None)], name_row(b"key", "näme"))
    assert decode(at.encode(), output.encode()) == output
    with pytest.raises(RecoveryError, match="another version"):
        decode(at.encode(), output.encode()[:-1])
    names = [name_row(b"", "a"), name_row(b"a", ""), name_row(b"a", "b"), name_row(b"ab", "")]
    assert len({*names}) == len(names)
    assert all(is_name(row) and row > place((1 << 63) - 1, 1).encode() for row in names)
    assert not is_name(at.encode())


class Model:
    """A log of timers over a store, and what it must hold: of each name when it is due, and by how many events from the store."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.wanted: dict[str, int] = {}
        self.committed: dict[str, int] = {}
        self.offset = 0
        self.log = self.begin()

    def begin(self) -> TimerLog:
        self.log = TimerLog(self.store, 0, 1, "shop-timers", max_bytes=1 << 20)
        self.log.count = len(self.committed)
        self.wanted = dict(self.committed)
        return self.log

    def event(self) -> EventTimers:
        return EventTimers(self.log)

    def set(self, event: EventTimers, name: str, due_ms: int) -> None:
        self.offset += 1
        row = name_row(b"key", name)
        output = DelayedOutput(name, due_ms, b"k", b"", [], row)
        event.set(place(due_ms, self.offset), output.encode(), row)

    def commit(self) -> None:
        [*self.log.seal()]
        batch = self.store.batch()
        self.log.land(batch, -1, None)
        self.store.write(batch)
        self.log.landed()
        self.committed = dict(self.wanted)

    def sent(self, now_ms: int) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        while (taken := self.log.take(now_ms)) is not None:
            row, output = taken
            self.log.done(row, output.topic, output.name)
            found.append((output.timestamp, output.topic))
        return found


@pytest.fixture
def model(tmp_path: Path) -> Any:
    model = Model(tmp_path / "db")
    yield model
    model.store.close()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_set_replaced_cancelled_and_dropped_what_is_left_is_sent_in_its_order(
    model: Model, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "AT_HAND", 4)
    rng, now = random.Random(seed), 0
    for _ in range(400):
        action = rng.random()
        if action < 0.7:
            event, then = model.event(), dict(model.wanted)
            for _ in range(rng.randrange(1, 4)):
                name = f"n{rng.randrange(25)}"
                if rng.random() < 0.3:
                    event.cancel(name_row(b"key", name))
                    then.pop(name, None)
                else:
                    due = now + rng.randrange(60)
                    model.set(event, name, due)
                    then[name] = due
            if rng.random() < 0.1:
                model.sent(-1)
            if rng.random() < 0.1:
                event.undo()
            else:
                event.fold()
                model.wanted = then
        elif action < 0.85:
            now += rng.randrange(20)
            found = model.sent(now)
            assert sorted(found) == sorted((due, name) for name, due in model.wanted.items() if due <= now)
            assert [due for due, _ in found] == sorted(due for due, _ in found)
            model.wanted = {name: due for name, due in model.wanted.items() if due > now}
        elif action < 0.95:
            model.commit()
        elif action < 0.98:
            model.log.drop()
            model.wanted = dict(model.committed)
            model.log.count = len(model.committed)
        else:
            model.begin()
        assert model.log.count == len(model.wanted)
        due_ms = model.log.next_due_ms
        assert due_ms in (0, min(model.wanted.values(), default=None))
        assert len(model.log._gone) <= len(model.log._heap) <= 2 * timers.AT_HAND + 30
        assert model.log._watched == {}
    assert sorted(model.sent(10**6)) == sorted((due, name) for name, due in model.wanted.items())
    model.commit()
    assert [*model.store.scan_rows(model.log._prefix)] == []


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("commits", [False, True])
def test_what_is_sent_and_committed_while_an_event_looks_at_its_name_is_not_counted_twice(
    model: Model, cancels: bool, commits: bool
) -> None:
    first, name = model.event(), name_row(b"key", "n")
    model.set(first, "n", 5)
    first.fold()
    model.commit()
    event = model.event()
    if cancels:
        event.cancel(name)
    else:
        model.set(event, "n", 50)
    assert model.sent(5) == [(5, "n")]
    if commits:
        model.commit()
    event.fold()
    assert model.log.count == (0 if cancels else 1)
    model.commit()
    assert model.sent(99) == ([] if cancels else [(50, "n")])


def test_of_two_events_that_look_at_one_name_the_later_one_ends_what_the_first_has_set(model: Model) -> None:
    first, second, third = model.event(), model.event(), model.event()
    for event in (first, second):
        model.set(event, "n", 5)
    third.cancel(name_row(b"key", "n"))
    first.fold()
    second.fold()
    assert model.log.count == 1
    third.fold()
    assert (model.log.count, model.sent(99)) == (0, [])
    model.commit()
    assert [*model.store.scan_rows(model.log._prefix)] == []


def test_one_that_is_set_aside_is_cancelled_as_any_other(model: Model) -> None:
    event = model.event()
    model.set(event, "n", 5)
    event.fold()
    taken = model.log.take(5)
    assert taken is not None
    model.log.set_aside(taken[0], until=10.0)
    event = model.event()
    event.cancel(name_row(b"key", "n"))
    event.fold()
    model.log.bring_back(10.0)
    assert (model.sent(99), model.log.count, model.log.aside_until) == ([], 0, None)


def test_a_store_that_cannot_be_read_is_the_events_to_hear_of_and_nothing_is_set(model: Model) -> None:
    def unreadable(_: bytes) -> None:
        raise OSError("input/output error")

    event, read = model.event(), model.store.get_row
    model.store.get_row = unreadable
    with pytest.raises(StoreError):
        model.set(event, "n", 5)
    model.store.get_row = read
    assert (event.pending, model.log._watched) == ({}, {})
