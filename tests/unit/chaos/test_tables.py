"""Rows as workers show them, held against what their changelogs say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import add
from typing import Any

from semel import Table
from semel.chaos import tables
from semel.pipeline import table_plan
from semel.plan import TablePlan

BALANCES = Table("balances", value=int, default=int)
PARTS = [{b"a": b"1", b"b": b"2"}, {b"c": b"3"}]


def differences(
    table: Table | TablePlan, parts: Sequence[Mapping[bytes, bytes]], rows: Sequence[tuple[Any, Any]]
) -> list[str]:
    return tables.differences(table_plan(table) if isinstance(table, Table) else table, parts, rows)


def test_rows_that_are_their_changelog_are_not_mentioned() -> None:
    assert differences(BALANCES, PARTS, [("a", 1), ("b", 2), ("c", 3)]) == []


def test_each_row_that_differs_is_named_with_both_words_on_it() -> None:
    found = differences(BALANCES, PARTS, [("a", 1), ("b", 5), ("d", 4)])
    assert found == [
        "table-is-fold: balances[b] is shown as 5, the changelog says 2",
        "table-is-fold: balances[c] is shown as absent, the changelog says 3",
        "table-is-fold: balances[d] is shown as 4, the changelog says absent",
    ]


def test_a_row_that_is_shown_twice_is_one_too_many() -> None:
    found = differences(BALANCES, PARTS, [("a", 1), ("a", 1), ("b", 2), ("c", 3)])
    assert found == ["table-is-fold: balances[a] is shown as 1 and 1, the changelog says 1"]


def test_many_differences_are_counted() -> None:
    parts = [{b"%d" % n: b"1" for n in range(20)}]
    found = differences(BALANCES, parts, [])
    assert len(found) == 6
    assert "15 more rows" in found[-1]


def test_partial_rows_are_added_up_as_the_views_do() -> None:
    sums = Table("sums", value=int, default=int, merge=add)
    assert differences(sums, [{b"a": b"1"}, {b"a": b"2"}], [("a", 3)]) == []
    assert differences(sums, [{b"a": b"1"}, {b"a": b"2"}], [("a", 2)]) != []


def test_keys_and_values_of_other_types_are_compared_as_they_are_shown() -> None:
    by_number = Table("by_number", key=int, value=list[str])
    assert differences(by_number, [{b"7": b'["x"]'}], [(7, ["x"])]) == []
    texts = Table("texts", key=bytes, value=str)
    assert differences(texts, [{b"k": b"plain"}], [("k", "plain")]) == []


def test_what_only_the_views_can_show_is_compared_as_they_do() -> None:
    totals = Table("totals", key=bytes, value=int)
    assert differences(totals, [{b"\xff": b"%d" % 2**70}], [("ff", 2**70)]) == []
    assert differences(totals, [{b"\xff": b"%d" % 2**70}], [("ff", 2**70 + 1)]) != []


def test_a_row_that_lies_where_its_event_is_may_be_there_once_in_each_partition() -> None:
    counts = table_plan(BALANCES)
    counts = TablePlan(counts.name, counts.key, counts.value, keyed=False)
    parts = [{b"a": b"1"}, {b"a": b"2", b"b": b"2"}]
    assert differences(counts, parts, [("a", 2), ("a", 1), ("b", 2)]) == []
    assert differences(counts, parts, [("a", 2), ("b", 2)]) == [
        "table-is-fold: balances[a] is shown as 2, the changelog says 1 and 2"
    ]
    assert differences(counts, parts, [("a", 1), ("a", 1), ("b", 2)]) == [
        "table-is-fold: balances[a] is shown as 1 and 1, the changelog says 1 and 2"
    ]
