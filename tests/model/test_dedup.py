"""Dedup against a toy that forgets nothing: stream time, marks, epochs, crashes, rebuilds.

A failure prints the steps it needs, as few as hypothesis finds, and a seed (`--hypothesis-seed`) that repeats the run.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from semel.dedup import Dedup
from semel.stages.dedup.classify import Columns, classify, move_time
from semel.state import positions
from semel.state.dedup_marks import Marks, unpack
from semel.state.positions import Position, StreamTime
from semel.state.store import Store

WINDOW, BUCKET = 40, 10
START = 1000
RULE = Dedup("id", window=timedelta(milliseconds=WINDOW))


class Arrived(NamedTuple):
    """A record of the source: its offset is its place in the list."""

    id: bytes
    time: int
    payload: int


# -- the toy


class Toy:
    """The rules in plain words: lists, and nothing is ever removed."""

    def __init__(self) -> None:
        self.now: int | None = None
        self.jumps: list[int] = []
        # id -> what took effect under it: (offset, payload, protected until), in the order in which it did
        self.done: dict[bytes, list[tuple[int, int, int]]] = {}

    def see(self, offset: int, record: Arrived, wall: int) -> set[str]:
        """What may be said of the event: one thing, or two where it does not matter which."""
        reach = min(record.time, wall)
        if record.time > wall + WINDOW:
            return {"clock"}
        known = [d for d in self.done.get(record.id, []) if self.now is None or self.now <= d[2]]
        if self.now is not None and record.time < self.now - WINDOW:
            self.jumps = []
            if known:
                return {self._what(known[-1], offset, record)}
            return {"late", "replayed"} if self._was_here(offset, record) else {"late"}
        jumps = self.now is not None and reach > self.now + WINDOW
        if self.now is None:
            moved, run = reach, []
        elif not jumps:
            moved, run = max(self.now, reach), []
        else:
            moved, run = self.now, [*self.jumps, reach]
            if len(run) == 3:
                moved = min(run)
                while nearer := [t for t in run if moved < t <= moved + WINDOW]:
                    moved = min(nearer)
                run = [t for t in run if t > moved]
        known = [d for d in known if moved <= d[2]]
        if known:
            if not jumps:
                self.now, self.jumps = moved, run
            return {self._what(known[-1], offset, record)}
        if self._was_here(offset, record):
            # Its mark protects no more; whether it is still there is up to the garbage collection.
            return {"fresh", "replayed"}
        self.accept(offset, record, moved, run, max(moved, reach))
        return {"fresh"}

    def accept(self, offset: int, record: Arrived, now: int, run: list[int], filed: int) -> None:
        self.now, self.jumps = now, run
        self.done.setdefault(record.id, []).append((offset, record.payload, filed + WINDOW))

    def _was_here(self, offset: int, record: Arrived) -> bool:
        return any(d[0] == offset for d in self.done.get(record.id, []))

    @staticmethod
    def _what(first: tuple[int, int, int], offset: int, record: Arrived) -> str:
        if first[0] == offset:
            return "replayed"
        return "duplicate" if first[1] == record.payload else "conflict"


# -- the real parts, put together as a runner and an engine do


class Real:
    def __init__(self, store: Store, partition: int) -> None:
        self.store = store
        self.partition = partition
        self.marks = self._marks()
        self.stream = StreamTime()
        self.log: dict[int, tuple[bytes, bytes]] = {}
        self.next = 0

    def _marks(self) -> Marks:
        return Marks(self.store, self.partition, window_ms=WINDOW, bucket_ms=BUCKET)

    def see(self, offset: int, record: Arrived, wall: int) -> str:
        return self.see_all([(offset, record)], wall)[0]

    def see_all(self, records: Sequence[tuple[int, Arrived]], wall: int) -> list[str]:
        """As one batch, of which everything succeeds."""
        ids = [r.id for _, r in records]
        batch = Columns(
            [offset for offset, _ in records], ids, [r.time for _, r in records], [r.payload for _, r in records]
        )
        judged = classify(batch, self.marks.known(ids), self.stream, RULE, wall)
        for id, mark, stream in zip(ids, judged.marks, judged.streams, strict=True):
            if mark is not None:
                self.marks.open[id] = mark
            self.stream = StreamTime(*stream)
        return [verdict.value for verdict in judged.verdicts]

    def seal(self) -> list[tuple[bytes, bytes]]:
        self.sealed_stream = self.stream
        return self.marks.seal()

    def land(self, told_offset: bool) -> None:
        marks, first = self.marks, self.next
        for key, value in marks.sealed.items():
            self.log[self.next] = (key, value)
            self.next += 1
        batch = self.store.batch()
        if marks.sealed:
            marks.file(batch, marks.sealed.items(), first if told_offset else -1)
        position = Position({}, self.sealed_stream)
        if self.sealed_stream.ms is not None:
            marks.drop_buckets(batch, marks.expired(self.sealed_stream.ms))
        buckets = {str(b): o for b, o in marks.buckets.items()}
        batch.meta(self.partition, {"buckets": buckets, "position": position.encode().decode(), "log": self.next})
        self.store.write(batch)
        marks.sealed = {}

    def trim(self) -> None:
        first = self.marks.first_live_offset()
        if first is not None:
            self.log = {o: m for o, m in self.log.items() if o >= first}

    def crash(self) -> None:
        """All that is left is the store."""
        meta: dict[str, Any] = self.store.meta(self.partition) or {"buckets": {}, "position": Position({}).encode()}
        self.marks = self._marks()
        self.marks.buckets = {int(b): o for b, o in meta["buckets"].items()}
        self.stream = positions.decode(meta["position"], "the store").stream_time

    def rebuild(self, partition: int) -> None:
        """All that is left are the logs: another worker, with nothing in its store."""
        meta = self.store.meta(self.partition)
        self.partition = partition
        self.marks = self._marks()
        for offset in sorted(self.log):
            batch = self.store.batch()
            self.marks.file(batch, [self.log[offset]], offset)
            self.store.write(batch)
        if meta is not None:
            batch = self.store.batch()
            buckets = {str(b): o for b, o in self.marks.buckets.items()}
            batch.meta(partition, {**meta, "buckets": buckets})
            self.store.write(batch)
        self.crash()


# -- what happens

IDS = [b"a", b"b", b"c"]
arrivals = st.tuples(
    st.just("arrive"),
    st.sampled_from(IDS),
    # Mostly around the wall clock; sometimes a window or more off.
    st.one_of(st.integers(-BUCKET, BUCKET), st.integers(-WINDOW - 30, WINDOW + 5), st.integers(-300, 300)),
    st.sampled_from([1, 1, 1, 2]),
)
steps = st.lists(
    st.one_of(
        arrivals,
        arrivals,
        arrivals,
        st.tuples(st.just("redeliver"), st.integers(0, 30)),
        st.tuples(st.just("replay"), st.integers(0, 30)),
        st.tuples(st.just("wall"), st.one_of(st.integers(-30, 60), st.integers(-500, 500))),
        st.tuples(st.just("seal"), st.booleans()),
        st.tuples(st.just("land"), st.booleans()),
        st.tuples(st.sampled_from(["abort", "crash", "rebuild", "reopen", "trim"]), st.booleans()),
    ),
    max_size=60,
)

_partitions = itertools.count()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    path: Path = tmp_path_factory.mktemp("model") / "db"
    store = Store(path, cache_mb=4, buffer_mb=4)
    yield store
    store.close()


class Run:
    """The real thing and the toy side by side, and the epochs both go through."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.real, self.toy = Real(store, next(_partitions)), Toy()
        self.log: list[Arrived] = []
        self.position = 0
        self.wall = START
        # (toy, position) as committed, and as sealed while a commit is on its way
        self.committed = (Toy(), 0)
        self.sealed: tuple[Toy, int] | None = None

    def process(self) -> None:
        while self.position < len(self.log):
            self.look(self.position)
            self.position += 1

    def look(self, offset: int) -> None:
        record = self.log[offset]
        before = copy.deepcopy(self.toy)
        expected = self.toy.see(offset, record, self.wall)
        said = self.real.see(offset, record, self.wall)
        event(said)
        assert said in expected, (offset, record, self.wall, vars(before))
        if len(expected) > 1 and said == "fresh":
            stream = self.real.stream
            assert stream.ms is not None
            filed = unpack(self.real.marks.open[record.id]).filed_at
            self.toy.accept(offset, record, stream.ms, list(stream.pending), filed)
        elif said == "replayed" and "fresh" in expected:
            self.toy.now, self.toy.jumps = self.real.stream.ms, list(self.real.stream.pending)
        assert self.real.stream == StreamTime(self.toy.now, tuple(self.toy.jumps))

    def step(self, what: str, *how: Any) -> None:
        if what == "arrive":
            ident, off, payload = how
            self.log.append(Arrived(ident, self.wall + off, payload))
            self.process()
        elif what == "redeliver" and self.log:
            self.log.append(self.log[how[0] % len(self.log)])
            self.process()
        elif what == "replay" and self.log:
            # The same record at the same position, as when a broker gives it once more.
            self.look(how[0] % len(self.log))
        elif what == "wall":
            self.wall += how[0]
        elif what == "seal" and self.sealed is None:
            self.real.seal()
            self.sealed = (copy.deepcopy(self.toy), self.position)
        elif what == "land":
            self.land(how[0])
        elif what in ("abort", "crash", "rebuild", "reopen"):
            self.lose(what)
        elif what == "trim":
            self.real.trim()

    def land(self, told_offset: bool) -> None:
        if self.sealed is None:
            self.real.seal()
            self.sealed = (copy.deepcopy(self.toy), self.position)
        self.real.land(told_offset)
        self.committed, self.sealed = self.sealed, None
        self.check_memory()

    def lose(self, how: str) -> None:
        """The open epoch is gone, and with it the sealed one; what it was made of comes again."""
        if how == "rebuild":
            self.real.rebuild(next(_partitions))
        else:
            if how == "abort":
                self.real.marks.drop()
            elif how == "reopen":
                self.store.reopen()
            self.real.crash()
        toy, self.position = self.committed
        self.toy, self.sealed = copy.deepcopy(toy), None
        self.process()

    def check_memory(self) -> None:
        """Nothing is kept that protects nothing, and everything that protects is there."""
        now = self.committed[0].now
        if now is not None:
            assert all((b + 1) * BUCKET > now - WINDOW for b in self.real.marks.buckets)
        for ident, done in self.committed[0].done.items():
            if now is not None and done[-1][2] >= now:
                raw = self.real.marks.find_committed(ident)
                assert raw is not None
                assert (unpack(raw).offset, unpack(raw).payload) == done[-1][:2]


@settings(max_examples=300, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_dedup_says_what_a_toy_says_that_forgets_nothing(shared: Store, happening: list[tuple[Any, ...]]) -> None:
    run = Run(shared)
    for step in happening:
        run.step(*step)
    run.land(True)


records = st.tuples(st.sampled_from(IDS), st.integers(-2 * WINDOW, 2 * WINDOW), st.sampled_from([1, 1, 2]))


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.lists(records, max_size=20), st.lists(records, min_size=1, max_size=40), st.integers(1, 7))
def test_a_batch_is_judged_as_its_records_are_one_by_one(
    shared: Store, before: list[tuple[bytes, int, int]], arrived: list[tuple[bytes, int, int]], size: int
) -> None:
    one_by_one, batches = (Real(shared, next(_partitions)) for _ in range(2))
    log = [(offset, Arrived(id, START + off, payload)) for offset, (id, off, payload) in enumerate([*before, *arrived])]
    for real in (one_by_one, batches):
        real.see_all(log[: len(before)], START)
        real.seal()
        real.land(told_offset=True)
    rest = log[len(before) :]
    expected = [one_by_one.see(offset, record, START) for offset, record in rest]
    said = [v for at in range(0, len(rest), size) for v in batches.see_all(rest[at : at + size], START)]
    assert (said, batches.stream, batches.marks.open) == (expected, one_by_one.stream, one_by_one.marks.open)


@settings(max_examples=300, deadline=None, print_blob=True)
@given(
    st.integers(1, 1000),
    st.one_of(st.none(), st.integers(-5000, 5000)),
    st.lists(st.tuples(st.integers(-5000, 5000), st.integers(-5000, 5000)), max_size=30),
)
def test_stream_time_never_goes_back_nor_past_the_wall_clock_by_itself(
    window: int, first: int | None, happening: list[tuple[int, int]]
) -> None:
    stream = StreamTime(first)
    for time, wall in happening:
        verdict, filed_at, *moved = move_time(stream.ms, stream.pending, time, wall, window)
        after = StreamTime(*moved)
        assert len(after.pending) < 3
        if stream.ms is not None:
            assert after.ms is not None
            assert after.ms >= stream.ms
            if after.ms > stream.ms:
                # What moved it there was at most the wall clock of its own moment.
                assert after.ms in (min(time, wall), *stream.pending)
            if after.ms > stream.ms + window:
                assert len(stream.pending) == 2
        if verdict is None:
            assert after.ms is not None
            assert filed_at >= min(after.ms, time, wall)
            assert orjson.loads(Position({}, after).encode())["stream_time"] == after.ms
        stream = after
