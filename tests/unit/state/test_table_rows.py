"""A row that is kept at hand is the row that a restart would read: its value, and the types in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest

from semel import Pipeline, Table, Topic
from semel.codec import codec_for
from semel.state.event_context import current_context
from semel.state.store import Store
from semel.testing import PipelineTester
from tests.unit.rows import begun, fail, finish


@pytest.fixture(autouse=True)
def nothing_in_hand() -> Iterator[None]:
    token = current_context.set(None)
    yield
    current_context.reset(token)


class Colour(StrEnum):
    RED = "red"


class Amount(int):
    pass


@dataclass(frozen=True)
class Row:
    amount: float = 0.0
    note: str = ""
    count: int = 0
    at: datetime | None = None


@dataclass(frozen=True)
class Plain:
    amount: float = 0.0
    note: str = ""
    count: int = 0


class Packed(msgspec.Struct, frozen=True):
    amount: float | None = None


SUMMER = timedelta(days=180)
WRITTEN: dict[str, tuple[Any, Any, Callable[[Any], Any]]] = {
    "an int in a float": (Row, Row(amount=1), lambda row: repr(row.amount)),
    "an int in a float of a Struct": (Packed, Packed(amount=1), lambda row: repr(row.amount)),
    "an enum in a str": (Row, Row(note=Colour.RED), lambda row: repr(row.note)),
    "a subclass of int": (Row, Row(count=Amount(3)), lambda row: type(row.count).__name__),
    "a zone": (
        datetime,
        datetime(2023, 1, 1, 12, tzinfo=ZoneInfo("Europe/Berlin")),
        lambda at: (at + SUMMER).isoformat(),
    ),
    "a zone in a field": (
        Row,
        Row(at=datetime(2023, 1, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))),
        lambda row: (row.at + SUMMER).isoformat(),
    ),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_a_row_is_the_same_before_and_after_a_restart(what: str) -> None:
    declared, value, shown = WRITTEN[what]

    def answers(*, restarts: bool) -> list[Any]:
        rows = Table("rows", value=declared)

        async def agent(event: dict[str, Any]) -> dict[str, Any]:
            if "a" not in rows:
                rows["a"] = value
            return {"shown": shown(rows["a"])}

        pipeline = Pipeline("p", source=Topic("in"), agent=agent, tables=[rows], sink=Topic("out"))
        with PipelineTester(pipeline, partitions=1) as tester:
            for n in range(3):
                tester.send({"n": n}, key="a")
                if restarts:
                    tester.crash(lose_state=True)
            return [out.value["shown"] for out in tester.outputs()]

    assert len(set(answers(restarts=False))) == 1
    assert answers(restarts=False) == answers(restarts=True)


@pytest.mark.parametrize(
    ("declared", "same", "another"),
    [
        (int, [5], [True, Amount(5)]),
        (float, [5.0, -0.0], [5]),
        (str, ["a"], [Colour.RED]),
        (Decimal, [Decimal("1.0")], []),
        (UUID, [UUID(int=5)], []),
        (
            Plain,
            [Plain(), Plain(1.0, "a", 2)],
            [Plain(1), Plain(note=Colour.RED), Plain(count=Amount(1)), Plain(count=True)],
        ),
        (Packed, [Packed(), Packed(1.0)], [Packed(1)]),
    ],
)
def test_a_codec_knows_which_values_are_read_back_as_they_are(
    declared: Any, same: list[Any], another: list[Any]
) -> None:
    codec = codec_for(declared)
    encode_same = codec.encode_same
    assert encode_same is not None
    assert [encode_same(value) for value in same] == [codec.encode(value) for value in same]
    assert [encode_same(value) for value in another] == [None] * len(another)
    assert all(codec.decode(codec.encode(value)) == value for value in same)


def test_of_a_field_that_may_have_a_zone_nobody_knows() -> None:
    assert codec_for(Row).encode_same is None


@pytest.mark.parametrize("value", [int, dict], ids=["kept at hand", "changeable"])
@pytest.mark.parametrize("keys", ["a", "ab", "aba", "abc", "aa"])
def test_all_rows_of_an_event_are_read_by_it_and_join_the_epoch_when_it_is_done(
    store: Store, value: Any, keys: str
) -> None:
    table = Table("rows", value=value)
    rows, context = begun(table, store)
    expected: dict[bytes, Any] = {}
    for n, key in enumerate(keys):
        table[key] = expected[key.encode()] = n if value is int else {"n": n}
        assert {raw: table[raw.decode()] for raw in expected} == expected
        assert {raw: rows.decode(rows.load(raw) or b"") for raw in expected} == expected
    assert rows.open == {} and rows.pending.keys() == expected.keys()
    finish(context)
    assert {raw: rows.decode(stored or b"") for raw, stored in rows.open.items()} == expected
    assert rows.pending == {} and context.writes.rows == []


@pytest.mark.parametrize("keys", ["a", "ab", "aba", "abc"])
def test_of_an_event_that_fails_no_row_is_left_for_the_next(store: Store, keys: str) -> None:
    table = Table("rows", value=int)
    rows, context = begun(table, store)
    for n, key in enumerate(keys):
        table[key] = n
    fail(context)
    assert rows.pending == {} and rows.open == {}
    context.begin()
    assert [table.get(key) for key in keys] == [None] * len(keys)
    table["z"] = 7
    finish(context)
    assert rows.open == {b"z": b"7"}


def test_an_event_deletes_a_row_that_it_wrote_and_writes_it_again(store: Store) -> None:
    table = Table("rows", value=int)
    rows, context = begun(table, store)
    table["a"] = 1
    del table["a"]
    assert "a" not in table and rows.pending == {b"a": None}
    table["b"] = 2
    table["a"] = 3
    finish(context)
    assert rows.open == {b"a": b"3", b"b": b"2"}
