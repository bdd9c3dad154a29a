"""Timers in a proof: it knows each of them, whether it is pending or sent; one too few or too many breaks a law."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from semel import Output, Topic
from semel.port import TP
from semel.proof import Law, Verdict
from semel.proof.survey import Cut
from semel.state import lineage
from semel.state.timers import is_name, place_of
from tests.unit.harness import APP, Payment, Settlement
from tests.unit.proof.rig import History, broken

PAYMENTS = Topic("payments", key=str, value=Payment)
REMINDERS = Topic("reminders", key=str, value=Settlement)
TIMERS = f"{APP}-timers"
every_time = pytest.mark.parametrize("seed", range(2))


def reminding(work: Any, named: bool = False) -> Callable[[Any], Any]:
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
                if named and payment.amount % 3 == 0:
                    # Some are sent before the account's next payment, some are replaced, some cancelled.
                    yield Output(reminder, topic=REMINDERS, at=timedelta(milliseconds=payment.amount), name="n")
                    yield Output(reminder, topic=REMINDERS, at=timedelta(minutes=1), name="late")
                elif named and payment.amount % 3 == 1:
                    yield Output.cancel("n")
                    yield Output.cancel("late")
                work.maybe_fail(payment)

        return settle

    return make


async def reminded(path: Any, seed: int, *, wait_s: float = 10.0, named: bool = False, **options: Any) -> History:
    history = History(path, seed=seed, **options)
    history.world.pipeline = history.world.pipeline.__class__(
        **{**_declared(history), "agent": reminding(history.world.work, named)(history.world.pipeline.tables)}
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
    assert f" outputs and {len(sent):,} sent at their time, " in proof.headline()


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


async def comes_back(path: Any, seed: int) -> History:
    """Each payment has another one follow it, through the source, unless the account's next payment comes before."""

    async def settle(payments: Any) -> Any:
        async for payment in payments:
            yield Settlement(payment.id, payment.account, payment.amount)
            if not payment.id.endswith("-again"):
                again = Payment(f"{payment.id}-again", payment.account, 1)
                yield Output(again, topic=PAYMENTS, at=timedelta(seconds=seed), name="again")
            history.world.work.maybe_fail(payment)

    history = History(path, seed=seed)
    history.world.pipeline = history.world.pipeline.__class__(**{**_declared(history), "agent": settle, "tables": []})
    await history.filled(120)
    worker = history.world.start("w1")
    await history.world.until_running(worker)
    await history.world.clock.sleep(10.0)
    await worker.stop()
    return history


@pytest.mark.parametrize("seed", range(3))
async def test_timers_that_come_back_through_the_source_are_events_and_clean(tmp_path: Any, seed: int) -> None:
    history = await comes_back(tmp_path, seed)
    came = [r for _, r in history.entries("payments") if b"-again" in (r.value or b"")]
    settled = [r for _, r in history.entries("settlements") if b"-again" in (r.value or b"")]
    assert len(came) == len(settled) > 0
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert proof.ledger


# -- with names


def rows(history: History, *, named: bool = True) -> dict[tuple[int, int, int], int]:
    """By partition, offset and number of each timer with a name: how many rows were written of it, set or not any more."""
    found: dict[tuple[int, int, int], int] = {}
    for entry, record in history.entries(TIMERS):
        if not is_name(record.key or b"") and (place := place_of(record.key or b"")).named is named:
            of = history.partition_of(TIMERS, entry), place.offset, place.step
            found[of] = found.get(of, 0) + (1 if record.value is not None else -1)
    return found


def sent_named(history: History) -> set[tuple[int, int, int]]:
    found = (lineage.parse(lineage.of(r.headers) or b"") for _, r in history.entries("reminders"))
    return {(said.partition, said.offset, said.step) for said in found if said is not None and said.named}


@every_time
@pytest.mark.parametrize("block", [1 << 18, 32])
async def test_a_run_is_clean_in_which_timers_were_replaced_and_cancelled(tmp_path: Any, seed: int, block: int) -> None:
    history = await reminded(tmp_path, seed, named=True)
    never = {of for of, pending in rows(history).items() if pending <= 0} - sent_named(history)
    assert never
    assert sent_named(history)
    proof = await history.proof(block=block)
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert proof.ledger


@every_time
async def test_one_that_was_cancelled_and_sent_all_the_same_is_found(tmp_path: Any, seed: int) -> None:
    history = await reminded(tmp_path, seed, named=True)
    p, offset, step = min({of for of, left in rows(history).items() if left <= 0} - sent_named(history))
    entry, record = history.some("reminders")
    said = lineage.parse(lineage.of(record.headers) or b"")
    assert said is not None
    value = f"{APP}/payments/{p}/{offset}/~{step}/".encode() + said.id
    history.append("reminders", history.partition_of("reminders", entry), record, headers=[(lineage.HEADER, value)])
    assert Law.CONSERVATION in broken(await history.proof())


@every_time
async def test_one_with_a_name_that_was_sent_and_is_gone_is_missed(tmp_path: Any, seed: int) -> None:
    history = await reminded(tmp_path, seed, named=True)
    history.remove("reminders", lambda r: b"/~" in (lineage.of(r.headers) or b""))
    assert Law.CONSERVATION in broken(await history.proof())


@every_time
async def test_one_with_a_name_that_was_sent_twice_is_found(tmp_path: Any, seed: int) -> None:
    history = await reminded(tmp_path, seed, named=True)
    entry, record = history.some("reminders", lambda r: b"/~" in (lineage.of(r.headers) or b""))
    history.append("reminders", history.partition_of("reminders", entry), record)
    proof = await history.proof()
    assert Law.NO_DUPLICATE in broken(proof), proof.text()
    assert "output ~" in proof.text()


@every_time
async def test_what_is_cancelled_while_a_proof_reads_is_not_missed(tmp_path: Any, seed: int) -> None:
    """The positions have it pending, and the log of timers has not any more."""
    history = await reminded(tmp_path, seed, named=True)
    ended = {r.key for _, r in history.entries(TIMERS) if r.value is None}
    entry, record = history.some(TIMERS, lambda r: named_row(r.key) and r.key not in ended)
    tp = TP(TIMERS, history.partition_of(TIMERS, entry))
    read_positions = Cut.read

    async def read(cut: Any, *args: Any) -> None:
        await read_positions(cut, *args)
        if not cancelled:
            history.cluster.write(tp, [(record.key, None)], timestamp=record.timestamp)
            cancelled.append(tp)

    cancelled: list[TP] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cut, "read", read)
        proof = await history.proof()
    assert cancelled
    assert proof.verdict is Verdict.CLEAN, proof.text()
    # Whoever looks later finds it missing.
    assert Law.CONSERVATION in broken(await history.proof())


def named_row(row: bytes | None) -> bool:
    return row is not None and not is_name(row) and place_of(row).named
