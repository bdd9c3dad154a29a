"""PipelineTester: crashes, rebalances, redeliveries, as a test of a pipeline asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from semel import Dedup, Pipeline, Table, Topic
from semel.errors import InstanceTaken
from semel.port import TP
from semel.runtime.failpoints import NAMES
from semel.testing import NotSettled, PipelineTester, PipelineTesterError

TesterOf = Callable[..., PipelineTester]
SHOPS = [f"shop {n}" for n in range(8)]


@dataclass(frozen=True)
class Order:
    id: str
    shop: str
    amount: int


@dataclass(frozen=True)
class Total:
    shop: str
    amount: int


def totals(**declared: Any) -> Pipeline:
    sums = Table("sums", key=str, value=int, default=int)

    async def add(orders: Any) -> AsyncIterator[Total]:
        async for order in orders:
            sums[order.shop] += order.amount
            yield Total(order.shop, sums[order.shop])

    return Pipeline(
        "totals-test",
        source=Topic("orders", key=str, value=Order),
        dedup=Dedup("id", window=timedelta(days=7)),
        agent=add,
        tables=[sums],
        sink=Topic("totals", key=str, value=Total),
        **declared,
    )


def orders(round_: int) -> list[Order]:
    return [Order(f"{round_}-{shop}", shop, round_) for shop in SHOPS]


def check(tester: PipelineTester, rounds: int) -> None:
    """Each round adds its number to every shop, once."""
    wanted = [sum(range(1, n + 1)) for n in range(1, rounds + 1)]
    for shop in SHOPS:
        assert [o.value.amount for o in tester.outputs() if o.value.shop == shop] == wanted
    assert tester.tables["sums"] == dict.fromkeys(SHOPS, wanted[-1])
    assert tester.dead_letters() == []
    assert tester.counts.accepted == rounds * len(SHOPS)


# Passed while an epoch is committed; the others while a worker starts or partitions move.
COMMITTING = [name for name in NAMES if name.startswith(("barrier.", "commit."))]
# Passed only where a transaction that another one left open is ended.
RARE = ["abort.before_end"]


@pytest.mark.parametrize("point", COMMITTING)
@pytest.mark.parametrize("lose_state", [False, True], ids=["state kept", "state lost"])
def test_a_crash_amid_a_commit_changes_nothing(tester_of: TesterOf, point: str, lose_state: bool) -> None:
    tester = tester_of(totals())
    tester.send_all(orders(1), key="shop")
    crash = tester.crash(at=point, lose_state=lose_state)
    assert not crash.happened
    tester.send_all(orders(2), key="shop")
    assert crash.happened
    check(tester, 2)
    tester.redeliver()
    tester.send_all(orders(3), key="shop")
    check(tester, 3)
    assert tester.counts.duplicates == 2 * len(SHOPS)


@pytest.mark.parametrize("point", [name for name in NAMES if name not in [*COMMITTING, *RARE]])
def test_a_crash_while_partitions_are_taken_over_changes_nothing(tester_of: TesterOf, point: str) -> None:
    tester = tester_of(totals())
    tester.send_all(orders(1), key="shop")
    crash = tester.crash(at=point)
    tester.crash(lose_state=True)
    tester.rebalance(2)
    assert crash.happened
    tester.send_all(orders(2), key="shop")
    tester.rebalance(1)
    tester.send_all(orders(3), key="shop")
    check(tester, 3)


def test_a_crash_on_the_spot_keeps_what_is_committed_and_handles_the_rest_again(tester_of: TesterOf) -> None:
    tester = tester_of(totals(), workers=2)
    tester.send_all(orders(1), key="shop")
    tester.send_all(orders(2), key="shop", settle=False)
    assert tester.crash().happened
    tester.settle()
    check(tester, 2)


def test_an_effect_outside_happens_again_after_a_crash_before_the_commit(tester_of: TesterOf) -> None:
    calls: list[str] = []

    def call(order: Order) -> None:
        calls.append(order.id)

    tester = tester_of(Pipeline("calls-test", source=Topic("orders", key=str, value=Order), agent=call))
    tester.crash(at="barrier.before_seal")
    tester.send(Order("o1", "north", 1), key="north")
    assert calls == ["o1", "o1"]
    assert tester.counts.received == 1
    tester.crash()
    tester.crash(lose_state=True)
    assert calls == ["o1", "o1"]


def test_a_local_variable_of_an_agent_does_not_survive_a_crash(tester_of: TesterOf) -> None:
    async def number(orders: Any) -> AsyncIterator[int]:
        seen = 0
        async for _ in orders:
            seen += 1
            yield seen

    pipeline = Pipeline(
        "locals-test",
        source=Topic("orders", key=str, value=Order),
        agent=number,
        sink=Topic("numbers", key=str, value=int),
    )
    tester = tester_of(pipeline)
    tester.send(Order("o1", "north", 1), key="north")
    tester.send(Order("o2", "north", 1), key="north")
    tester.crash()
    tester.send(Order("o3", "north", 1), key="north")
    assert [output.value for output in tester.outputs()] == [1, 2, 1]


def test_a_named_worker_crashes_and_the_other_stays(tester_of: TesterOf) -> None:
    tester = tester_of(totals(), workers=2)
    tester.send_all(orders(1), key="shop")
    crash = tester.crash(at="commit.after_end", worker="w2")
    tester.send_all(orders(2), key="shop")
    assert crash.happened
    tester.crash(worker="w1")
    assert tester.workers == ("w1", "w2")
    check(tester, 2)


def test_the_nth_time_a_failpoint_is_passed_is_counted(tester_of: TesterOf) -> None:
    tester = tester_of(totals())
    crash = tester.crash(at="commit.after_produce", nth=3)
    happened: list[bool] = []
    for number in range(1, 4):
        tester.send_all(orders(number), key="shop")
        happened.append(crash.happened)
    assert happened == [False, False, True]
    check(tester, 3)


def test_a_crash_that_never_happens_is_no_test() -> None:
    tester = PipelineTester(totals())
    tester.crash(at="commit.after_produce", nth=100)
    tester.send_all(orders(1), key="shop")
    with pytest.raises(PipelineTesterError, match=r"crash\(at='commit.after_produce', nth=100\) never happened"):
        tester.close()


def test_partitions_move_between_workers_that_come_and_go(tester_of: TesterOf) -> None:
    tester = tester_of(totals(), partitions=6)
    for number, workers in enumerate([3, 2, 2, 5, 1], 1):
        tester.send_all(orders(number), key="shop")
        tester.rebalance(workers)
        assert tester.workers == tuple(f"w{n}" for n in range(1, workers + 1))
        check(tester, number)
    tester.rebalance()
    assert tester.workers == ("w1",)
    check(tester, 5)


def test_a_rebalance_amid_the_work_changes_nothing(tester_of: TesterOf) -> None:
    tester = tester_of(totals())
    for number in range(1, 4):
        tester.send_all(orders(number), key="shop", settle=False)
        tester.rebalance(number)
    tester.settle()
    check(tester, 3)


def test_more_workers_than_partitions_are_fine(tester_of: TesterOf) -> None:
    tester = tester_of(totals(), partitions=1, workers=3)
    tester.send_all(orders(1), key="shop")
    check(tester, 1)


def test_named_records_are_redelivered(tester_of: TesterOf) -> None:
    tester = tester_of(totals())
    first, second, *_ = tester.send_all(orders(1), key="shop")
    tester.redeliver(second, first)
    assert tester.counts.duplicates == 2
    check(tester, 1)


def test_after_an_event_that_hung_the_tester_can_be_used_on(tester_of: TesterOf) -> None:
    stuck = [True]

    async def hang_once(order: Order) -> Order:
        if stuck.pop():
            stuck.append(False)
            await asyncio.Event().wait()
        stuck.append(False)
        return order

    pipeline = Pipeline(
        "hang-test", source=Topic("orders", key=str, value=Order), agent=hang_once, sink=Topic("done", value=Order)
    )
    tester = tester_of(pipeline)
    with pytest.raises(NotSettled):
        tester.send(Order("o1", "north", 1), key="north")
    tester.settle()
    assert [output.value for output in tester.outputs()] == [Order("o1", "north", 1)]


def test_a_worker_that_gives_up_says_why(tester_of: TesterOf) -> None:
    tester = tester_of(totals())
    tester.send_all(orders(1), key="shop")
    deployment = tester._deployment  # pyright: ignore[reportPrivateUsage]
    deployment.workers["w1"].engine.fail(InstanceTaken("another worker runs as instance 'w1'"))
    with pytest.raises(InstanceTaken, match="another worker runs"):
        tester.send_all(orders(2), key="shop")
    tester.settle()
    check(tester, 2)


# -- what a crash is


def restored_records(tester: PipelineTester) -> int:
    return sum(task.restored for task in tester._deployment.tasks())  # pyright: ignore[reportPrivateUsage]


def test_only_a_worker_that_lost_its_state_restores_its_rows_and_marks(tester_of: TesterOf) -> None:
    tester = tester_of(totals())
    tester.send_all(orders(1), key="shop")
    tester.crash()
    kept = restored_records(tester)
    tester.crash(lose_state=True)
    assert restored_records(tester) >= kept + 2 * len(SHOPS)
    check(tester, 1)


def test_a_killed_worker_leaves_its_transaction_open_and_writes_no_more(tester_of: TesterOf) -> None:
    tester = tester_of(totals(), partitions=1)
    tester.send_all(orders(1), key="shop")
    deployment = tester._deployment  # pyright: ignore[reportPrivateUsage]
    crash = tester.crash(at="commit.after_produce")
    tester.send_all(orders(2), key="shop", settle=False)
    log = deployment.cluster.log(TP("totals", 0))

    async def killed() -> None:
        worker = deployment.workers["w1"]
        await asyncio.wait({worker.running})
        assert crash.happened
        assert len(log.open_transactions()) == 1
        batch = worker.store.batch()
        batch.meta(77, {"written": "by the dead"})
        worker.store.write(batch)
        assert worker.store.meta(77) is None

    tester._run(killed)  # pyright: ignore[reportPrivateUsage]
    tester.settle()
    assert log.open_transactions() == {}
    check(tester, 2)
