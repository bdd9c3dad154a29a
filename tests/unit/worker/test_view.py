"""What the views make of what is stored: rows, their order, parts of rows, and ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from semel import Dedup, Pipeline, Table, Topic
from semel.codec import codec_for
from semel.dedup import header
from semel.errors import DecodeError, HandlingError
from semel.plan import TablePlan
from semel.testing import PipelineTester
from semel.worker import view as view_module
from semel.worker.view import EngineView, shown_value

LARGE = [2**64 + 8, -(2**63) - 1, 10**30]


def plan_of(kind: type) -> TablePlan:
    return TablePlan(name="t", key=codec_for(str), value=codec_for(kind))


@pytest.mark.parametrize("number", LARGE)
def test_an_integer_beyond_64_bits_is_shown_exactly(number: int) -> None:
    assert shown_value(codec_for(int), codec_for(int).encode(number)) == number
    assert shown_value(codec_for(dict), codec_for(dict).encode({"n": number})) == {"n": number}


@contextmanager
def viewed(pipeline: Pipeline, partitions: int = 1) -> Iterator[tuple[PipelineTester, EngineView]]:
    with PipelineTester(pipeline, partitions=partitions) as tester:
        tester._ready()  # pyright: ignore[reportPrivateUsage]
        yield tester, EngineView(tester._deployment.workers["w1"].engine)  # pyright: ignore[reportPrivateUsage]


def pipeline_of(*tables: Table, dedup: Dedup | None = None) -> Pipeline:
    def put(event: dict[str, Any]) -> None:
        for table in tables:
            if table.name in event:
                table[event["key"]] = event[table.name]

    return Pipeline("p", source=Topic("src"), agent=put, tables=list(tables), dedup=dedup)


def longest(a: bytes, b: bytes) -> bytes:
    return max(a, b, key=len)


def test_parts_of_text_and_bytes_are_merged_as_what_they_are() -> None:
    tags = Table("tags", value=str, merge=lambda a, b: f"{a},{b}")
    raws = Table("raws", value=str, merge=lambda a, b: a + b)
    with viewed(pipeline_of(tags, raws), partitions=2) as (tester, view):
        for partition, tag in enumerate(("red", '"blue')):
            tester.send({"key": "x", "tags": tag, "raws": tag}, partition=partition)
        rows = [view.get("tags", "x", partition) for partition in (0, 1)]
        assert view.merge("tags", [row.value for row in rows if row]) == 'red,"blue'
        assert view.merge("raws", [rows[0].value if rows[0] else b""]) == "red"
        assert view.scan("tags", 1).rows[0].value == b'"blue'


def test_bytes_that_are_no_text_are_merged_before_they_are_shown_as_hex() -> None:
    plan = TablePlan(name="t", key=codec_for(str), value=codec_for(bytes), merge=longest)
    view = EngineView.__new__(EngineView)
    view._plan = lambda table: plan  # pyright: ignore[reportPrivateUsage]
    assert view.merge("t", [b"\xff", b"\xfe\xfd"]) == "fefd"
    assert view.merge("t", [b"a", b"bc"]) == "bc"


def test_a_merge_that_does_not_take_its_parts_is_named() -> None:
    t = Table("t", value=int, merge=lambda a, b: a + str(b))  # pyright: ignore[reportArgumentType]
    with viewed(pipeline_of(t), partitions=2) as (tester, view):
        for partition in (0, 1):
            tester.send({"key": "x", "t": partition}, partition=partition)
        with pytest.raises(HandlingError, match="merge= of table 't' does not take the parts of this row: TypeError"):
            view.merge("t", [b"0", b"1"])


def test_a_range_of_numbers_holds_the_numbers_within_it() -> None:
    t = Table("t", key=int, value=int, merge=lambda a, b: a)
    with viewed(pipeline_of(t)) as (tester, view):
        for key in (1, 5, 10, 50, 100, -3, -30, 10**25):
            tester.send({"key": key, "t": key})

        def keys(**asked: Any) -> set[int]:
            return {row.key for row in view.scan("t", 0, **asked).rows}

        assert keys(start="5", end="60") == {5, 10, 50}
        assert keys(start="5", end="100") == {5, 10, 50}
        assert keys(start="-10") == {-3, 1, 5, 10, 50, 100, 10**25}
        assert keys(end="1") == {-30, -3}
        assert keys(prefix="1", start="10", end="101") == {10, 100}
        assert [row.key for row in view.scan("t", 0).rows] == [-3, -30, 1, 10, 100, 10**25, 5, 50]
        [info] = view.tables()
        assert info.numeric


def test_a_range_that_few_rows_are_in_is_looked_for_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "_LOOKED_AT_MAX", 10)
    t = Table("t", key=int, value=int, merge=lambda a, b: a)
    with viewed(pipeline_of(t)) as (tester, view):
        for key in range(45):
            tester.send({"key": key, "t": key})
        found, after, calls = [], None, 0
        while True:
            page = view.scan("t", 0, start="44", after=after)
            found += [row.key for row in page.rows]
            calls, after = calls + 1, page.next
            if after is None:
                break
        assert (found, calls) == ([44], 5)


def test_large_rows_are_read_few_at_a_time_and_one_always() -> None:
    t = Table("t", value=str)
    with viewed(pipeline_of(t)) as (tester, view):
        for n in range(6):
            tester.send({"key": f"k{n}", "t": "x" * 1000}, key="a")
        page = view.scan("t", 0, bytes_max=2500)
        assert len(page.rows) == 3
        assert [row.key for row in view.scan("t", 0, after=page.next).rows] == ["k3", "k4", "k5"]
        assert len(view.scan("t", 0, bytes_max=1).rows) == 1


def test_one_row_and_the_list_of_tables_are_no_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    t = Table("t", value=int)
    with viewed(pipeline_of(t)) as (tester, view):
        tester.send({"key": "a", "t": 1})

        def scans(*_: Any) -> Any:
            raise AssertionError("a scan")

        monkeypatch.setattr("semel.state.store.Store.scan_rows", scans)
        row = view.get("t", "a", 0)
        assert row is not None and row.value == 1
        assert [info.table for info in view.tables()] == ["t"]


def test_rows_are_counted_a_part_at_a_time() -> None:
    t = Table("t", value=int)
    with viewed(pipeline_of(t)) as (tester, view):
        for key in ("", "a", "b"):
            tester.send({"key": key, "t": 1}, key="a")
        assert view.count("t", 0, None, 2) == (2, b"a")
        assert view.count("t", 0, b"a", 2) == (1, None)
        assert view.count("t", 0, None, 3) == (3, None)
        assert view.count("t", 0, b"", 3) == (2, None)


def test_an_id_is_found_whatever_its_type_and_shown_with_it() -> None:
    rule = Dedup("id", window=timedelta(days=1))
    with viewed(pipeline_of(dedup=rule)) as (tester, view):
        for event_id in (5, "5", "a/b", 2**70, [1, "x"]):
            tester.send({"id": event_id})

        def found(*written: str) -> list[Any]:
            return [mark["id"] for mark in view.dedup("p", written)]

        assert found("5") == ["5", 5]
        assert found('"5"') == ["5"]
        assert found("a", "b") == found("a/b") == ["a/b"]
        assert found(str(2**70)) == [2**70]
        assert found('[1,"x"]') == [[1, "x"]]
        assert found("6") == []


def test_an_id_of_several_headers_is_found_by_all_and_by_the_first_of_them() -> None:
    rule = Dedup(header("ce_id", "ce_source"), window=timedelta(days=1))
    with viewed(pipeline_of(dedup=rule)) as (tester, view):
        for event_id, source in (("e1", "https://shop"), ("e1", "bar"), ("e10", "bar")):
            tester.send({}, headers={"ce_id": event_id.encode(), "ce_source": source.encode()})

        def found(*written: str) -> list[Any]:
            return sorted(mark["id"] for mark in view.dedup("p", written))

        assert found("e1", "https:", "", "shop") == found('["e1","https://shop"]') == [["e1", "https://shop"]]
        assert found("e1") == [["e1", "bar"], ["e1", "https://shop"]]
        assert found("e") == []


@pytest.mark.parametrize(
    ("asked", "words"), [("q", "no pipeline 'q' here; this worker runs 'p'"), ("p", "no dedup rule")]
)
def test_a_pipeline_that_is_not_there_and_one_without_a_rule_are_told_apart(asked: str, words: str) -> None:
    with viewed(pipeline_of()) as (_, view), pytest.raises(KeyError, match=words):
        view.dedup(asked, ["x"])


def test_the_time_of_commits_is_a_histogram_that_never_falls() -> None:
    def samples(view: EngineView) -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in view.metrics().decode().splitlines() if "semel_commit_seconds" in line]
        return {name: float(value) for name, value in lines if not name.startswith("#")}

    with viewed(pipeline_of(Table("t", value=int))) as (tester, view):
        before = samples(view)
        for n in range(12):
            tester.send({"key": f"k{n}", "t": n}, key="a")
        view._engine.commit_seconds.clear()  # pyright: ignore[reportPrivateUsage]
        view._engine.commit_histogram.add(1e9)  # pyright: ignore[reportPrivateUsage]
        after = samples(view)
        count = after['semel_commit_seconds_count{pipeline="p"}']
        assert count == view._engine.stats["commits"] + 1  # pyright: ignore[reportPrivateUsage]
        assert after['semel_commit_seconds_bucket{le="+Inf",pipeline="p"}'] == count
        assert after['semel_commit_seconds_bucket{le="10.0",pipeline="p"}'] == count - 1
        assert all(after[name] >= value for name, value in before.items())
        assert sum("_bucket" in name for name in after) == 12


@pytest.mark.parametrize("levels", [1, 100, 300, 900, 20_000, 200_000])
def test_a_key_that_is_nested_too_deeply_is_no_key(levels: int) -> None:
    t = Table("t", key=tuple[Any, ...], value=int, merge=lambda a, b: a + b)
    with viewed(pipeline_of(t)) as (_, view):
        text = "[" * levels + "]" * levels
        try:
            key = view.key("t", text)
        except DecodeError:
            return
        assert view.get("t", key, 0) is None


def test_text_that_is_no_json_is_itself_a_key_where_keys_may_be_text() -> None:
    t = Table("t", key=Any, value=int, merge=lambda a, b: a)
    with viewed(pipeline_of(t)) as (tester, view):
        for key in ("k1", "5", 5, "true story", 'a"b'):
            tester.send({"key": key, "t": 1})

        def found(text: str) -> Any:
            row = view.get("t", view.key("t", text), 0)
            return None if row is None else row.key

        assert found("k1") == found('"k1"') == "k1"
        assert found("true story") == "true story"
        assert found('a"b') == 'a"b'
        assert (found("5"), found('"5"')) == (5, "5")
        assert {row.key for row in view.scan("t", 0, prefix="k").rows} == {"k1"}
        assert {row.key for row in view.scan("t", 0, prefix='"k').rows} == {"k1"}
        assert {row.key for row in view.scan("t", 0, prefix="5").rows} == {5}
        assert {row.key for row in view.scan("t", 0, start="b", end="l").rows} == {"k1"}


def test_what_can_be_no_key_is_refused_with_how_a_key_is_written() -> None:
    t = Table("t", key=int, value=int, merge=lambda a, b: a)
    with (
        viewed(pipeline_of(t)) as (_, view),
        pytest.raises(DecodeError, match="written as its JSON, percent-encoded: 5, %22text%22"),
    ):
        view.key("t", "k1")
