"""Tables and write sets against plain dictionaries: events, epochs, aborts, events left out of an epoch, crashes.

A failure prints the steps it needs, as few as hypothesis finds, and a seed (`--hypothesis-seed`) that repeats the run.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from semel.state.dedup_marks import DONE, Marks, pack
from semel.state.event_context import EventContext, current_context
from semel.state.store import Store
from semel.state.table_rows import Rows
from semel.table import Table
from tests.unit.rows import committed, fail, finish, land, rows_of

Dict = dict[Any, Any]
KEYS = ["a", "b", "c"]
NAMES = ["numbers", "totals", "lists", "records"]


@dataclass
class Row:
    n: int = 0
    seen: list[int] = field(default_factory=list)


def fresh_tables() -> dict[str, Table]:
    """Values that cannot change in place and values that can, with a default and without."""
    return {
        "numbers": Table("numbers", value=int),
        "totals": Table("totals", value=int, default=int, merge=int.__add__),
        "lists": Table("lists", value=list, default=list),
        "records": Table("records", value=Row),
    }


def made(name: str, n: int) -> Any:
    return {"lists": [n], "records": Row(n)}.get(name, n)


class Toy:
    """Copies of dictionaries: what is committed, what is on its way, what the open epoch has, what the event does."""

    def __init__(self) -> None:
        self.committed: dict[str, Dict] = {name: {} for name in [*NAMES, "marks"]}
        self.sealed = copy.deepcopy(self.committed)
        self.open = copy.deepcopy(self.committed)
        self.event: dict[str, Dict] | None = None

    def now(self) -> dict[str, Dict]:
        return self.open if self.event is None else self.event


class Run:
    """The tables of one task over a real store, and the toy beside them."""

    def __init__(self, store: Store, partition: int, limit: int) -> None:
        self.store, self.partition, self.limit = store, partition, limit
        self.tables = fresh_tables()
        self.toy = Toy()
        self.sealing = False
        self.kept: list[Any] = []
        # rows written by the event in hand, and by the events of the open epoch
        self.writing: set[tuple[str, str]] = set()
        self.written: set[tuple[str, str]] = set()
        self._open()

    def _open(self) -> None:
        """A task as it is after a restore: everything from the store, nothing in hand."""
        self.rows: dict[str, Rows] = {
            name: rows_of(table, self.store, partition=self.partition, number=number, limit=self.limit)
            for number, (name, table) in enumerate(self.tables.items(), 1)
        }
        self.marks = Marks(self.store, self.partition, window_ms=40, bucket_ms=10)
        self.marks.buckets = {0: 0}
        self._take_hand()

    def _take_hand(self) -> None:
        self.context = EventContext()
        self.context.tables = self.rows
        current_context.set(self.context)

    # -- what an agent does

    def begin(self) -> None:
        if self.toy.event is None:
            self.context.begin()
            self.toy.event = copy.deepcopy(self.toy.open)

    def get(self, name: str, key: str) -> None:
        self.begin()
        table, toy = self.tables[name], self.toy.now()[name]
        assert table.get(key, "nothing") == toy.get(key, "nothing")
        assert (key in table) == (key in toy)
        if name in ("totals", "lists"):
            assert table[key] == toy.get(key, [] if name == "lists" else 0)
            # A default that was only looked at is no row.
            assert (key in table) == (key in toy)
        elif key not in toy:
            with pytest.raises(KeyError):
                table[key]

    def set(self, name: str, key: str, n: int) -> None:
        self.begin()
        self.writing.add((name, key))
        self.tables[name][key] = value = made(name, n)
        self.toy.now()[name][key] = copy.deepcopy(value)

    def add(self, name: str, key: str, n: int) -> None:
        """Read, change and write; or change in place."""
        self.begin()
        table, toy = self.tables[name], self.toy.now()[name]
        if name not in ("totals", "lists") and key not in toy:
            return
        self.writing.add((name, key))
        if name == "lists":
            value = table[key]
            value.append(n)
            toy.setdefault(key, []).append(n)
            self.kept.append(value)
        elif name == "records":
            table[key].n += n
            table[key].seen.append(n)
            toy[key].n += n
            toy[key].seen.append(n)
        else:
            table[key] += n
            toy[key] = toy.get(key, 0) + n

    def remove(self, name: str, key: str) -> None:
        self.begin()
        self.writing.add((name, key))
        table, toy = self.tables[name], self.toy.now()[name]
        if key in toy:
            del table[key]
            del toy[key]
        else:
            with pytest.raises(KeyError):
                del table[key]

    def pop(self, name: str, key: str) -> None:
        self.begin()
        self.writing.add((name, key))
        assert self.tables[name].pop(key, None) == self.toy.now()[name].pop(key, None)

    def mark(self, key: str, n: int) -> None:
        """As the dedup stage does, before the agent has the event."""
        self.begin()
        raw = key.encode()
        mark = self.toy.now()["marks"][raw] = pack(n, 0, 0, 0, DONE)
        self.context.writes.marks.append((raw, mark))

    # -- how an event ends

    def succeed(self) -> None:
        if self.toy.event is not None:
            finish(self.context, self.marks)
            self.toy.open, self.toy.event = self.toy.event, None
            self.written |= self.writing
            self.writing.clear()
            # Whatever the agent still holds is its own affair from now on.
            for value in self.kept:
                value.append(-1)
            self.kept.clear()

    def fail(self) -> None:
        if self.toy.event is not None:
            fail(self.context)
            self.toy.event = None
            self.writing.clear()
            self.kept.clear()

    # -- epochs

    def seal(self) -> None:
        """With an event in hand it is left out: the epoch has all of what was done before it, and nothing of it."""
        if self.sealing:
            return
        if self.toy.event is not None:
            event("an event left out of an epoch")
        for rows in self.rows.values():
            rows.seal()
        self.marks.seal()
        self.toy.sealed = copy.deepcopy(self.toy.open)
        self.sealing = True
        self.check_sealed()
        self.written.clear()

    def check_sealed(self) -> None:
        """What goes to the changelogs makes of what is committed what is sealed, and is only what was written."""
        for name, rows in self.rows.items():
            found = dict(self.toy.committed[name])
            for raw, value in rows.sealed.items():
                assert (name, raw.decode()) in self.written
                if value is None:
                    found.pop(raw.decode(), None)
                else:
                    found[raw.decode()] = rows.decode(value)
            assert found == self.toy.sealed[name]

    def land(self) -> None:
        if not self.sealing:
            return
        batch = self.store.batch()
        self.marks.file(batch, self.marks.sealed.items(), 0)
        self.store.write(batch)
        land(self.store, *self.rows.values())
        self.marks.sealed = {}
        self.toy.committed, self.sealing = self.toy.sealed, False
        self.check_committed()

    def check_committed(self) -> None:
        for name, rows in self.rows.items():
            assert committed(self.store, rows) == self.toy.committed[name]
        for key, value in self.toy.committed["marks"].items():
            assert self.marks.find_committed(key) == value

    def abort(self) -> None:
        """Everything that is not committed is gone, the event in hand too."""
        self.context.alive = False
        self.context.writes.forget()
        for rows in self.rows.values():
            rows.drop()
        self.marks.drop()
        self._take_hand()
        self._back()

    def crash(self) -> None:
        self._open()
        self._back()

    def _back(self) -> None:
        self.toy.open = copy.deepcopy(self.toy.committed)
        self.toy.event, self.sealing = None, False
        self.writing.clear()
        self.written.clear()
        self.kept.clear()
        self.check_committed()

    def check(self) -> None:
        """Every row, as an event would see it."""
        ours = self.toy.event is None
        self.begin()
        for name, table in self.tables.items():
            assert table.get_many(KEYS) == [
                self.toy.now()[name].get(key, {"totals": 0, "lists": []}.get(name)) for key in KEYS
            ]
        # The event's own are for others to see when it is done.
        assert self.marks.known([key.encode() for key in KEYS]) == self.toy.open["marks"]
        if ours:
            self.fail()


names, keys, numbers = st.sampled_from(NAMES), st.sampled_from(KEYS), st.integers(0, 5)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["set", "add", "add"]), names, keys, numbers),
        st.tuples(st.sampled_from(["get", "remove", "pop"]), names, keys),
        st.tuples(st.just("mark"), keys, numbers),
        st.tuples(st.sampled_from(["succeed", "succeed", "succeed", "fail"])),
        st.tuples(st.sampled_from(["seal", "seal", "land", "land", "abort", "crash", "check"])),
    ),
    max_size=80,
)
_partitions = itertools.count()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("model") / "db", cache_mb=4, buffer_mb=4)
    yield store
    store.close()


@settings(max_examples=1500, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.sampled_from([1, 2, 50_000]))
def test_tables_are_dictionaries_whose_events_take_effect_whole_or_not_at_all(
    shared: Store, happening: list[tuple[Any, ...]], limit: int
) -> None:
    run = Run(shared, next(_partitions), limit)
    for what, *how in happening:
        getattr(run, what)(*how)
    run.check()
    run.succeed()
    for _ in range(2):
        run.seal()
        run.land()
    run.check_committed()
    current_context.set(None)
