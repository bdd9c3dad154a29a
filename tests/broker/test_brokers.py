"""Brokers die, hang, move and are late: workers wait for them, and go on where they were."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from semel.local import jars, ports
from semel.local.kafka import LocalKafka
from tests.broker.conftest import MakeLedger
from tests.broker.figures import Figures
from tests.broker.ledger import Ledger
from tests.broker.truth import payments

pytestmark = pytest.mark.broker

MakeKafka = Callable[..., LocalKafka]


async def in_thread(call: Callable[..., object], *arguments: object) -> None:
    await asyncio.get_running_loop().run_in_executor(None, call, *arguments)


async def test_a_broker_killed_under_load_costs_time_only(
    own_kafka: MakeKafka, make_ledger: MakeLedger, figures: Figures, kafka_version: str
) -> None:
    kafka = own_kafka()
    kafka.start()
    ledger = await make_ledger(kafka)
    feeding = ledger.feed_beside(payments(71, 40_000), per_s=500)
    workers = [ledger.worker(f"w{n}").start() for n in (1, 2)]
    await ledger.until_done(500)
    for n in range(2):
        done = await ledger.done()
        await in_thread(kafka.kill9)
        await asyncio.sleep(0.5)
        await in_thread(kafka.restart)
        back = time.monotonic()
        await ledger.until_done(done + 200)
        figures.record(
            f"broker {kafka_version} killed ({n + 1}): until 200 more are committed, s", time.monotonic() - back
        )
        await asyncio.sleep(1)
    assert not feeding.done(), "the load ended before the last kill"
    await ledger.settle(workers[0], within_s=120)
    assert all(worker.running for worker in workers)


@pytest.mark.parametrize("kafka_version", [jars.NEWEST], indirect=True)
async def test_a_broker_that_hangs_is_waited_for(own_kafka: MakeKafka, make_ledger: MakeLedger) -> None:
    """Longer than the session: the group forgets its workers meanwhile, or they it."""
    kafka = own_kafka()
    kafka.start()
    ledger = await make_ledger(kafka)
    feeding = ledger.feed_beside(payments(72, 40_000), per_s=500)
    workers = [ledger.worker(f"w{n}").start() for n in (1, 2)]
    await ledger.until_done(500)
    os.kill(kafka.pids[1], signal.SIGSTOP)
    await asyncio.sleep(5)
    os.kill(kafka.pids[1], signal.SIGCONT)
    assert not feeding.done()
    await ledger.settle(workers[1], within_s=120)
    assert all(worker.running for worker in workers)


async def test_leaders_and_coordinators_move_under_load(
    kafka_cluster: LocalKafka, make_ledger: MakeLedger, seed: int
) -> None:
    """Each broker of three dies once: every leader and every coordinator moves at least once."""
    ledger = await make_ledger(kafka_cluster, replicas=3)
    feeding = ledger.feed_beside(payments(seed, 40_000), per_s=500)
    workers = [ledger.worker(f"w{n}").start() for n in (1, 2)]
    await ledger.until_done(500)
    for node in random.Random(seed).sample((1, 2, 3), 3):
        await in_thread(kafka_cluster.kill9, node)
        done = await ledger.done()
        await ledger.until_done(done + 300)
        await in_thread(kafka_cluster.restart, node)
        await asyncio.sleep(2)
    assert not feeding.done(), "the load ended before the last broker died"
    await ledger.settle(workers[0], within_s=120)
    assert all(worker.running for worker in workers)


@pytest.mark.parametrize("kafka_version", [jars.NEWEST], indirect=True)
async def test_a_worker_waits_for_a_broker_that_comes_late(
    own_kafka: MakeKafka, kafka_version: str, make_ledger: MakeLedger, figures: Figures
) -> None:
    kafka = own_kafka()
    kafka.start()
    ledger = await make_ledger(kafka)
    await ledger.feed(payments(73, 500))
    await in_thread(kafka.stop)
    worker = ledger.worker().start()
    await worker.said("the broker does not answer")
    await asyncio.sleep(2)
    status, said = await worker.get("/readyz")
    assert status == 503
    assert "the broker does not answer" in said["waiting_for"]
    assert (await worker.get("/livez"))[0] == 200
    await in_thread(kafka.start)
    began = time.monotonic()
    await ledger.drained()
    figures.record(f"broker {kafka_version} came late: until all is committed, s", time.monotonic() - began)
    await ledger.settle(worker)


async def test_a_worker_without_a_broker_ends_when_it_is_told_to(tmp_path: Path) -> None:
    [port] = ports.choose(1)
    ledger = Ledger(f"127.0.0.1:{port}", "nobody", tmp_path)
    worker = ledger.worker().start()
    try:
        await worker.said("the broker does not answer")
        assert await worker.stopped(within_s=10) == 0
    finally:
        await ledger.close()


@pytest.mark.parametrize("kafka_version", [jars.NEWEST], indirect=True)
async def test_a_worker_told_to_end_while_its_broker_is_away_ends_and_loses_nothing(
    own_kafka: MakeKafka, make_ledger: MakeLedger
) -> None:
    kafka = own_kafka()
    kafka.start()
    ledger = await make_ledger(kafka)
    await ledger.feed(payments(74, 2_000))
    worker = ledger.worker(HANDLER_S="0.001", SEMEL_DRAIN_TIMEOUT_MS="4000").start()
    await ledger.until_done(200)
    await in_thread(kafka.kill9)
    worker.term()
    began = time.monotonic()
    await worker.ended(within_s=25)
    assert time.monotonic() - began < 20
    await in_thread(kafka.restart)
    await ledger.settle(worker.start())
