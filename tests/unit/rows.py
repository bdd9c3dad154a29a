"""A table with its rows over a real store, and the hand that works on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semel.hand import Hand, in_hand
from semel.state.marks import Marks
from semel.state.overlay import Rows
from semel.state.store import Store
from semel.table import Table


def rows_of(
    table: Table,
    store: Store,
    *,
    partition: int = 0,
    number: int = 1,
    place: Callable[[bytes], int] | None = None,
    max_bytes: int = 1_000_000,
    limit: int = 50_000,
    limit_bytes: int = 32 << 20,
) -> Rows:
    return Rows(
        table.name, partition, number, store, table.key, table.value, place=place, max_bytes=max_bytes, limit=limit,
        limit_bytes=limit_bytes,
    )  # fmt: skip


def take_in_hand(*rows: Rows) -> Hand:
    hand = Hand()
    hand.tables = {r.name: r for r in rows}
    in_hand.set(hand)
    return hand


def begun(table: Table, store: Store, **options: Any) -> tuple[Rows, Hand]:
    """The table's rows, in the hand of an event that has begun; options as `rows_of` has them."""
    rows = rows_of(table, store, **options)
    hand = take_in_hand(rows)
    hand.begin()
    return rows, hand


def finish(hand: Hand, marks: Marks | None = None) -> None:
    """What a lane does when an event ends well."""
    hand.writes.write_back()
    hand.writes.fold(marks)
    hand.writes.outputs.clear()
    hand.holding = False


def fail(hand: Hand) -> None:
    hand.undo()


def land(store: Store, *tables: Rows) -> None:
    """Commit what is sealed."""
    batch = store.batch()
    for rows in tables:
        batch.rows(rows.prefix, rows.sealed)
    store.write(batch)
    for rows in tables:
        rows.landed()


def committed(store: Store, rows: Rows) -> dict[Any, Any]:
    return {rows.key_codec.decode(raw): rows.decode(value) for raw, value in store.scan_rows(rows.prefix)}
