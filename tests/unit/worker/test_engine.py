"""The engine from its start to its end: what it waits for, and for how long."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from semel.cli.exits import UNREACHABLE, code_after
from semel.port import RpcError, RpcLost
from semel.worker.engine import UNREACHABLE_S
from tests.unit.harness import World


def unreachable(world: World, monkeypatch: pytest.MonkeyPatch, until_s: float, error: Exception) -> None:
    """Brokers let nobody in before that time."""
    from semel.memory.broker import MemoryBroker

    real, there = MemoryBroker.start, world.clock.monotonic() + until_s

    async def start(self: MemoryBroker) -> None:
        if world.clock.monotonic() < there:
            raise error
        await real(self)

    monkeypatch.setattr(MemoryBroker, "start", start)


async def test_a_worker_that_never_met_a_broker_ends_after_a_minute_with_the_code_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unreachable(world, monkeypatch, 10_000, RpcLost("Metadata", "nobody listens at b:9092", sent=False))
    began = world.clock.monotonic()
    worker = world.start()
    error = await worker.gone()
    assert UNREACHABLE_S <= world.clock.monotonic() - began < UNREACHABLE_S + 5
    assert code_after(error) == UNREACHABLE
    assert [r.levelno for r in caplog.records if "still trying" in r.getMessage()] == [logging.WARNING]
    assert not [r for r in caplog.records if r.exc_info], "it is no defect"
    assert "no broker was met for 60 s, and this worker gives up" in str(error)
    assert "is the setting broker right" in str(error).lower()


async def test_a_broker_that_comes_late_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable(world, monkeypatch, UNREACHABLE_S - 5, RpcLost("Metadata", "nobody listens", sent=False))
    world.pay_many(20)
    world.start()
    await world.drained(within_s=120)
    world.check()


async def test_a_refused_login_ends_a_worker_at_once_in_one_line(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unreachable(world, monkeypatch, 10_000, RpcError("SaslAuthenticate", 58, "no such user"))
    began = world.clock.monotonic()
    error = await world.start().gone()
    assert world.clock.monotonic() - began < 1
    assert code_after(error) == UNREACHABLE
    assert not [r for r in caplog.records if r.exc_info]


async def test_a_worker_with_nothing_to_commit_begins_no_transaction(world: World) -> None:
    world.pay_many(20)
    worker = world.start()
    await world.drained()
    await world.clock.sleep(5)
    asked: Counter[str] = Counter()
    world.cluster.faults.script(lambda call: asked.update([call.api]))
    commits = worker.engine.stats["commits"]
    await world.clock.sleep(120)
    assert worker.engine.stats["commits"] == commits
    writing = {"InitProducerId", "AddPartitionsToTxn", "AddOffsetsToTxn", "Produce", "TxnOffsetCommit", "EndTxn"}
    assert asked["Heartbeat"] and not writing & set(asked)
    world.pay("a1", 1)
    await world.drained()
    assert asked["EndTxn"] == 1
