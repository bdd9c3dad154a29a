"""A source that compaction went through, judged by what was kept of it: whole, and no stricter than can be known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from semel.port import TP, Record
from semel.proof import Law, Proof, Verdict
from semel.proof.columns import Offsets
from tests.unit.proof.rig import MARKS, SINK, SOURCE, History, broken, mark_offset

Histories = Callable[..., History]


class Kept:
    """The committed records of the source as they are now. `ahead`: partition -> from where on none is known as read."""

    def __init__(self, history: History) -> None:
        self.ahead: dict[int, int] = {}
        self._history = history
        self._records = {tp: list(history.log(*tp).committed()) for tp in sources(history)}

    def between(self, tp: TP, start: int, end: int) -> Sequence[Record]:
        return [record for record in self._records.get(tp, []) if start <= record.offset < end]

    def unread(self, tp: TP, start: int, end: int) -> Offsets:
        first = self.ahead.get(tp.partition, end)
        left = {record.offset for record in self._history.log(*tp).committed()} if tp in self._records else set[int]()
        gone = [r.offset for r in self.between(tp, max(start, first), end) if r.offset not in left]
        return np.array(gone, np.int64)


def sources(history: History) -> list[TP]:
    return [TP(SOURCE, p) for p in range(history.cluster.topic_info(SOURCE).partitions)]


def compact(history: History) -> int:
    """Compaction comes and goes; how many records it took."""
    before = len(history.entries(SOURCE))
    history.cluster.alter_topic(SOURCE, {"cleanup.policy": "compact"})
    for tp in sources(history):
        history.cluster.compact(tp)
    history.cluster.alter_topic(SOURCE, {"cleanup.policy": "delete"})
    return before - len(history.entries(SOURCE))


async def compacted(history: History) -> Kept:
    await history.filled()
    kept = Kept(history)
    assert compact(history) > 20
    return kept


async def ahead(history: History) -> Kept:
    """Events go while no worker runs; the next one never sees them."""
    world = history.world
    world.pay_many(80)
    worker = world.start()
    await world.drained()
    await worker.stop()
    positions = world.committed_positions()
    world.pay_many(80)
    kept = Kept(history)
    kept.ahead = {p: position.topics[SOURCE].next for p, position in positions.items()}
    assert compact(history) > 20
    worker = world.start()
    await world.drained()
    await worker.stop()
    return kept


def clean(proof: Proof) -> None:
    assert (proof.verdict, broken(proof)) == (Verdict.CLEAN, set()), proof.text()


@pytest.mark.parametrize("seed", range(4))
async def test_what_compaction_took_behind_the_workers_is_judged_as_if_it_were_there(
    histories: Histories, seed: int
) -> None:
    history = histories(seed=seed)
    kept = await compacted(history)
    proof = await history.proof(recording=kept)
    clean(proof)
    assert proof.ledger
    assert proof.counts["records"] == proof.counts["counted_in"] > len(history.entries(SOURCE))
    assert proof.counts["unread"] == 0


async def test_without_a_recording_nobody_takes_their_absence_for_granted(histories: Histories) -> None:
    history = histories(seed=1)
    await compacted(history)
    assert (await history.proof()).verdict is not Verdict.CLEAN


@pytest.mark.parametrize("seed", range(4))
async def test_an_event_that_was_read_and_then_compacted_away_is_lost_without_its_effects(
    histories: Histories, seed: int
) -> None:
    history = histories(seed=seed)
    kept = await compacted(history)
    left = {record.offset for _, record in history.entries(SOURCE)}
    _, mark = history.some(MARKS, lambda r: r.value is not None and mark_offset(r) not in left)
    offset = mark_offset(mark)
    history.remove(MARKS, lambda r: r is mark)
    for output in [r for _, r in history.entries(SINK) if history.said(r).offset == offset]:
        history.remove(SINK, lambda r, output=output: r is output)
    assert Law.NO_LOSS in broken(await history.proof(recording=kept)), (seed, offset)


@pytest.mark.parametrize("seed", range(4))
async def test_what_went_before_anybody_read_it_is_missed_by_nobody(histories: Histories, seed: int) -> None:
    history = histories(seed=seed)
    kept = await ahead(history)
    proof = await history.proof(recording=kept)
    clean(proof)
    assert proof.counts["unread"] > 10
    assert proof.counts["records"] - proof.counts["unread"] == proof.counts["counted_in"]
    assert any("may have been compacted away before they were read" in note for note in proof.notes)


@pytest.mark.parametrize("seed", range(4))
async def test_what_went_before_anybody_read_it_and_is_not_known_to_is_lost(histories: Histories, seed: int) -> None:
    history = histories(seed=seed)
    kept = await ahead(history)
    kept.ahead = {}
    assert broken(await history.proof(recording=kept)) == {Law.NO_LOSS, Law.CONSERVATION}


@pytest.mark.parametrize("seed", range(4))
async def test_of_what_was_left_beside_it_every_event_is_still_missed(histories: Histories, seed: int) -> None:
    history = histories(seed=seed)
    kept = await ahead(history)
    _, mark = history.some(MARKS, lambda r: r.value is not None and mark_offset(r) >= max(kept.ahead.values()))
    history.remove(MARKS, lambda r: r is mark)
    assert broken(await history.proof(recording=kept)), (seed, mark_offset(mark))


async def test_effects_of_an_event_that_nobody_kept_are_torn(histories: Histories) -> None:
    history = histories(seed=2)
    kept = await compacted(history)
    tp = next(tp for tp in sources(history) if kept._records[tp])
    kept._records[tp] = kept._records[tp][5:]
    assert Law.ATOMIC in broken(await history.proof(recording=kept))


@pytest.mark.parametrize("seed", range(3))
async def test_without_dedup_what_went_unread_is_missed_by_nobody(histories: Histories, seed: int) -> None:
    history = histories(seed=seed)
    history.world.pipeline.dedup = None
    kept = await ahead(history)
    proof = await history.proof(recording=kept)
    clean(proof)
    assert proof.counts["unread"] > 10
    kept.ahead = {}
    assert broken(await history.proof(recording=kept)) == {Law.CONSERVATION}
