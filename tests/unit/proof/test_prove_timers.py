"""Timers in a proof: it knows each of them, whether it is pending or sent; one too few or too many breaks a law."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from semel import Output, Topic
from semel.port import TP
from semel.proof import Law, Verdict
from semel.state.timers import place_of
from tests.unit.harness import APP, Settlement
from tests.unit.proof.rig import History, broken

REMINDERS = Topic("reminders", key=str, value=Settlement)
TIMERS = f"{APP}-timers"
every_time = pytest.mark.parametrize("seed", range(2))


def reminding(work: Any) -> Callable[[Any], Any]:
    """A settlement at once, unless there is no amount, and two reminders of each second event: one soon, one in a minute."""

    def make(tables: Any) -> Any:
        balances, _ = tables

        async def settle(payments: Any) -> Any:
            async for payment in payments:
                balances[payment.account] += payment.amount
                reminder = Settlement(payment.id, payment.account, payment.amount)
                if payment.amount % 2:
                    yield Output(reminder, topic=REMINDERS, at=timedelta(seconds=3))
                if payment.amount:
                    yield Settlement(payment.id, payment.account, balances[payment.account])
                if payment.amount % 2:
                    yield Output(reminder, topic=REMINDERS, at=timedelta(minutes=1))
                work.maybe_fail(payment)

        return settle

    return make


async def reminded(path: Any, seed: int, *, wait_s: float = 10.0, **options: Any) -> History:
    history = History(path, seed=seed, **options)
    history.world.pipeline = history.world.pipeline.__class__(
        **{**_declared(history), "agent": reminding(history.world.work)(history.world.pipeline.tables)}
    )
    await history.filled(120)
    worker = history.world.start("w1")
    await history.world.until_running(worker)
    await history.world.clock.sleep(wait_s)
    await worker.stop()
    return history


def _declared(history: History) -> dict[str, Any]:
    was = history.world.pipeline
    return {name: getattr(was, name) for name in ("name", "source", "dedup", "tables", "sink", "retry")}


@every_time
@pytest.mark.parametrize("block", [1 << 18, 32])
async def test_a_run_with_timers_through_a_kill_is_clean_while_some_are_pending(
    tmp_path: Any, seed: int, block: int
) -> None:
    history = await reminded(tmp_path, seed)
    sent = history.entries("reminders")
    pending = sum(at.timers for at in history.world.committed_positions().values())
    assert 0 < len(sent) == pending
    proof = await history.proof(block=block)
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert proof.ledger
    assert proof.counts["timers"] == pending


@every_time
async def test_a_run_is_clean_when_all_are_sent(tmp_path: Any, seed: int) -> None:
    history = await reminded(tmp_path, seed, wait_s=80.0)
    assert not any(at.timers for at in history.world.committed_positions().values())
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert proof.ledger


@every_time
async def test_a_run_without_lineage_is_not_called_wrong(tmp_path: Any, seed: int) -> None:
    history = await reminded(tmp_path, seed, lineage=False)
    proof = await history.proof()
    assert proof.verdict is Verdict.UNPROVABLE, proof.text()


@every_time
async def test_one_that_was_sent_and_is_gone_is_missed(tmp_path: Any, seed: int) -> None:
    history = await reminded(tmp_path, seed)
    history.remove("reminders")
    proof = await history.proof()
    assert {Law.CONSERVATION, Law.ATOMIC} <= broken(proof), proof.text()


@every_time
async def test_one_that_is_pending_and_gone_from_the_log_is_missed(tmp_path: Any, seed: int) -> None:
    history = await reminded(tmp_path, seed)
    tombstones = {r.key for _, r in history.entries(TIMERS) if r.value is None}
    history.remove(TIMERS, lambda r: r.key not in tombstones)
    proof = await history.proof()
    assert Law.CONSERVATION in broken(proof), proof.text()


@every_time
async def test_one_that_was_sent_twice_is_found(tmp_path: Any, seed: int) -> None:
    history = await reminded(tmp_path, seed)
    entry, record = history.some("reminders")
    history.append("reminders", history.partition_of("reminders", entry), record)
    proof = await history.proof()
    assert Law.NO_DUPLICATE in broken(proof), proof.text()
    assert "output +0 twice" in proof.text()


@every_time
async def test_one_of_an_event_that_never_took_effect_is_found(tmp_path: Any, seed: int) -> None:
    history = await reminded(tmp_path, seed)
    ends = {p: at.topics["payments"].next for p, at in history.world.committed_positions().items()}
    entry, record = history.some(TIMERS, lambda r: r.value is not None)
    p = history.partition_of(TIMERS, entry)
    place = place_of(record.key or b"")._replace(offset=ends[p] + 5)
    history.cluster.write(TP(TIMERS, p), [(place.encode(), record.value)], timestamp=record.timestamp)
    assert Law.ATOMIC in broken(await history.proof())
