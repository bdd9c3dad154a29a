"""Workers come and go: partitions move, and nothing of what was under way is lost or done twice."""

from __future__ import annotations

import asyncio
import re

import pytest

from semel.local import ports
from tests.broker import logs
from tests.broker.ledger import Ledger
from tests.broker.truth import payments
from tests.broker.workers import WorkerProcess

pytestmark = pytest.mark.broker


async def tasks_of(worker: WorkerProcess) -> set[int]:
    """Partitions that run on this worker now."""
    status, said = await worker.get("/pipelines")
    if status != 200:
        return set()
    return {task["partition"] for task in said[0]["tasks"] if task["state"] == "running"}


async def all_run(workers: list[WorkerProcess], partitions: int, within_s: float = 60.0) -> None:
    """Waits until every partition runs on exactly one worker, and every worker has one."""
    async with asyncio.timeout(within_s):
        while True:
            held = [await tasks_of(worker) for worker in workers]
            if all(held) and sorted(p for tasks in held for p in tasks) == list(range(partitions)):
                return
            await asyncio.sleep(0.1)


def generations(worker: WorkerProcess) -> list[int]:
    """Generations that a worker was in since its start."""
    return [int(found) for found in re.findall(r"generation (\d+): tasks", worker.log)]


async def test_a_group_names_the_topics_it_reads_so_that_their_offsets_do_not_expire(ledger: Ledger) -> None:
    """The broker forgets offsets of a topic that no member subscribes to, also while the group is alive."""
    worker = ledger.worker().start()
    await worker.ready()
    assert await logs.subscriptions(ledger.bootstrap, ledger.name) == [[ledger.source]]


async def test_partitions_move_under_load_from_one_worker_to_three_to_two(ledger: Ledger) -> None:
    feeding = ledger.feed_beside(payments(11, 40_000), per_s=500)
    one, two, three = (ledger.worker(f"w{n}") for n in (1, 2, 3))
    one.start()
    await all_run([one], 4)
    two.start()
    three.start()
    await all_run([one, two, three], 4)
    assert len(await two.rows("balances")) > 10, "rows of all partitions, asked of a worker that holds some"
    assert await two.stopped() == 0
    await all_run([one, three], 4)
    assert not feeding.done(), "the load ended before the last move"
    await ledger.settle(three)


async def test_a_rolling_restart_moves_nothing_between_workers(ledger: Ledger) -> None:
    """Static membership: who restarts within the session keeps its place, and the others notice nothing."""
    feeding = ledger.feed_beside(payments(12, 40_000), per_s=500)
    session = {"SEMEL_SESSION_TIMEOUT_MS": "20000"}
    workers = [ledger.worker(f"w{n}", **session) for n in (1, 2)]
    web = ports.choose(2)
    for worker, port in zip(workers, web, strict=True):
        worker.start(web_port=port)
    await all_run(workers, 4)
    stable = generations(workers[0])[-1]
    held = [await tasks_of(worker) for worker in workers]
    for n, worker in enumerate(workers):
        other = workers[1 - n]
        before = generations(other)
        assert await worker.stopped() == 0
        worker.start(web_port=web[n])
        await worker.ready()
        assert generations(worker) == [stable], "it came back into the generation it left"
        assert generations(other) == before, "the other worker was not asked to rejoin"
        await all_run(workers, 4)
        assert [await tasks_of(w) for w in workers] == held
        assert len(await other.rows("balances")) > 10, "views of one worker reach the restarted one"
    assert not feeding.done(), "the load ended before the last restart"
    await ledger.settle(workers[0])


async def test_a_worker_that_comes_back_under_another_address_is_found_there(ledger: Ledger) -> None:
    """Its place in the group is kept, and with it what the others know of it; its address is told anew."""
    await ledger.feed(payments(15, 1_000))
    workers = [ledger.worker(f"w{n}", SEMEL_SESSION_TIMEOUT_MS="20000").start() for n in (1, 2)]
    await all_run(workers, 4)
    await ledger.drained()
    rows = await workers[0].rows("balances")
    for worker in workers:
        before = await worker.url()
        worker.kill9()
        worker.start()
        await all_run(workers, 4)
        assert await worker.url() != before
        assert [await w.rows("balances") for w in workers] == [rows, rows]
    await ledger.settle(workers[0])


async def test_a_worker_without_partitions_waits_and_takes_over(ledger41: Ledger) -> None:
    ledger = ledger41
    await ledger.feed(payments(13, 2_000))
    workers = [ledger.worker(f"w{n}").start() for n in range(1, 6)]
    for worker in workers:
        await worker.ready()
    await ledger.drained()
    held = [await tasks_of(worker) for worker in workers]
    assert sorted(map(len, held)) == [0, 1, 1, 1, 1]
    for worker, tasks in zip(workers, held, strict=True):
        if tasks:
            worker.kill9()
            break
    await ledger.feed(payments(14, 2_000))
    await ledger.settle(next(worker for worker in workers if worker.running), within_s=60)
