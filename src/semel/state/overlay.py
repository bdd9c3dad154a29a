"""One table on one task: what is committed lies in the store, what is not yet lies over it.

Reads see the open epoch, then the sealed one, then the store. Values that cannot change in place are kept decoded
(`hot`); values that can are decoded afresh for each event and written back at its end if they changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from semel.codec import Codec
from semel.errors import HandlingError, OutputRefused, WrongPartition
from semel.state.store import Store, row_prefix


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


class Rows:
    """The rows of `table` that belong to one partition. `place` is None where a row lives where its event is."""

    __slots__ = (
        "_decode",
        "_encode",
        "_encode_key",
        "_prefix",
        "_raws",
        "_store",
        "hot",
        "immutable",
        "key_codec",
        "limit",
        "max_bytes",
        "name",
        "open",
        "partition",
        "place",
        "sealed",
    )

    def __init__(
        self,
        name: str,
        partition: int,
        number: int,
        store: Store,
        key: Codec[Any],
        value: Codec[Any],
        *,
        place: Callable[[bytes], int] | None,
        max_bytes: int,
        limit: int = 50_000,
    ) -> None:
        self.name = name
        self.partition = partition
        self.place = place
        self.limit = limit
        self.max_bytes = max_bytes
        self.immutable = value.immutable
        self.key_codec = key
        self._store = store
        self._prefix = row_prefix(partition, number)
        self._encode_key = key.encode
        self._encode = value.encode
        self._decode = value.decode
        self._raws: dict[Any, bytes] = {}
        self.hot: dict[Any, Any] = {}
        self.open: dict[bytes, bytes | None] = {}
        self.sealed: dict[bytes, bytes | None] = {}

    # -- keys

    def raw(self, key: Any) -> bytes:
        """The key's bytes. WrongPartition where the row belongs elsewhere; HandlingError for a key of another type."""
        known = self._raws.get(key)
        if known is not None and (type(key) is not bool or self.key_codec.type is bool):
            return known
        try:
            raw = self._encode_key(key)
        except TypeError as exc:
            raise HandlingError(f"table {self.name!r}: {exc}; its keys are {self.key_codec.name}") from exc
        if self.place is not None:
            home = self.place(raw)
            if home != self.partition:
                raise WrongPartition(
                    f"table {self.name!r}: the row {key!r} belongs to partition {home}, the event in hand is of partition "
                    f"{self.partition}; key the source by what the table is keyed by (Pipeline(partition_by=...)), or give "
                    "the table merge= so that each partition keeps a partial row and the views combine them"
                )
        if len(self._raws) >= self.limit:
            self._raws.clear()
        self._raws[key] = raw
        return raw

    # -- reading

    def load(self, raw: bytes) -> bytes | None:
        found = self.open.get(raw, MISSING)
        if found is MISSING:
            found = self.sealed.get(raw, MISSING)
            if found is MISSING:
                return self._store.get_row(self._prefix + raw)  # pyright: ignore[reportReturnType]
        return found  # pyright: ignore[reportReturnType]

    def value(self, key: Any) -> Any:
        """The current value of a table with immutable values, or MISSING."""
        raw = self.load(self.raw(key))
        found = MISSING if raw is None else self._decode(raw)
        if len(self.hot) >= self.limit:
            self.hot.clear()
        self.hot[key] = found
        return found

    def decode(self, raw: bytes) -> Any:
        return self._decode(raw)

    def committed(self, raw: bytes) -> bytes | None:
        return self._store.get_row(self._prefix + raw)  # pyright: ignore[reportReturnType]

    def scan(self, start: bytes = b"", end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Committed rows as raw keys and values, in key order, `start` inclusive, `end` exclusive."""
        return self._store.scan_rows(self._prefix, start, end)

    def estimate(self) -> int:
        return self._store.rows_estimate(self._prefix)

    # -- writing: the caller keeps the way back

    def encode(self, key: Any, value: Any) -> bytes:
        try:
            encoded = self._encode(value)
        except TypeError as exc:
            raise HandlingError(f"table {self.name!r}, row {key!r}: {exc}") from exc
        if len(encoded) > self.max_bytes:
            raise OutputRefused(
                f"table {self.name!r}, row {key!r}: {len(encoded)} bytes do not fit its changelog, which takes "
                f"{self.max_bytes}; split the row, or raise max.message.bytes of the changelog topic"
            )
        return encoded

    def set(self, key: Any, raw: bytes, encoded: bytes | None, value: Any) -> None:
        self.open[raw] = encoded
        if self.immutable:
            self.hot[key] = value

    def unset(self, key: Any, raw: bytes, before: Any) -> None:
        """Back to what the open epoch held for this row before; MISSING: nothing."""
        if before is MISSING:
            self.open.pop(raw, None)
        else:
            self.open[raw] = before
        self.hot.pop(key, None)

    # -- epochs

    @property
    def prefix(self) -> bytes:
        return self._prefix

    def seal(self) -> dict[bytes, bytes | None]:
        self.sealed, self.open = self.open, {}
        return self.sealed

    def landed(self) -> None:
        self.sealed = {}

    def drop(self) -> None:
        self.open, self.sealed = {}, {}
        self.hot.clear()
