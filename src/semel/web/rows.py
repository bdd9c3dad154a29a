"""Rows of a table over all partitions and workers: one key, or a page in order.

The wire form between workers is JSON like the public one, with the raw key of each row in base64; it is
answered under the hop header only and may change with any release that says so. What another worker answers is
read into types, and may only be about the partitions it was asked for.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from semel.errors import DecodeError, HandlingError
from semel.web.answer import Refusal
from semel.web.budget import Budget
from semel.web.owner import Peers, ask, odd, partitions
from semel.web.paths import query, row_path, table_path
from semel.web.scan import (
    ALL_PARTITIONS,
    PageToken,
    RowPage,
    Scan,
    Slice,
    combined,
    in_order,
    read_each,
    read_in_order,
)
from semel.web.view import TableInfo, TableRow, WorkerView

FIRST_PARTITIONS = 4  # asked at once for a page; doubled while the page is not full
ROWS_PER_ROUND = 20_000  # read over all partitions for one round of a merged page


EMPTY_ROUNDS_MAX = 20  # of a merged page, before it is given out as it is


class _Row(msgspec.Struct):
    key: Any
    value: Any
    partition: int
    raw: bytes
    stored: bytes | None = None


class _Slice(msgspec.Struct):
    partition: int
    rows: list[_Row]
    more: bool
    last: bytes


class _Rows(msgspec.Struct):
    rows: list[_Row]


class _Slices(msgspec.Struct):
    slices: list[_Slice]


class Rows:
    """Answers for any key of any table, wherever it is held."""

    def __init__(self, view: WorkerView, peers: Peers, budget: Budget) -> None:
        self._view = view
        self._peers = peers
        self._budget = budget

    def table(self, name: str) -> TableInfo:
        """Refusal 404, naming the tables there are."""
        infos = {info.table: info for info in self._view.tables()}
        if name not in infos:
            raise Refusal(404, f"there is no table {name!r}", tables=sorted(infos))
        return infos[name]

    async def one(self, table: str, text: str) -> dict[str, Any]:
        """The row of a key. Refusal: 400 no key of this table, 404 no row, 409 several; Restoring."""
        info = self.table(table)
        key = self._key(table, text)
        partition = None if info.merged else self._view.partition_of(table, key)
        wanted = partitions(self._view) if partition is None else [partition]

        async def there(url: str, held: list[int]) -> list[TableRow]:
            path = row_path(table, text) + query([("partitions", _joined(held))])
            return _rows(url, (await self._peers.get(url, path, _Rows)).rows, held)

        async def here(held: list[int]) -> list[TableRow]:
            return await self._get(table, key, held)

        answers = await ask(self._view, wanted, here, there)
        matching = sorted((row for rows in answers for row in rows), key=lambda row: row.partition)
        if not matching:
            raise Refusal(404, f"table {table!r} has no row for this key", table=table, key=key)
        if info.merged:
            return {"table": table, **await self._merged_row(table, matching)}
        if len(matching) > 1:
            held = [row.partition for row in matching]
            raise Refusal(
                409,
                f"partitions {_joined(held)} each hold a row for this key, and table {table!r} has no merge=",
                table=table,
                key=key,
                partitions=held,
            )
        return {"table": table, **_public(matching[0])}

    async def page(self, scan: Scan) -> dict[str, Any]:
        """A page of rows and the token of the next. Refusal, Restoring."""
        info = self.table(scan.table)
        if scan.page is not None and (scan.page.partition < 0) != info.merged:
            raise Refusal(400, "page: this token belongs to another table; start again without it")
        if info.merged:
            return await self._merged_page(scan)
        taken = await self._page_in_order(scan)
        rows = [_public(row) for row in taken.rows]
        return {"rows": rows, "next": taken.next.encode() if taken.next else None}

    # -- what another worker asks of this one

    async def held_rows(self, table: str, text: str, held: Sequence[int]) -> dict[str, Any]:
        """The rows of a key on partitions held here. Restoring, NotOwned."""
        self.table(table)
        return {"rows": [_wire(row) for row in await self._get(table, self._key(table, text), held)]}

    async def held_slices(self, scan: Scan, held: Sequence[int]) -> dict[str, Any]:
        """Slices of partitions held here: of each for a merged table, else in order up to the limit."""
        read = read_each if self.table(scan.table).merged else read_in_order
        return {
            "slices": [
                {
                    "partition": part.partition,
                    "rows": [_wire(row) for row in part.rows],
                    "more": part.more,
                    "last": _text(part.last),
                }
                for part in await read(self._view, self._budget, scan, held)
            ]
        }

    # -- inside

    def _key(self, table: str, text: str) -> Any:
        try:
            return self._view.key(table, text)
        except DecodeError as wrong:
            raise Refusal(400, f"this is no key of table {table!r}: {wrong}", table=table) from wrong

    async def _get(self, table: str, key: Any, held: Sequence[int]) -> list[TableRow]:
        rows = [await self._budget.run(self._view.get, table, key, partition) for partition in held]
        return [row for row in rows if row is not None]

    async def _slices(self, scan: Scan, wanted: Sequence[int]) -> dict[int, Slice]:
        async def there(url: str, held: list[int]) -> list[Slice]:
            parameters = [
                ("partitions", _joined(held)),
                ("prefix", scan.prefix),
                ("from", scan.start),
                ("to", scan.end),
                ("limit", scan.limit),
                ("page", scan.page.encode() if scan.page else None),
            ]
            answer = await self._peers.get(url, table_path(scan.table) + query(parameters), _Slices)
            return [
                Slice(part.partition, _rows(url, part.rows, [part.partition]), part.more, part.last)
                for part in answer.slices
                if part.partition in held
            ]

        read = read_each if self.table(scan.table).merged else read_in_order

        async def here(held: list[int]) -> list[Slice]:
            return await read(self._view, self._budget, scan, held)

        answers = await ask(self._view, wanted, here, there)
        return {part.partition: part for slices in answers for part in slices}

    async def _page_in_order(self, scan: Scan) -> RowPage:
        remaining = [p for p in partitions(self._view) if scan.page is None or p >= scan.page.partition]
        rows: list[TableRow] = []
        width = FIRST_PARTITIONS
        while remaining:
            asked, remaining = remaining[:width], remaining[width:]
            width *= 2
            # One row past the limit tells a full last page from one that has a next.
            left = scan.limit - len(rows)
            slices = await self._slices(scan.at_most(left + 1), asked)
            taken = in_order(slices, asked, left)
            rows.extend(taken.rows)
            if not taken.whole:
                if not rows:
                    raise Refusal(503, f"partitions {_joined(asked)} were answered for in part", retry_after_s=1)
                return RowPage(rows, PageToken(rows[-1].partition, rows[-1].raw))
            if taken.next is not None:
                return RowPage(rows, taken.next)
        return RowPage(rows, None)

    async def _merged_page(self, scan: Scan) -> dict[str, Any]:
        wanted = partitions(self._view)
        rows: list[dict[str, Any]] = []
        page, empty = scan.page, 0
        while empty < EMPTY_ROUNDS_MAX:
            left = scan.limit - len(rows)
            per_partition = max(10, min(left + 1, ROWS_PER_ROUND // len(wanted)))
            slices = await self._slices(scan.after(page).at_most(per_partition), wanted)
            if len(slices) < len(wanted):
                raise Refusal(503, f"partitions {_joined(wanted)} were answered for in part", retry_after_s=1)
            groups, page = combined(list(slices.values()))
            empty = 0 if groups else empty + 1
            for group in groups[:left]:
                rows.append(await self._merged_row(scan.table, group))
            if len(groups) > left:
                page = PageToken(ALL_PARTITIONS, groups[left - 1][0].raw)
            if page is None or len(rows) >= scan.limit:
                break
        return {"rows": rows, "next": page.encode() if page else None}

    async def _merged_row(self, table: str, rows: Sequence[TableRow]) -> dict[str, Any]:
        try:
            value = await self._budget.run(self._view.merge, table, [row.value for row in rows])
        except HandlingError as wrong:
            raise Refusal(500, str(wrong), table=table, key=rows[0].key) from wrong
        return {
            "key": rows[0].key,
            "value": value,
            "partition": None,
            "partitions": sorted(row.partition for row in rows),
        }


def _joined(held: Sequence[int]) -> str:
    return ",".join(map(str, held))


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _public(row: TableRow) -> dict[str, Any]:
    return {"key": row.key, "value": row.value, "partition": row.partition}


def _wire(row: TableRow) -> dict[str, Any]:
    stored = {"value": None, "stored": _text(row.value)} if isinstance(row.value, bytes) else {}
    return _public(row) | {"raw": _text(row.raw)} | stored


def _rows(url: str, answered: Sequence[_Row], held: Sequence[int]) -> list[TableRow]:
    """Refusal 502 where a row stands in a partition that was not asked for."""
    if not {row.partition for row in answered} <= set(held):
        raise odd(url)
    return [
        TableRow(row.key, row.value if row.stored is None else row.stored, row.partition, row.raw) for row in answered
    ]
