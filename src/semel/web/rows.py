"""Rows of a table over all partitions and workers: one key, or a page in order.

The wire form between workers is JSON like the public one, with the raw key of each row in base64; it is
answered under the hop header only and may change with any release that says so.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from semel.errors import DecodeError
from semel.web.answer import Refusal
from semel.web.owner import Peers, ask, partitions
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


class Rows:
    """Answers for any key of any table, wherever it is held. `authorization` is passed on to other workers."""

    def __init__(self, view: WorkerView, peers: Peers) -> None:
        self._view = view
        self._peers = peers

    def table(self, name: str) -> TableInfo:
        """Refusal 404, naming the tables there are."""
        infos = {info.table: info for info in self._view.tables()}
        if name not in infos:
            raise Refusal(404, f"there is no table {name!r}", tables=sorted(infos))
        return infos[name]

    async def one(self, table: str, text: str, authorization: str | None) -> dict[str, Any]:
        """The row of a key. Refusal: 400 no key of this table, 404 no row, 409 several; Restoring."""
        info = self.table(table)
        key = self._key(table, text)
        partition = None if info.merged else self._view.partition_of(table, key)
        wanted = partitions(self._view) if partition is None else [partition]

        async def there(url: str, held: list[int]) -> list[TableRow]:
            path = row_path(table, text) + query([("partitions", _joined(held))])
            return [_read_row(row) for row in (await self._peers.get(url, path, authorization))["rows"]]

        def here(held: list[int]) -> list[TableRow]:
            return self._get(table, key, held)

        answers = await ask(self._view, wanted, here, there)
        found = sorted((row for rows in answers for row in rows), key=lambda row: row.partition)
        if not found:
            raise Refusal(404, f"table {table!r} has no row for this key", table=table, key=key)
        if info.merged:
            return {"table": table, **self._merged_row(table, found)}
        if len(found) > 1:
            held = [row.partition for row in found]
            raise Refusal(
                409,
                f"partitions {_joined(held)} each hold a row for this key, and table {table!r} has no merge=",
                table=table,
                key=key,
                partitions=held,
            )
        return {"table": table, **_public(found[0])}

    async def page(self, scan: Scan, authorization: str | None) -> dict[str, Any]:
        """A page of rows and the token of the next. Refusal, Restoring."""
        info = self.table(scan.table)
        if scan.page is not None and (scan.page.partition < 0) != info.merged:
            raise Refusal(400, "page: this token belongs to another table; start again without it")
        if info.merged:
            return await self._merged_page(scan, authorization)
        found = await self._page_in_order(scan, authorization)
        rows = [_public(row) for row in found.rows]
        return {"rows": rows, "next": found.next.encode() if found.next else None}

    # -- what another worker asks of this one

    def held_rows(self, table: str, text: str, held: Sequence[int]) -> dict[str, Any]:
        """The rows of a key on partitions held here. Restoring, NotOwned."""
        self.table(table)
        return {"rows": [_wire(row) for row in self._get(table, self._key(table, text), held)]}

    def held_slices(self, scan: Scan, held: Sequence[int]) -> dict[str, Any]:
        """Slices of partitions held here: of each for a merged table, else in order up to the limit."""
        read = read_each if self.table(scan.table).merged else read_in_order
        return {
            "slices": [
                {"partition": found.partition, "rows": [_wire(row) for row in found.rows], "more": found.more}
                for found in read(self._view, scan, held)
            ]
        }

    # -- inside

    def _key(self, table: str, text: str) -> Any:
        try:
            return self._view.key(table, text)
        except DecodeError as wrong:
            raise Refusal(400, f"this is no key of table {table!r}: {wrong}", table=table) from wrong

    def _get(self, table: str, key: Any, held: Sequence[int]) -> list[TableRow]:
        rows = (self._view.get(table, key, partition) for partition in held)
        return [row for row in rows if row is not None]

    async def _slices(self, scan: Scan, wanted: Sequence[int], authorization: str | None) -> dict[int, Slice]:
        async def there(url: str, held: list[int]) -> list[Slice]:
            parameters = [
                ("partitions", _joined(held)),
                ("prefix", scan.prefix),
                ("from", scan.start),
                ("to", scan.end),
                ("limit", scan.limit),
                ("page", scan.page.encode() if scan.page else None),
            ]
            answer = await self._peers.get(url, table_path(scan.table) + query(parameters), authorization)
            return [_read_slice(found) for found in answer["slices"]]

        read = read_each if self.table(scan.table).merged else read_in_order

        def here(held: list[int]) -> list[Slice]:
            return read(self._view, scan, held)

        answers = await ask(self._view, wanted, here, there)
        return {found.partition: found for slices in answers for found in slices}

    async def _page_in_order(self, scan: Scan, authorization: str | None) -> RowPage:
        remaining = [p for p in partitions(self._view) if scan.page is None or p >= scan.page.partition]
        rows: list[TableRow] = []
        width = FIRST_PARTITIONS
        while remaining:
            asked, remaining = remaining[:width], remaining[width:]
            width *= 2
            # One row past the limit tells a full last page from one that has a next.
            left = scan.limit - len(rows)
            slices = await self._slices(scan.at_most(left + 1), asked, authorization)
            more_rows, cut = in_order(slices, asked, left)
            rows.extend(more_rows)
            if cut and not rows:
                raise Refusal(503, f"partitions {_joined(asked)} were answered for in part", retry_after_s=1)
            if cut:
                return RowPage(rows, PageToken(rows[-1].partition, rows[-1].raw))
        return RowPage(rows, None)

    async def _merged_page(self, scan: Scan, authorization: str | None) -> dict[str, Any]:
        wanted = partitions(self._view)
        rows: list[dict[str, Any]] = []
        page = scan.page
        while True:
            left = scan.limit - len(rows)
            per_partition = max(10, min(left + 1, ROWS_PER_ROUND // len(wanted)))
            slices = await self._slices(scan.after(page).at_most(per_partition), wanted, authorization)
            groups, page = combined(list(slices.values()))
            rows.extend(self._merged_row(scan.table, group) for group in groups[:left])
            if len(groups) > left:
                page = PageToken(ALL_PARTITIONS, groups[left - 1][0].raw)
            if page is None or len(rows) >= scan.limit:
                return {"rows": rows, "next": page.encode() if page else None}

    def _merged_row(self, table: str, rows: Sequence[TableRow]) -> dict[str, Any]:
        value = rows[0].value if len(rows) == 1 else self._view.merge(table, [row.value for row in rows])
        return {
            "key": rows[0].key,
            "value": value,
            "partition": None,
            "partitions": sorted(row.partition for row in rows),
        }


def _joined(held: Sequence[int]) -> str:
    return ",".join(map(str, held))


def _public(row: TableRow) -> dict[str, Any]:
    return {"key": row.key, "value": row.value, "partition": row.partition}


def _wire(row: TableRow) -> dict[str, Any]:
    return _public(row) | {"raw": base64.b64encode(row.raw).decode()}


def _read_row(wire: Mapping[str, Any]) -> TableRow:
    return TableRow(wire["key"], wire["value"], wire["partition"], base64.b64decode(wire["raw"]))


def _read_slice(wire: Mapping[str, Any]) -> Slice:
    return Slice(wire["partition"], [_read_row(row) for row in wire["rows"]], wire["more"])
