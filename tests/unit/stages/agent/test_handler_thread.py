"""Handler threads: a plain function with `threads=` may block, and is handled as any other (protocol rules 1, 3 and 5)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from semel import Pipeline, Retry, Table, Topic
from semel.errors import DeclarationError, StaleIncarnation
from semel.state.store import StoreError
from semel.state.table_rows import Rows
from semel.testing import PipelineTester
from semel.testing.clock import VirtualLoop
from tests.unit.harness import APP, ATTEMPTS, Payment, World, payments_pipeline
from tests.unit.payments import Settlement

SOURCE = Topic("payments", key=str, value=Payment)
RETRY = Retry(attempts=ATTEMPTS, first_delay=timedelta(milliseconds=20), max_delay=timedelta(milliseconds=100))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    world.pipeline = payments_pipeline(world.work, style="function", threads=8)
    yield world
    await world.close()


def one_table(handle: Callable[[Payment, Table], Any], **declared: Any) -> Pipeline:
    table = Table("balances", key=str, value=int, default=int, **declared)
    return Pipeline(
        APP, source=SOURCE, agent=lambda payment: handle(payment, table), kind="event", tables=[table],
        sink=Topic("settlements", key=str, value=Settlement), threads=8, retry=RETRY,
    )  # fmt: skip


async def turning_until(condition: Callable[[], bool]) -> None:
    """The loop turns, and virtual time stands still."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


def settled(world: World) -> list[str]:
    return [orjson.loads(r.value or b"")["id"] for log in world.cluster.committed("settlements") for r in log]


async def test_events_of_different_keys_block_side_by_side_and_the_loop_goes_on(world: World) -> None:
    together = threading.Barrier(9)

    def handle(payment: Payment, balances: Table) -> Settlement:
        together.wait(10)
        balances[payment.account] += payment.amount
        return Settlement(payment.id, payment.account, balances[payment.account])

    world.pipeline = one_table(handle)
    await world.until_running(world.start())
    for n in range(8):
        world.pay(f"a{n}", 1)
    # They return only when the loop has come here as well.
    await turning_until(lambda: together.n_waiting == 8)
    together.wait(10)
    await world.drained()
    assert len(settled(world)) == 8


async def test_each_key_keeps_its_order_and_every_event_takes_effect_once(world: World) -> None:
    await world.until_running(world.start())
    world.pay_many(400)
    await world.drained(within_s=300)
    world.check()


@pytest.mark.parametrize("seed", range(3))
async def test_workers_killed_at_any_moment_lose_and_double_nothing(world: World, seed: int) -> None:
    world.rng.seed(seed)
    world.slow_network()
    for n in range(8):
        worker = world.start(f"w{n % 2}")
        world.pay_many(60)
        await world.clock.sleep(world.rng.random() * 2)
        worker.kill()
        await worker.gone()
        if world.rng.random() < 0.3:
            world.lose_store(worker.name)
    await world.caught_up()
    world.check()


async def test_threads_that_change_one_row_lose_no_change(tmp_path: Path) -> None:
    world = World(tmp_path, partitions=1)
    seen: Counter[str] = Counter()

    def handle(payment: Payment, balances: Table) -> Settlement:
        seen[payment.id] += 1
        before = balances["all"]
        time.sleep(0.002)
        balances["all"] = before + 1
        return Settlement(payment.id, payment.account, before + 1)

    world.pipeline = one_table(handle, merge=lambda a, b: a + b)
    worker = world.start()
    await world.until_running(worker)
    for n in range(40):
        world.pay(f"a{n}", 1)
    await world.drained(within_s=300)
    results = [orjson.loads(r.value or b"") for log in world.cluster.committed("settlements") for r in log]
    assert [r["balance"] for r in results] == list(range(1, 41)), "as if one came after the other"
    assert worker.engine.agents[0].conflicts > 0
    await world.close()


@pytest.mark.parametrize("error", [ValueError, StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
async def test_whatever_is_raised_in_the_thread_is_the_events_failure(world: World, error: type[BaseException]) -> None:
    tried: Counter[str] = Counter()

    def handle(payment: Payment, balances: Table) -> Settlement:
        tried[payment.id] += 1
        balances[payment.account] += payment.amount
        if payment.id == "bad":
            raise error("no")
        return Settlement(payment.id, payment.account, balances[payment.account])

    world.pipeline = one_table(handle)
    await world.until_running(world.start())
    world.pay("a1", 1, id="first")
    world.pay("a1", 1, id="bad")
    world.pay("a1", 1, id="last")
    others = [world.pay(f"b{n}", 1)["id"] for n in range(20)]
    await world.drained()
    assert tried["bad"] == ATTEMPTS
    [letter] = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]
    assert dict(letter.headers)["semel.reason"] == b"failed"
    assert set(settled(world)) == {"first", "last", *others}
    balances = [orjson.loads(r.value or b"") for log in world.cluster.committed("settlements") for r in log]
    assert next(r["balance"] for r in balances if r["id"] == "last") == 2, "what failed has left no trace"


async def test_a_call_that_outlives_its_run_finds_no_table_and_its_result_goes_nowhere(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    go, ends = threading.Event(), list[BaseException | None]()
    calls: Counter[str] = Counter()

    def handle(payment: Payment, balances: Table) -> Settlement:
        calls[payment.id] += 1
        if calls[payment.id] > 1:
            balances[payment.account] += 1
            return Settlement(payment.id, payment.account, balances[payment.account])
        balances[payment.account] += 100
        go.wait(10)
        try:
            balances[payment.account] += 1000
        except BaseException as exc:
            ends.append(exc)
            raise
        ends.append(None)
        return Settlement(payment.id, payment.account, 0)

    world.pipeline = one_table(handle)
    worker = world.start()
    await world.until_running(worker)
    for n in range(4):
        world.pay(f"a{n}", 1)
    await turning_until(lambda: len(calls) == 4)
    worker.engine.drop_everything()
    worker.engine.start_over()
    await world.until(lambda: len(settled(world)) == 4)
    go.set()
    await turning_until(lambda: len(ends) == 4)
    assert [type(end) for end in ends] == [StaleIncarnation] * 4
    await world.drained()
    results = [orjson.loads(r.value or b"") for log in world.cluster.committed("settlements") for r in log]
    assert [r["balance"] for r in results] == [1, 1, 1, 1]
    said = [r.getMessage() for r in caplog.records if "left behind" in r.getMessage()]
    assert said and "test_handler_thread.py" in said[0]


async def test_one_that_blocks_for_long_is_named_with_the_line_at_which_its_thread_stands(world: World) -> None:
    entered, go = threading.Event(), threading.Event()

    def handle(payment: Payment, balances: Table) -> Settlement:
        entered.set()
        go.wait(10)
        return Settlement(payment.id, payment.account, 1)

    world.pipeline = one_table(handle)
    worker = world.start()
    await world.until_running(worker)
    world.pay("a1", 1)
    await turning_until(entered.is_set)
    # Virtual time stands still while a thread works.
    loop = cast("VirtualLoop", asyncio.get_running_loop())
    for _ in range(8):
        loop.advance(0.25)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    [event] = worker.engine.lingering.in_hand()
    assert "test_handler_thread.py" in event.waits_at and "(handle)" in event.waits_at
    go.set()
    await world.drained()


async def test_a_store_that_cannot_be_read_from_a_thread_is_the_workers_matter(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = world.start()
    await world.until_running(worker)
    world.pay_many(20, trouble=False)
    await world.drained()
    read, left = Rows.committed, 3

    def refuse_some(rows: Rows, raw: bytes) -> bytes | None:
        nonlocal left
        if left and threading.current_thread() is not threading.main_thread():
            left -= 1
            raise StoreError("a sector cannot be read")
        return read(rows, raw)

    monkeypatch.setattr(Rows, "committed", refuse_some)
    await world.clock.sleep(5)
    world.pay_many(60, trouble=False)
    await world.drained(within_s=300)
    assert left == 0
    world.check()


@pytest.mark.parametrize(
    ("declared", "words"),
    [({"threads": 0}, "threads=0"), ({"threads": True}, "threads=True"), ({"threads": "4"}, "threads='4'"),
     ({"threads": 1001}, "1 to 1000")],
)  # fmt: skip
def test_a_number_of_threads_that_cannot_be_is_refused(declared: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        Pipeline("p", source=SOURCE, agent=lambda payment: None, kind="event", **declared)


def test_threads_are_for_plain_functions() -> None:
    async def handle(payment: Payment) -> None:
        pass

    with pytest.raises(DeclarationError, match="concurrency="):
        Pipeline("p", source=SOURCE, agent=handle, threads=4)


def test_a_plain_function_that_asks_for_concurrency_is_told_of_threads() -> None:
    def handle(payment: Payment) -> None:
        pass

    with pytest.raises(DeclarationError, match="threads=4"):
        Pipeline("p", source=SOURCE, agent=handle, concurrency=4)


def test_the_tester_runs_them_too() -> None:
    table = Table("balances", key=str, value=int, default=int)
    loop_thread, ran = threading.get_ident(), set[int]()

    def handle(payment: Payment) -> Settlement:
        ran.add(threading.get_ident())
        table[payment.account] += payment.amount
        return Settlement(payment.id, payment.account, table[payment.account])

    sink = Topic("settlements", key=str, value=Settlement)
    with PipelineTester(Pipeline("p", source=SOURCE, agent=handle, tables=[table], sink=sink, threads=4)) as tester:
        for n in range(40):
            tester.send(Payment(f"p{n}", f"a{n % 4}", 1), key=f"a{n % 4}")
        outputs = [output.value for output in tester.outputs()]
    assert loop_thread not in ran
    order: dict[str, list[int]] = defaultdict(list)
    for result in outputs:
        order[result.account].append(result.balance)
    assert order == {f"a{n}": list(range(1, 11)) for n in range(4)}
