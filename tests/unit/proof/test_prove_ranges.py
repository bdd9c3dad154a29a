"""What is said of a range of time, and of events that no position has come to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from semel import Dedup
from semel.proof import Law, Verdict
from tests.unit.proof.rig import SINK, SOURCE, History

Histories = Callable[..., History]
MINUTE_MS = 60_000


async def settled(histories: Histories, amount: int) -> tuple[History, int]:
    """A hundred payments, one a minute, and when the first one was."""
    history = histories(seed=5, pipeline={"dedup": Dedup("id", window=timedelta(days=7))})
    world = history.world
    begun = int(world.clock.time() * 1000) - 600 * MINUTE_MS
    for n in range(100):
        world.pay(at_ms=begun + n * MINUTE_MS, amount=amount)
    worker = world.start()
    await world.drained()
    await worker.stop()
    return history, begun


async def test_a_range_without_its_outputs_does_not_balance_where_fewer_were_filtered(histories: Histories) -> None:
    history, begun = await settled(histories, amount=60)
    half = begun + 50 * MINUTE_MS
    assert (await history.proof(since_ms=half)).verdict is Verdict.CLEAN
    for entry, _ in history.entries(SINK):
        entry.records.clear()
    for bounds in ({"since_ms": begun}, {"since_ms": half}, {"until_ms": half}):
        proof = await history.proof(**bounds)
        assert proof.verdict is Verdict.VIOLATED
        assert set(proof.by_law) == {Law.CONSERVATION}
        assert "took effect and have no output" in proof.findings[0].sentence


async def test_a_range_whose_events_may_all_have_been_filtered_asks_no_balance_and_says_so(
    histories: Histories,
) -> None:
    history, begun = await settled(histories, amount=0)
    proof = await history.proof(since_ms=begun + 50 * MINUTE_MS)
    assert proof.verdict is Verdict.CLEAN
    assert Law.CONSERVATION not in proof.laws
    assert any("is the whole history's to say" in note for note in proof.notes)
    assert Law.CONSERVATION in (await history.proof()).laws


async def test_a_range_without_an_event_proves_nothing(histories: Histories) -> None:
    history, begun = await settled(histories, amount=60)
    proof = await history.proof(since_ms=begun + 1_000 * MINUTE_MS)
    assert proof.verdict is Verdict.UNPROVABLE
    assert [gap.sentence for gap in proof.gaps] == ["there is no event in the range that was asked for"]


async def test_outputs_of_a_task_that_has_no_position_stand_alone(histories: Histories) -> None:
    history, _ = await settled(histories, amount=60)
    for entry, _ in history.position_records(1):
        entry.records.clear()
    proof = await history.proof()
    assert proof.verdict is Verdict.VIOLATED
    assert Law.ATOMIC in proof.by_law
    assert any(f"of {SOURCE}[1], of which no position says" in finding.sentence for finding in proof.findings)


async def test_an_output_that_names_a_partition_which_is_not_there_stands_alone(histories: Histories) -> None:
    history, _ = await settled(histories, amount=60)
    [_, record] = history.entries(SINK)[0]
    name, value = record.headers[-1]
    parts = (value or b"").split(b"/")
    forged = b"/".join([*parts[:2], b"7", *parts[3:]])
    history.append(SINK, 0, record, headers=[(name, forged)])
    assert Law.ATOMIC in (await history.proof()).by_law
    elsewhere = b"/".join([parts[0], b"another", *parts[2:]])
    history.append(SINK, 0, record, headers=[(name, elsewhere)])
    assert any("does not read now" in gap.sentence for gap in (await history.proof()).gaps)
