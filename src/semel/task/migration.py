"""Rows of a type that has changed, made anew by the table's `migrate=`, before any event sees them (rule 24).

In chunks, each an epoch like any other: the new rows and how far they go are in one transaction, so that a crash repeats
nothing. Types and shape of the position stay the old ones until the last chunk is in.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import msgspec
import orjson

from semel.errors import SemelError, ShapeChanged
from semel.plan import Plan, TablePlan
from semel.state.table_rows import Rows
from semel.state.task import Task

log = logging.getLogger("semel.engine")

# What one transaction takes without ado.
CHUNK_ROWS, CHUNK_BYTES = 5_000, 1 << 20


async def migrate(task: Task, plan: Plan, commit: Callable[[], Awaitable[None]]) -> None:
    """Migrate what the task's position says is to be; `commit` returns when what is open is committed. ShapeChanged."""
    tables = {table.name: table for table in plan.tables}
    while task.migrating:
        name, (upto, target) = next(iter(task.migrating.items()))
        last, rows = _chunk(task.tables[name], tables[name], bytes.fromhex(upto) if upto else b"")
        if last:
            task.migrating = {**task.migrating, name: (last.hex(), target)}
        else:
            task.migrating = {other: at for other, at in task.migrating.items() if other != name}
            shape, now = orjson.loads(task.shape), orjson.loads(plan.shape())
            types, types_now = orjson.loads(task.types), orjson.loads(plan.types())
            shape["tables"][name] = now["tables"][name]
            types["tables"][name] = types_now["tables"][name]
            task.shape = orjson.dumps(shape, option=orjson.OPT_SORT_KEYS).decode()
            task.types = orjson.dumps(types, option=orjson.OPT_SORT_KEYS).decode()
        task.touched = True
        await commit()
        log.info(
            "task %d: %d rows of table %s migrated%s", task.partition, rows, name, "" if last else ", the last ones"
        )


def _chunk(rows: Rows, table: TablePlan, after: bytes) -> tuple[bytes, int]:
    """Put the next rows into the open epoch; the last key of them, empty where these were the last, and their number."""
    assert table.migrate is not None
    count = size = 0
    for raw, stored in rows.scan(after + b"\x00" if after else b""):
        if count >= CHUNK_ROWS or size >= CHUNK_BYTES:
            return after, count
        try:
            encoded = rows.encode(raw, raw, table.migrate(_plain(table, stored)))
        except Exception as exc:
            reason = str(exc) if isinstance(exc, SemelError) else f"{type(exc).__name__}: {exc}"
            raise ShapeChanged(
                f"table {table.name!r}, row {raw!r:.120}: its migrate= failed at {stored!r:.200}: {reason}. Mend "
                "it and start again: rows before this one may be migrated, and are not touched again"
            ) from exc
        if encoded != stored:
            rows.open[raw] = encoded
        after, count, size = raw, count + 1, size + len(encoded) + len(raw)
    return b"", count


def _plain(table: TablePlan, stored: bytes) -> object:
    """A row as it stands: JSON as dicts, lists and scalars; bytes and text where the table holds these."""
    if table.structure.get("value") == "raw bytes":
        return stored
    try:
        return msgspec.json.decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return stored
