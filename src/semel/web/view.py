"""What the web views need to know of a running worker: the engine answers, this package only speaks HTTP.

Only committed state is ever shown. `TableRow` and pages carry values already decoded to plain JSON shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class TableInfo(NamedTuple):
    """`merged`: the table has `merge=`, so its rows are combined over all partitions.
    `keyed`: a row belongs to the partition its key hashes to (a `semel.Table`); False for `app.Table`.
    `numeric`: its keys are numbers, whose order is not that of the rows.
    `partitions` counts what this worker holds."""

    table: str
    pipeline: str
    keyed: bool
    merged: bool
    partitions: int
    numeric: bool = False


class TableRow(NamedTuple):
    """`raw`: the key's bytes as the store orders them; paging goes by it, also across workers.
    `value`: a plain JSON shape; of a merged table the bytes that are stored, of which `WorkerView.merge` makes one."""

    key: Any
    value: Any
    partition: int
    raw: bytes


class Page(NamedTuple):
    """`next`: the raw key to go on from in the same partition (the last row's), None at the end of it."""

    rows: tuple[TableRow, ...]
    next: bytes | None


class Owner(NamedTuple):
    """The worker that holds a partition; `url` is None where it is this one."""

    partition: int
    url: str | None


class Restoring(Exception):
    """The partition is being restored; `done` and `total` are records, `eta_seconds` an estimate or None."""

    def __init__(self, partition: int, done: int, total: int, eta_seconds: float | None) -> None:
        super().__init__(partition, done, total, eta_seconds)
        self.partition, self.done, self.total, self.eta_seconds = partition, done, total, eta_seconds


class NotOwned(Exception):
    """The partition is not (any more) on this worker."""


class WorkerView(Protocol):
    """Implemented by the engine. Each call takes a few milliseconds at most: it keeps the pipeline waiting."""

    app_id: str
    instance: str

    def tables(self) -> Sequence[TableInfo]: ...

    def key(self, table: str, text: str) -> Any:
        """A key as it stands in a URL -> the table's key type.
        KeyError: no such table; DecodeError: not a key of that type."""
        ...

    def partition_of(self, table: str, key: Any) -> int | None:
        """The partition that `key` hashes to; None where the table is not keyed or merged: ask every owner."""
        ...

    def held(self) -> Sequence[int]:
        """The partitions that run here."""
        ...

    def owners(self) -> Sequence[Owner]:
        """Every partition of the app with the worker that holds it, ordered; empty before the first assignment."""
        ...

    def get(self, table: str, key: Any, partition: int) -> TableRow | None:
        """The committed row here. Restoring, NotOwned."""
        ...

    def merge(self, table: str, stored: Sequence[bytes]) -> Any:
        """Combine the partial values of one key of a `merge=` table, as they are stored, to a plain JSON shape.
        HandlingError where merge= does not take them."""
        ...

    def scan(
        self,
        table: str,
        partition: int,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        after: bytes | None = None,
        limit: int = 100,
        bytes_max: int = 1 << 18,
    ) -> Page:
        """Committed rows of one partition in raw key order, those from `start` inclusive to `end` exclusive,
        beginning after the raw key `after`: at most `limit`, at least one, and no more once they take `bytes_max`.
        Numbers are compared as such. A page without rows whose `next` is set looked at many and found none.
        Restoring, NotOwned."""
        ...

    def count(self, table: str, partition: int, after: bytes | None, limit: int) -> tuple[int, bytes | None]:
        """How many rows stand after the raw key `after`, up to `limit`, and the last one's key where there are more.
        Restoring, NotOwned."""
        ...

    def pipelines(self) -> list[dict[str, Any]]:
        """For /pipelines: graph, rates, lag, states; plain JSON."""
        ...

    def dedup(self, pipeline: str, written: Sequence[str]) -> list[dict[str, Any]]:
        """What is known of an id on the partitions held here, as the contract's /dedup answers, one mark each; the id
        as the parts of its path. KeyError, with words: no such pipeline, or one without a dedup rule.
        Restoring, NotOwned where nothing is found and not every partition could be asked."""
        ...

    def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        """Ready to serve, and why not."""
        ...

    def liveness(self) -> tuple[bool, Mapping[str, Any]]: ...

    def metrics(self) -> bytes:
        """The Prometheus text exposition."""
        ...
