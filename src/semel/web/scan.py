"""Pages of rows: what was asked for, one partition's slice of the answer, and how slices become a page.

Rows come ordered by (partition, raw key). The page token holds the last row given out, so a page is never
affected by rows that come or go before it. Rows of a `merge=` table come ordered by raw key alone: every
page reads all partitions from the token's key on, combines the values of equal keys, and stops at the
smallest key up to which every partition is known; its token holds the last key given out.

A page may hold fewer rows than its limit where they are large; only `next` = null is the end.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, Self, cast

from semel.web.budget import Budget
from semel.web.view import TableRow, WorkerView

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000  # rows of a page: a second's work of a browser or a script, a millisecond of the worker
PAGE_BYTES_MAX = 4 << 20  # of decoded rows held for one page; one row always fits
CHUNK_ROWS = 100  # rows read at once: a fraction of a millisecond
CHUNK_BYTES_MAX = 256 << 10  # read at once: a millisecond or two; one row always fits
LOOKED_AT_MAX = 50  # chunks read for one page at most, whatever they hold: numbers within a range may be rare

ALL_PARTITIONS = -1


class PageToken(NamedTuple):
    """After which row a page begins. `partition` is -1 for a `merge=` table."""

    partition: int
    raw: bytes

    def encode(self) -> str:
        return base64.urlsafe_b64encode(struct.pack(">Bi", 1, self.partition) + self.raw).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """ValueError: not one of ours."""
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            version, partition = struct.unpack_from(">Bi", data)
        except (binascii.Error, struct.error, ValueError) as malformed:
            raise ValueError("not a page token; take it from `next` of the page before") from malformed
        if version != 1 or partition < ALL_PARTITIONS:
            raise ValueError("a page token of another version; start again without it")
        return cls(partition, data[5:])


@dataclass(frozen=True, slots=True)
class Scan:
    """Rows of `table` whose key has `prefix` and stands in [`start`, `end`), after `page`."""

    table: str
    prefix: str | None = None
    start: str | None = None
    end: str | None = None
    limit: int = LIMIT_DEFAULT
    page: PageToken | None = None

    def after(self, page: PageToken | None) -> Scan:
        return replace(self, page=page)

    def at_most(self, limit: int) -> Scan:
        return replace(self, limit=limit)


class Slice(NamedTuple):
    """A partition's rows, in raw key order. `more`: there may be further ones behind the raw key `last`."""

    partition: int
    rows: Sequence[TableRow]
    more: bool
    last: bytes


class RowPage(NamedTuple):
    rows: Sequence[TableRow]
    next: PageToken | None


async def read_slice(view: WorkerView, budget: Budget, scan: Scan, partition: int, bytes_max: int) -> Slice:
    """At most `scan.limit` rows of a partition held here. Restoring, NotOwned."""
    page = scan.page
    after = page.raw if page is not None and page.partition in (partition, ALL_PARTITIONS) else None
    rows: list[TableRow] = []
    size = 0
    for _ in range(LOOKED_AT_MAX):
        chunk = await budget.run(
            view.scan,
            scan.table,
            partition,
            prefix=scan.prefix,
            start=scan.start,
            end=scan.end,
            after=after,
            limit=min(CHUNK_ROWS, scan.limit - len(rows)),
            bytes_max=CHUNK_BYTES_MAX,
        )
        for position, row in enumerate(chunk.rows):
            rows.append(row)
            size += row_size(row)
            if size >= bytes_max:
                return Slice(partition, rows, chunk.next is not None or position + 1 < len(chunk.rows), row.raw)
        after = chunk.next
        if after is None or len(rows) >= scan.limit:
            break
    return Slice(partition, rows, after is not None, after or b"")


async def read_in_order(view: WorkerView, budget: Budget, scan: Scan, partitions: Sequence[int]) -> list[Slice]:
    """Slices of the partitions held here, ascending, until `scan.limit` rows or a page's bytes are reached."""
    slices: list[Slice] = []
    left = scan.limit
    for partition in sorted(partitions):
        part = await read_slice(view, budget, scan.at_most(left), partition, PAGE_BYTES_MAX)
        slices.append(part)
        left -= len(part.rows)
        if part.more or left <= 0:
            break
    return slices


async def read_each(view: WorkerView, budget: Budget, scan: Scan, partitions: Sequence[int]) -> list[Slice]:
    """A slice of every one of the partitions, each up to `scan.limit` rows."""
    share = PAGE_BYTES_MAX // max(1, len(partitions))
    return [await read_slice(view, budget, scan, partition, share) for partition in sorted(partitions)]


class Taken(NamedTuple):
    """`next`: where to go on within the partitions asked for; None at their end. `whole`: False where the answer for one
    of them is missing, and there is no row to go on from."""

    rows: list[TableRow]
    next: PageToken | None
    whole: bool = True


def in_order(slices: Mapping[int, Slice], partitions: Sequence[int], limit: int) -> Taken:
    """Rows of ascending `partitions` as far as they are known, at most `limit`."""
    rows: list[TableRow] = []
    size = 0
    for partition in partitions:
        part = slices.get(partition)
        if part is None or size >= PAGE_BYTES_MAX:
            break
        rows.extend(part.rows)
        if len(rows) > limit:
            break
        size += sum(map(row_size, part.rows))
        if part.more:
            return Taken(rows, PageToken(partition, part.last))
    else:
        return Taken(rows, None)
    del rows[limit:]
    return Taken(rows, PageToken(rows[-1].partition, rows[-1].raw)) if rows else Taken(rows, None, whole=False)


def combined(slices: Sequence[Slice]) -> tuple[list[list[TableRow]], PageToken | None]:
    """Rows of equal keys over all partitions, in raw key order, and how far they are complete (None: to the end)."""
    horizon = min((part.last for part in slices if part.more), default=None)
    merged = heapq.merge(*(part.rows for part in slices), key=attrgetter("raw"))
    groups = [list(rows) for raw, rows in groupby(merged, key=attrgetter("raw")) if horizon is None or raw <= horizon]
    return groups, None if horizon is None else PageToken(ALL_PARTITIONS, horizon)


def row_size(row: TableRow) -> int:
    return len(row.raw) + size_of(row.value)


def size_of(value: object) -> int:
    """Roughly the bytes a plain JSON shape takes, without encoding it."""
    size, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str | bytes):
            size += len(part)
        elif isinstance(part, dict):
            waiting += cast("dict[object, object]", part).keys()
            waiting += cast("dict[object, object]", part).values()
        elif isinstance(part, list):
            waiting += cast("list[object]", part)
        size += 8
    return size
