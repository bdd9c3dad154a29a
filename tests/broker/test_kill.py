"""A worker dies by SIGKILL, at each step of the protocol and at any moment between."""

from __future__ import annotations

import asyncio
import random

import pytest

from semel.runtime.failpoints import NAMES
from tests.broker.figures import Figures
from tests.broker.ledger import Ledger
from tests.broker.truth import payments

pytestmark = pytest.mark.broker

KILLED = -9


async def test_every_event_takes_effect_once_where_nothing_goes_wrong(ledger: Ledger) -> None:
    await ledger.feed(payments(1, 5_000))
    worker = ledger.worker().start(fresh=True)
    truth = await ledger.settle(worker)
    assert truth.duplicates > 100
    assert sum(truth.dead.values()) > 5
    assert await worker.stopped() == 0


# -- at each step of the protocol


COMMITTING = [name for name in NAMES if name.partition(".")[0] in ("barrier", "commit")]
# What a dead writer leaves behind differs from here on; before it there is nothing for another broker to do otherwise.
ON_39 = ["commit.after_produce", "commit.after_offsets", "commit.after_end"]


@pytest.mark.parametrize(
    ("any_kafka", "name"),
    [*(("kafka", name) for name in COMMITTING), *(("kafka39", name) for name in ON_39)],
    indirect=["any_kafka"],
)
async def test_a_worker_killed_while_it_commits_loses_and_doubles_nothing(ledger: Ledger, name: str) -> None:
    events = payments(len(name), 1_500)
    await ledger.feed(events)
    worker = ledger.worker().start(failpoint=f"{name}:kill:4", HANDLER_S="0.001")
    assert await worker.ended() == KILLED
    assert await ledger.done() < len(events), "it died after all was done"
    worker.start()
    await ledger.settle(worker)


@pytest.mark.parametrize("name", [n for n in NAMES if n.partition(".")[0] in ("begin", "assign", "restore", "group")])
async def test_a_worker_killed_while_it_starts_loses_and_doubles_nothing(ledger41: Ledger, name: str) -> None:
    ledger = ledger41
    events = payments(len(name), 1_500)
    ledger.feed_beside(events, per_s=1_000)
    worker = ledger.worker().start()
    await ledger.until_done(200)
    worker.kill9()
    # What the log is read for: a disk that is not there any more.
    worker = ledger.worker(state="another", log="again")
    worker.start(failpoint=f"{name}:kill:{2 if name == 'restore.chunk' else 1}")
    assert await worker.ended() == KILLED
    worker.start()
    await ledger.settle(worker)


@pytest.mark.parametrize("name", ["revoke.begin", "revoke.end"])
async def test_a_worker_killed_while_it_gives_partitions_up_loses_and_doubles_nothing(
    ledger41: Ledger, name: str
) -> None:
    ledger = ledger41
    ledger.feed_beside(payments(len(name), 4_000), per_s=1_000)
    first = ledger.worker("w1").start(failpoint=name)
    await ledger.until_done(200)
    second = ledger.worker("w2").start()
    assert await first.ended() == KILLED
    await second.ready()
    first.start()
    await ledger.settle(second)


def test_every_failpoint_is_killed_at() -> None:
    groups = {name.partition(".")[0] for name in NAMES}
    assert groups == {"barrier", "commit", "begin", "assign", "restore", "group", "revoke", "abort"}


# -- at any moment


@pytest.mark.parametrize("workers", [1, 3])
async def test_workers_killed_at_random_lose_and_double_nothing(
    ledger: Ledger, workers: int, seed: int, figures: Figures
) -> None:
    rng = random.Random(seed)
    feeding = ledger.feed_beside(payments(seed, 40_000), per_s=600)
    running = [ledger.worker(f"w{n}").start() for n in range(1, workers + 1)]
    await ledger.until_done(100)
    before = await ledger.done()
    for _ in range(5):
        victim = rng.choice(running)
        victim.kill9()
        await asyncio.sleep(rng.uniform(0, 0.5))
        victim.start()
        if rng.random() < 0.8:  # else it may die before it has begun
            await victim.said("runs from")
        await asyncio.sleep(rng.uniform(0, 2))
    assert not feeding.done(), "the load ended before the last kill"
    figures.record(f"{workers} workers, killed 5 times at random: done meanwhile, events", await ledger.done() - before)
    await ledger.settle(running[0])
