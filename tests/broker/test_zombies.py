"""Frozen workers: they sleep past their session, another goes on, they wake, and what they hold must not count."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from semel.local.kafka import LocalKafka
from semel.runtime.failpoints import NAMES
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.ledger import SESSION_TIMEOUT_MS, Ledger
from tests.broker.truth import payments
from tests.broker.workers import WorkerProcess

pytestmark = pytest.mark.broker

TAKEN = 4
# Where a worker that stops has something in hand: an open event, a sealed epoch, a transaction in each of its states.
STOPS = [name for name in NAMES if name.startswith(("barrier.", "commit.")) and not name.endswith("_store")]


async def wait_out_session(worker: WorkerProcess) -> None:
    await asyncio.sleep(SESSION_TIMEOUT_MS / 1000 + 0.5)
    assert worker.running


@pytest.mark.parametrize(
    ("any_kafka", "name"),
    [*(("kafka", name) for name in STOPS), ("kafka39", "commit.after_produce"), ("kafka39", "commit.after_offsets")],
    indirect=["any_kafka"],
)
async def test_a_worker_that_wakes_after_its_session_commits_nothing(ledger: Ledger, name: str) -> None:
    await ledger.feed(payments(len(name), 1_500))
    zombie = ledger.worker("w1", HANDLER_S="0.002").start(failpoint=f"{name}:stop:5")
    await zombie.frozen()
    heir = ledger.worker("w2").start()
    await ledger.drained()
    before = await logs.ends(ledger.bootstrap, ledger.sink, committed=True)
    settled = len(await logs.read(ledger.bootstrap, ledger.sink))
    zombie.thaw()
    await zombie.said(r"is not committed|no longer knows us|no heartbeat was answered|could not be committed")
    await zombie.ready()
    assert len(await logs.read(ledger.bootstrap, ledger.sink)) == settled, before
    await ledger.feed(payments(len(name) + 100, 500))
    await ledger.settle(heir)
    assert zombie.running, zombie.log_end()


async def test_a_worker_frozen_in_an_open_event_finishes_it_for_nobody(ledger41: Ledger) -> None:
    """The handler sleeps when its worker is frozen; when it wakes its event is somebody else's, and done."""
    ledger = ledger41
    await ledger.feed(payments(21, 300))
    zombie = ledger.worker("w1", HANDLER_S="0.5").start()
    await ledger.until_done(2)
    zombie.freeze()
    heir = ledger.worker("w2").start()
    await wait_out_session(zombie)
    await ledger.drained()
    zombie.thaw()
    await asyncio.sleep(2)
    await ledger.settle(heir)


async def test_a_worker_frozen_again_and_again_changes_nothing(ledger41: Ledger) -> None:
    ledger = ledger41
    ledger.feed_beside(payments(22, 40_000), per_s=300)
    workers = [ledger.worker(f"w{n}", HANDLER_S="0.001").start() for n in (1, 2)]
    for worker in workers:
        await worker.ready()
    for n in range(3):
        victim = workers[n % 2]
        victim.freeze()
        await wait_out_session(victim)
        victim.thaw()
        await asyncio.sleep(2)
    await ledger.settle(workers[0])


async def test_of_two_of_one_name_that_the_group_forgot_one_goes_on_and_the_other_ends_with_4(ledger41: Ledger) -> None:
    """Nobody knows any more which of them replaced the other: who joins last has the name."""
    ledger = ledger41
    ledger.feed_beside(payments(24, 12_000), per_s=300)
    first = ledger.worker("w1", state="machine-1").start()
    await ledger.until_done(100)
    first.freeze()
    second = ledger.worker("w1", state="machine-2", log="second").start()
    await second.ready()
    second.freeze()
    await wait_out_session(second)
    for worker in (second, first):
        worker.thaw()
    deadline = time.monotonic() + 4 * SESSION_TIMEOUT_MS / 1000 + 20
    while first.running and second.running and time.monotonic() < deadline:  # noqa: ASYNC110  (a process is asked, not told)
        await asyncio.sleep(0.1)
    [ended] = [worker for worker in (first, second) if not worker.running]
    [goes_on] = [worker for worker in (first, second) if worker.running]
    assert ended.exit_code == TAKEN
    await ledger.settle(goes_on)


# -- work without a source record: timers


async def test_what_a_timer_sent_on_a_worker_that_wakes_after_its_session_is_never_doubled(
    any_kafka: LocalKafka, make_ledger: MakeLedger
) -> None:
    """The generation is checked with the offsets only, so that a transaction of a timer's sends carries some."""
    ledger = await make_ledger(any_kafka, target="ticker:app")
    await ledger.feed(payments(23, 400, redeliver=0))
    zombie = ledger.worker("w1", TICK_S="0.05").start()
    await ledger.drained()
    await asyncio.sleep(1)
    zombie.freeze()
    heir = ledger.worker("w2", TICK_S="0.05").start()
    await wait_out_session(zombie)
    await heir.ready()
    await asyncio.sleep(1)
    asleep = await logs.ends(ledger.bootstrap, ledger.positions)
    of_heir = max(generations(await logs.read(ledger.bootstrap, ledger.positions)))
    zombie.thaw()
    await asyncio.sleep(3)
    woken = [p for p in await logs.read(ledger.bootstrap, ledger.positions) if p.offset >= asleep[p.partition]]
    assert woken, "nobody ticked"
    assert min(generations(woken)) >= of_heir, "a transaction of the generation that is over was committed"
    assert await heir.stopped() == 0
    assert await zombie.stopped() == 0
    ticks = [
        json.loads(line.value or b"")["tick"] for line in await logs.read(ledger.bootstrap, f"{ledger.name}.ticks")
    ]
    assert len(ticks) == len(set(ticks))
    assert len(ticks) > 50
    assert len(await logs.read(ledger.bootstrap, ledger.sink)) == 400


def generations(positions: list[logs.Line]) -> list[int]:
    return [json.loads(line.value or b"")["generation"] for line in positions]
