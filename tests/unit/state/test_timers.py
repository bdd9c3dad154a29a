"""Timers: an output that is to be sent at a time is sent then, once, whatever happens meanwhile (rule 25)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from semel import Dedup, Output, Pipeline, Retry, Table, Topic
from semel.errors import RecoveryError
from semel.runtime import failpoints
from semel.state.store import Store
from semel.state.timers import AT_HAND, DelayedOutput, TimerLog, TimerPlace, decode, place_of
from semel.testing import PipelineTester

HOUR = timedelta(hours=1)
REMINDERS = Topic("reminders", key=str, value=dict)


@dataclass
class Order:
    id: str
    customer: str
    # When its reminder is sent: so many seconds after it, -1: none.
    remind_s: int = 3600
    fails: int = 0


class Shop:
    """An order is confirmed at once, and its customer is reminded of it later."""

    def __init__(self) -> None:
        self.attempts: dict[str, int] = {}

    def maybe_fail(self, order: Order) -> None:
        self.attempts[order.id] = self.attempts.get(order.id, 0) + 1
        if self.attempts[order.id] <= order.fails:
            raise OSError(f"{order.id} fails")

    def results(self, order: Order) -> list[Any]:
        reminder = Output({"remind": order.id}, topic=REMINDERS, at=timedelta(seconds=order.remind_s))
        return [{"confirm": order.id}, *([reminder] if order.remind_s >= 0 else [])]


def streaming(shop: Shop) -> Callable[[Any], Any]:
    async def take(orders: Any) -> AsyncIterator[Any]:
        async for order in orders:
            for result in shop.results(order):
                yield result
            shop.maybe_fail(order)

    return take


def batching(shop: Shop) -> Callable[[Any], Any]:
    async def take(orders: Any) -> AsyncIterator[Any]:
        async for batch in orders.batches():
            for order in batch:
                for result in shop.results(order):
                    yield result
                shop.maybe_fail(order)

    return take


def shop_of(
    agent: Any = streaming, *, partitions: int = 1, workers: int = 1, retry: Retry | None = None
) -> PipelineTester:
    pipeline = Pipeline(
        "shop", source=Topic("orders", key=str, value=Order), agent=agent(Shop()), sink=Topic("confirmations", value=dict),
        dedup=Dedup("id", window=timedelta(days=1)),
        retry=retry or Retry(attempts=3, first_delay=timedelta(seconds=1), max_delay=timedelta(seconds=2)),
    )  # fmt: skip
    return PipelineTester(pipeline, partitions=partitions, workers=workers)


def orders(count: int, **more: Any) -> list[Order]:
    return [Order(f"o{n}", f"c{n % 7}", **more) for n in range(count)]


def reminded(t: PipelineTester) -> list[str]:
    return [out.value["remind"] for out in t.outputs(REMINDERS)]


def confirmed(t: PipelineTester) -> list[str]:
    return [out.value["confirm"] for out in t.outputs("confirmations")]


@pytest.mark.parametrize("agent", [streaming, batching])
def test_an_output_with_a_time_is_sent_when_that_has_come_and_not_before(agent: Any) -> None:
    with shop_of(agent) as t:
        sent = t.send_all(orders(5), key="customer")
        assert confirmed(t) == [f"o{n}" for n in range(5)]
        t.advance_time(HOUR - timedelta(seconds=1))
        assert reminded(t) == []
        t.advance_time(timedelta(seconds=2))
        assert sorted(reminded(t)) == [f"o{n}" for n in range(5)]
        out = t.outputs(REMINDERS)[0]
        assert (out.key, out.timestamp) == (sent[0].key, sent[0].timestamp + 3_600_000)
        t.advance_time(HOUR)
        assert len(reminded(t)) == 5


def test_those_that_are_due_first_are_sent_first_whatever_the_order_of_their_events() -> None:
    with shop_of() as t:
        t.send_all([Order("late", "c", 300), Order("soon", "c", 100), Order("between", "c", 200)], key="customer")
        t.advance_time(HOUR)
        assert reminded(t) == ["soon", "between", "late"]


def test_one_whose_time_is_past_is_sent_with_its_event() -> None:
    async def take(orders: Any) -> AsyncIterator[Any]:
        async for order in orders:
            yield Output({"remind": order.id}, topic=REMINDERS, at=datetime(2001, 1, 1, tzinfo=UTC))

    pipeline = Pipeline("shop", source=Topic("orders", key=str, value=Order), agent=take)
    with PipelineTester(pipeline) as t:
        t.send(Order("o1", "c"))
        [out] = t.outputs(REMINDERS)
        assert out.timestamp == datetime(2001, 1, 1, tzinfo=UTC).timestamp() * 1000


def test_a_date_is_the_wall_clocks_and_a_stamp_of_its_own_is_kept() -> None:
    when: list[datetime] = []

    def take(order: Order) -> Any:
        return Output(
            {"remind": order.id}, topic=REMINDERS, at=when[0], timestamp_ms=1_000, key="k", headers={"h": "v"}
        )

    pipeline = Pipeline("shop", source=Topic("orders", key=str, value=Order), agent=take)
    with PipelineTester(pipeline) as t:
        when.append(t.now + HOUR)
        t.send(Order("o1", "c"))
        t.advance_time(HOUR - timedelta(seconds=1))
        assert t.outputs(REMINDERS) == []
        t.advance_time(timedelta(seconds=1))
        [out] = t.outputs(REMINDERS)
        assert (out.key, out.timestamp, dict(out.headers)["h"]) == ("k", 1_000, b"v")


@pytest.mark.parametrize("lose_state", [False, True])
def test_what_is_pending_survives_a_crash_and_the_loss_of_the_state_and_is_sent_once(lose_state: bool) -> None:
    with shop_of(partitions=3, workers=2) as t:
        t.send_all(orders(40), key="customer")
        t.crash(lose_state=lose_state)
        t.advance_time(timedelta(minutes=30))
        t.rebalance(3)
        t.advance_time(timedelta(minutes=31))
        assert sorted(reminded(t)) == sorted(f"o{n}" for n in range(40))
        t.crash(lose_state=lose_state)
        t.advance_time(HOUR)
        assert len(reminded(t)) == 40


STEPS = [name for name in failpoints.NAMES if name.startswith(("barrier.", "commit."))]


@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize("lose_state", [False, True])
def test_a_worker_that_dies_at_any_step_of_sending_sends_it_once(at: str, lose_state: bool) -> None:
    with shop_of() as t:
        t.send_all(orders(3), key="customer")
        crash = t.crash(at=at, lose_state=lose_state)
        t.advance_time(HOUR + timedelta(minutes=1))
        assert crash.happened
        assert sorted(reminded(t)) == ["o0", "o1", "o2"]


@pytest.mark.parametrize("at", STEPS)
def test_a_worker_that_dies_at_any_step_of_setting_it_sets_it_once(at: str) -> None:
    with shop_of() as t:
        t.crash(at=at)
        t.send_all(orders(3), key="customer")
        t.advance_time(HOUR + timedelta(minutes=1))
        assert sorted(reminded(t)) == ["o0", "o1", "o2"]
        assert confirmed(t) == ["o0", "o1", "o2"]


@pytest.mark.parametrize("agent", [streaming, batching])
def test_an_event_that_fails_sets_nothing_and_its_next_attempt_sets_the_same(agent: Any) -> None:
    with shop_of(agent) as t:
        t.send_all([Order("o1", "c", fails=2), Order("o2", "d"), Order("dead", "e", fails=9)], key="customer")
        t.advance_time(HOUR + timedelta(minutes=1))
        assert sorted(reminded(t)) == ["o1", "o2"]
        assert [letter.value.id for letter in t.dead_letters()] == ["dead"]


def test_a_duplicate_sets_nothing() -> None:
    with shop_of() as t:
        t.send(Order("o1", "c"), key="c")
        t.redeliver()
        t.advance_time(HOUR + timedelta(minutes=1))
        assert reminded(t) == ["o1"]


def test_a_key_that_is_parked_does_not_hold_up_what_its_earlier_events_have_left_to_be_sent() -> None:
    with shop_of(retry=Retry(attempts=1, then="park", first_delay=timedelta(days=1), max_delay=timedelta(days=1))) as t:
        t.send_all([Order("o1", "c"), Order("o2", "c", fails=99)], key="customer")
        t.advance_time(HOUR + timedelta(minutes=1))
        assert reminded(t) == ["o1"]


def test_a_time_without_a_zone_or_of_another_type_is_refused_where_it_is_given() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        Output({}, at=datetime(2030, 1, 1))
    with pytest.raises(TypeError, match="give a datetime"):
        Output({}, at=1_700_000_000)  # type: ignore[arg-type]


def test_timers_is_no_name_of_a_table() -> None:
    with pytest.raises(Exception, match="reserved"):
        Table("timers")


# -- the log itself


def place(due_ms: int, offset: int = 0, step: int = 0) -> TimerPlace:
    return TimerPlace(due_ms, "orders", "take", offset, step)


def test_a_row_is_read_back_and_rows_are_in_the_order_in_which_they_are_due() -> None:
    places = [
        place(due, offset, step)
        for due in (0, 1, 255, 256, 1 << 40, (1 << 63) - 1)
        for offset in (0, 300)
        for step in (0, 1)
    ]
    rows = [p.encode() for p in places]
    assert [place_of(row) for row in rows] == places
    assert sorted(rows) == rows
    output = DelayedOutput("reminders", 5, None, b"value", [("a", b"1"), ("a", None), ("\u00fc", b"")])
    assert decode(rows[0], output.encode()) == output
    tombstone = DelayedOutput("reminders", 5, b"", None, [])
    assert decode(rows[0], tombstone.encode()) == tombstone


@pytest.mark.parametrize("raw", [b"", b"\x02" + bytes(12), DelayedOutput("t", 1, b"k", b"v", []).encode()[:-1]])
def test_what_cannot_be_read_is_refused(raw: bytes) -> None:
    with pytest.raises(RecoveryError, match="another version"):
        decode(place(1).encode(), raw)
    with pytest.raises(RecoveryError, match="another version"):
        place_of(b"x" + raw)


class Kept:
    """A log of timers over a store, whose epochs are committed at once."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.log = self.begin()

    def begin(self, count: int = 0) -> TimerLog:
        self.log = TimerLog(self.store, 0, 1, "shop-timers", max_bytes=1 << 20)
        self.log.count = count
        return self.log

    def set(self, *dues: int, offset: int = 0, size: int = 10) -> None:
        for n, due in enumerate(dues):
            output = DelayedOutput("t", due, b"k", bytes(size), []).encode()
            self.log.join({place(due, offset + n).encode(): output})

    def commit(self) -> None:
        [*self.log.seal()]
        batch = self.store.batch()
        self.log.land(batch, -1, None)
        self.store.write(batch)
        self.log.landed()

    def sent(self, now_ms: int) -> list[int]:
        found: list[int] = []
        while (taken := self.log.take(now_ms)) is not None:
            row, output = taken
            self.log.done(row, output.topic)
            found.append(output.timestamp)
        return found


@pytest.fixture
def kept(tmp_path: Path) -> Any:
    kept = Kept(tmp_path / "db")
    yield kept
    kept.store.close()


def test_one_that_is_set_and_sent_in_one_epoch_leaves_nothing_in_the_log(kept: Kept) -> None:
    kept.set(5, 3)
    assert kept.sent(4) == [3]
    assert dict(kept.log.seal()).keys() == {place(5).encode()}
    assert (kept.log.count, kept.log.sent) == (1, {"t": 1})


def test_many_more_than_are_at_hand_come_in_their_order_also_after_a_restart(kept: Kept) -> None:
    count = 3 * AT_HAND + 7
    dues = [(n * 7919) % count for n in range(count)]
    kept.set(*dues)
    assert len(kept.log._heap) <= 2 * AT_HAND
    kept.commit()
    assert kept.sent(99) == [*range(100)]
    kept.commit()
    kept.begin(count - 100)
    kept.set(150, 50, offset=count)
    assert kept.log.next_due_ms == 0
    found = kept.sent(count)
    assert found == sorted([*range(100, count), 150, 50])
    assert kept.log.count == 0
    assert kept.log.next_due_ms is None


def test_what_is_set_while_others_are_at_hand_takes_its_place_among_them(kept: Kept) -> None:
    count = 2 * AT_HAND
    kept.set(*range(0, 2 * count, 2))
    kept.commit()
    kept.begin(count)
    assert kept.sent(-1) == []
    # Before those at hand, among them, behind them, and in an epoch that is on its way.
    kept.set(1, AT_HAND + 1, 2 * count - 1, offset=count)
    [*kept.log.seal()]
    kept.set(3, 2 * count - 3, offset=2 * count)
    assert kept.sent(2 * count) == sorted([*range(0, 2 * count, 2), 1, 3, AT_HAND + 1, 2 * count - 3, 2 * count - 1])


def test_an_epoch_that_is_dropped_is_forgotten(kept: Kept) -> None:
    kept.set(1, 2, 3)
    kept.commit()
    assert kept.sent(2) == [1, 2]
    kept.set(4, offset=9)
    kept.log.drop()
    kept.log.count = 3
    assert kept.sent(9) == [1, 2, 3]


def test_large_ones_are_not_at_hand(kept: Kept) -> None:
    kept.set(*range(10), size=100_000)
    assert all(output is None for _, output in kept.log._heap)
    assert kept.sent(4) == [0, 1, 2, 3, 4]
    kept.commit()
    assert kept.sent(9) == [5, 6, 7, 8, 9]


def test_what_is_set_aside_holds_up_nobody_and_comes_again(kept: Kept) -> None:
    kept.set(1, 2)
    taken = kept.log.take(5)
    assert taken is not None
    kept.log.set_aside(taken[0], until=10.0)
    assert kept.sent(5) == [2]
    kept.log.bring_back(9.9)
    assert kept.sent(5) == []
    kept.log.bring_back(10.0)
    assert kept.sent(5) == [1]
