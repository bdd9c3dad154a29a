"""A table with its rows over a real store, and the hand that works on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semel.state.dedup_marks import Marks
from semel.state.event_context import EventContext, current_context
from semel.state.store import Store
from semel.state.table_rows import Rows
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


def take_in_hand(*rows: Rows) -> EventContext:
    context = EventContext()
    context.tables = {r.name: r for r in rows}
    current_context.set(context)
    return context


def begun(table: Table, store: Store, **options: Any) -> tuple[Rows, EventContext]:
    """The table's rows, in the hand of an event that has begun; options as `rows_of` has them."""
    rows = rows_of(table, store, **options)
    context = take_in_hand(rows)
    context.begin()
    return rows, context


def finish(context: EventContext, marks: Marks | None = None) -> None:
    """What a runner does when an event ends well."""
    context.writes.write_back()
    context.writes.fold(marks)
    context.writes.outputs.clear()
    context.holding = False


def fail(context: EventContext) -> None:
    context.undo()


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
