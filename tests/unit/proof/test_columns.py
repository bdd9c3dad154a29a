"""The columns under the laws: what is known of ids, what stream time was at least, and rows that do not fit in memory."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semel.port import TP
from semel.proof.columns import MARK, OUTPUT, Known, among, distinct
from semel.proof.outcomes import NEVER, stream_floor
from semel.proof.spool import Spool
from semel.stages.dedup.classify import Verdict, judge, move_time
from semel.state.dedup_marks import DONE, Mark
from semel.state.positions import StreamTime

WINDOW = 1_000


def marks(*found: tuple[int, int, int]) -> np.ndarray:
    """(offset, id, filed)"""
    rows = np.zeros(len(found), MARK)
    for i, (offset, id, filed) in enumerate(found):
        rows[i] = (offset, id, filed, 0, DONE, 0)
    return rows


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)), unique_by=lambda m: m[0]),
    st.integers(0, 60),
    st.integers(0, 8),
)
def test_the_mark_before_a_record_is_the_last_of_its_id_below_it(
    found: list[tuple[int, int]], offset: int, id: int
) -> None:
    known = Known()
    for at, of in found:
        known = known.later(marks((at, of, 0)))
    row = int(known.before(np.array([id], np.uint64), np.array([offset]))[0])
    below = [at for at, of in found if of == id and at < offset]
    assert (int(known.rows[row]["offset"]) if row >= 0 else None) == max(below, default=None)


@given(st.lists(st.integers(0, 12_000), min_size=1, max_size=60), st.randoms())
def test_stream_time_was_never_less_than_the_floor_says(times: list[int], rng: random.Random) -> None:
    """Against the engine's own decisions, jumps and late events among them."""
    stream, told, actual, records = StreamTime(), [], [], []
    known: dict[int, Mark] = {}
    for offset, at in enumerate(times):
        records.append(offset)
        untimely, filed_at, *moved = move_time(stream.ms, stream.pending, at, 10**9, WINDOW)
        stream = StreamTime(*moved)
        if untimely is not None:
            continue
        id = rng.randrange(10**6)
        verdict = judge(known.get(id), offset, 0, stream.ms or 0, WINDOW)
        if verdict is Verdict.FRESH:
            known[id] = Mark(offset, at, filed_at, 0, DONE)
            told.append((offset, id, filed_at))
            actual.append(stream.ms)
    rows = marks(*told)
    for before in (NEVER, told[0][2]) if told else ():
        floors = stream_floor(rows, np.array(records), before, WINDOW)
        assert all(floor <= stream for floor, stream in zip(floors.tolist(), actual, strict=True))
    if told and max(times) - min(times) <= WINDOW:
        assert floors.tolist() == actual


@given(st.lists(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_membership_and_distinct_values_are_those_of_sets(offsets: list[int], ordered: set[int]) -> None:
    found = among(np.array(offsets, np.int64), np.array(sorted(ordered), np.int64))
    assert found.tolist() == [offset in ordered for offset in offsets]
    assert distinct(np.sort(np.array(offsets, np.int64))) == len(set(offsets))


def test_rows_come_back_by_block_whether_they_fit_in_memory_or_not(tmp_path: Path) -> None:
    rng = random.Random(1)
    tps = [TP("a.b", 0), TP("a.b", 1)]
    spool = Spool(tmp_path, block=10, limit_bytes=200)
    wanted: dict[tuple[TP, int], list[int]] = {}
    for _ in range(300):
        tp, offset = rng.choice(tps), rng.randrange(100)
        rows = np.zeros(2, OUTPUT)
        rows["offset"] = offset, (offset + 10) % 100
        spool.add("outputs", tp, rows)
        for at in rows["offset"].tolist():
            wanted.setdefault((tp, at // 10), []).append(at)
    assert list(tmp_path.iterdir()), "nothing went to disk"
    for tp in tps:
        assert spool.blocks(tp) == sorted(number for of, number in wanted if of == tp)
    for (tp, number), offsets in wanted.items():
        assert sorted(spool.take("outputs", tp, number)["offset"].tolist()) == sorted(offsets)
        assert not len(spool.take("outputs", tp, number))
    assert not list(tmp_path.iterdir())
