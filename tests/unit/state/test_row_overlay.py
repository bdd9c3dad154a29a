"""Row overlay: one event's view of rows that others change (rule 1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.codec import codec_for, key_codec_for
from semel.state.row_overlay import RowOverlay
from semel.state.store import Store
from semel.state.table_rows import MISSING, Rows
from semel.state.write_set import WriteSet
from semel.testing.worker import open_store


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Rows]:
    store: Store = open_store(tmp_path / "db")
    yield Rows("t", 0, 1, store, key_codec_for(str), codec_for(int), place=None, max_bytes=1_000_000)
    store.close()


def done(overlay: RowOverlay, **written: int) -> None:
    writes = WriteSet()
    for key, value in written.items():
        overlay.write_for(writes, key, value)
    writes.fold(None)


def test_what_an_event_writes_is_its_own_until_it_is_done(rows: Rows) -> None:
    one, other = RowOverlay(rows), RowOverlay(rows)
    writes = WriteSet()
    one.write_for(writes, "a", 1)
    assert one.value("a") == 1
    assert other.value("a") is MISSING
    assert rows.value("a") is MISSING
    writes.fold(None)
    assert rows.value("a") == 1
    assert rows.open == {b"a": b"1"}


def test_an_event_that_fails_leaves_no_trace(rows: Rows) -> None:
    one, writes = RowOverlay(rows), WriteSet()
    one.write_for(writes, "a", 1)
    writes.drop()
    assert rows.value("a") is MISSING
    assert not rows.open


def test_an_event_sees_a_row_as_it_was_when_it_looked_first_and_is_stale_when_another_has_changed_it(
    rows: Rows,
) -> None:
    done(RowOverlay(rows), a=1, b=1)
    one, other = RowOverlay(rows), RowOverlay(rows)
    assert (one.value("a"), other.value("a"), other.value("b")) == (1, 1, 1)
    done(one, a=2)
    assert other.stale
    assert other.value("a") == 1
    assert RowOverlay(rows).value("a") == 2


def test_what_was_written_back_to_the_same_is_no_change(rows: Rows) -> None:
    done(RowOverlay(rows), a=1)
    one = RowOverlay(rows)
    assert one.value("a") == 1
    done(RowOverlay(rows), a=2)
    done(RowOverlay(rows), a=1)
    assert not one.stale


def test_rows_that_are_only_written_are_never_stale(rows: Rows) -> None:
    one, writes = RowOverlay(rows), WriteSet()
    one.write_for(writes, "a", 1)
    done(RowOverlay(rows), a=7)
    assert not one.stale
    writes.fold(None)
    assert rows.value("a") == 1


def test_a_value_that_was_at_hand_is_read_anew_when_an_event_has_changed_it(rows: Rows) -> None:
    writes = WriteSet()
    rows.write_for(writes, "a", 1)
    writes.fold(None)
    assert rows.value("a") == 1
    done(RowOverlay(rows), a=2)
    assert rows.hot.get("a", 2) == 2
    assert rows.value("a") == 2
