"""Table rows: one table on one task: what is committed lies in the store, what is not yet lies over it.

Reads see what the event in hand has written, then the open epoch, then the sealed one, then the store. Values that cannot
change in place are kept decoded (`hot`); values that can are decoded afresh for each event and written back at its end if
they changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from semel.codec import Codec
from semel.errors import DecodeError, HandlingError, OutputRefused, WrongPartition
from semel.state.state_log import RowLog
from semel.state.store import Store, row_prefix

if TYPE_CHECKING:
    from semel.state.write_set import WriteSet


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


# What a key at hand takes with a small value: itself as text and bytes, and its places in two dicts.
KEY_BYTES = 500
# Keys and values up to here are in that.
SMALL_BYTES = 128
# What a row takes of a transaction beside its key and value.
ROW_BYTES = 30
# A decoded value takes more than its bytes. They are rounded up to 64, so that a row that grows is seldom weighed anew.
VALUE_FACTOR = 2


def _none(value: Any) -> None:
    """Nothing is known of what will be read back."""


class Rows(RowLog):
    """The rows of table `name` that belong to one partition. `place` is None where a row lives where its event is.

    `max_bytes`: what key and value together may take in the changelog. `limit`, `limit_bytes`: how many keys, with their
    values, are kept at hand. `kind_of`: of a key, where kinds could have the same bytes; `noted_kind`: which one the committed
    rows have, "" where that is not noted.
    """

    __slots__ = (
        "_decode",
        "_encode",
        "_encode_key",
        "_encode_same",
        "_exact_key",
        "_heavy",
        "_kind",
        "_kind_of",
        "_most",
        "_of_no_kind",
        "_raw_key",
        "_raws",
        "_small",
        "_weights",
        "hot",
        "immutable",
        "key_codec",
        "limit",
        "limit_bytes",
        "max_bytes",
        "name",
        "noted_kind",
        "numeric_key",
        "only",
        "only_value",
        "partition",
        "place",
        "several",
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
        topic: str = "",
        kind_of: Callable[[Any], str] | None = None,
        limit: int = 50_000,
        limit_bytes: int = 32 << 20,
    ) -> None:
        self.name = name
        self.partition = partition
        self.place = place
        self.limit = limit
        self.limit_bytes = limit_bytes
        self.max_bytes = max_bytes
        self._small = min(SMALL_BYTES, max_bytes)
        self.immutable = value.immutable
        self.key_codec = key
        super().__init__(store, row_prefix(partition, number), topic)
        self._encode_key = key.encode
        self._encode = value.encode
        self._decode = value.decode
        self._kind_of = kind_of
        self._kind = self.noted_kind = ""
        # The one row whose key is of no kind, where there is one: it says nothing about the others.
        self._of_no_kind: bytes | None = None
        # Keys are kept at hand where keys that are equal to Python are equal as bytes, which is not so of Decimal("1")
        # and Decimal("1.0"), and the other way round, which a codec of somebody else's need not do; values where what is
        # written is what would be read back.
        self._exact_key = key.type if _plain_key(key.type) and key.structure is not None else None
        self._raw_key = self._exact_key or str
        kept = self.immutable and self._exact_key is not None and kind_of is None
        self._encode_same = value.encode_same if kept and value.encode_same is not None else _none
        self._raws: dict[Any, bytes] = {}
        # 1, 1.0 and True are one key to Python; only one of them is a key of the table.
        self.numeric_key = self._exact_key if self._exact_key in (int, bool) else None
        self.hot: dict[Any, Any] = {}
        # What large keys and values at hand take, and how much each; how many keys there is room for beside them.
        self._heavy = 0
        self._weights: dict[Any, int] = {}
        self._most = min(limit, limit_bytes // KEY_BYTES)
        # What the event in hand has written, a part of its write set: almost every event writes one row of a table, which is
        # `only`, with its value, and costs no dict; None where it has written none. Of more than one all are in `several`.
        self.only: bytes | None = None
        self.only_value: bytes | None = None
        self.several: dict[bytes, bytes | None] = {}

    @property
    def stale(self) -> bool:
        """Another event has changed what the one in hand has seen. StoreError where the store cannot be read."""
        return False

    # -- keys

    def raw(self, key: Any) -> bytes:
        """The key's bytes. WrongPartition where the row belongs elsewhere; HandlingError for a key of another type."""
        if type(key) is self._raw_key:
            known = self._raws.get(key)
            if known is not None:
                return known
        try:
            if self._kind_of is not None:
                self._check_kind(key, self._kind_of(key))
            raw = self._encode_key(key)
        except TypeError as exc:
            raise HandlingError(f"table {self.name!r}: {exc}; its keys are {self.key_codec.name}") from exc
        if raw.__class__ is not bytes:
            raw = self._as_bytes(key, raw)
        if self.place is not None:
            home = self.place(raw)
            if home != self.partition:
                raise WrongPartition(
                    f"table {self.name!r}: the row {key!r} belongs to partition {home}, the event in hand is of "
                    f"partition {self.partition}; key the source topic by what the table is keyed by, or give the "
                    "table merge= so that each partition keeps a partial row and the views combine them. If the topic is keyed "
                    "so, its producer has another partitioner than Java's default, murmur2: librdkafka (confluent-kafka, kcat, "
                    "node-rdkafka, .NET, Go) needs partitioner=murmur2_random"
                )
        if self._exact_key is not None or type(key) is str:
            if len(raw) > SMALL_BYTES:
                return self._keep_large_key(key, raw)
            if len(self._raws) >= self._most:
                self._forget()
            self._raws[key] = raw
        return raw

    @property
    def kind(self) -> str:
        """Which kind of keys its rows have, also those that are not committed; "" where there are none."""
        tells = self._tells(self.open) or self._tells(self.sealed) or self._tells(self.pending)
        return self.noted_kind or (self._kind if tells else "")

    def _tells(self, rows: dict[bytes, bytes | None]) -> bool:
        return len(rows) > (self._of_no_kind in rows)

    def key_of(self, raw: bytes) -> Any:
        """The key that these bytes are of. Where its keys are bytes beside None, which is b"null", they are the key."""
        return raw if self.kind == "bytes" and raw != b"null" else self.key_codec.decode(raw)

    def _check_kind(self, key: Any, kind: str) -> None:
        if kind and kind != (self.kind or kind):
            raise TypeError(
                f"the key {key!r:.120} is of another kind than those of its rows ({self.kind}): both could have the same "
                "bytes; use keys of one type in a table"
            )

    # -- at hand

    @property
    def hot_bytes(self) -> int:
        """What keys and values at hand take, about."""
        return len(self._raws) * KEY_BYTES + self._heavy

    def _forget(self) -> None:
        self._raws.clear()
        self.hot.clear()
        self._weights.clear()
        self._heavy = 0
        self._most = min(self.limit, self.limit_bytes // KEY_BYTES)

    def _keep_large_key(self, key: Any, raw: bytes) -> bytes:
        # As text, as bytes, and at times as the key of another dict.
        self._weigh((raw,), len(raw) * 3)
        self._raws[key] = raw
        return raw

    def _keep(self, key: Any, value: Any, size: int) -> None:
        """Keep a value at hand that takes `size` bytes when encoded."""
        if size > SMALL_BYTES:
            weight = (size | 63) * VALUE_FACTOR
            if weight > self.limit_bytes // 4:
                self._drop(key)
                return
            if self._weights.get(key) != weight:
                self._weigh(key, weight)
        elif self._weights:
            self._heavy -= self._weights.pop(key, 0)
        self.hot[key] = value

    def _weigh(self, key: Any, size: int) -> None:
        more = size - self._weights.get(key, 0)
        if self.hot_bytes + more > self.limit_bytes:
            self._forget()
            more = size
        self._weights[key] = size
        self._heavy += more
        self._most = min(self.limit, (self.limit_bytes - self._heavy) // KEY_BYTES)

    def _drop(self, key: Any) -> None:
        self.hot.pop(key, None)
        if self._weights:
            self._heavy -= self._weights.pop(key, 0)

    # -- reading

    def load(self, raw: bytes) -> bytes | None:
        if raw == self.only:
            return self.only_value
        for written in (self.several, self.open, self.sealed):
            if raw in written:
                return written[raw]
        return self.committed(raw)

    def value(self, key: Any) -> Any:
        """The current value of a table with immutable values, or MISSING."""
        stored = self.load(self.raw(key))
        if stored is None:
            return MISSING
        value = self.decoded(key, stored)
        if self._exact_key is not None:
            self._keep(key, value, len(stored))
        return value

    def decode(self, stored: bytes) -> Any:
        return self._decode(stored)

    def decoded(self, key: Any, stored: bytes) -> Any:
        """The value of row `key`. DecodeError where it was written as another type."""
        try:
            return self._decode(stored)
        except DecodeError as exc:
            raise DecodeError(
                f"table {self.name!r}, row {key!r}: what is stored cannot be read: {exc}. Delete the row with del, or assign "
                "another value; neither reads it"
            ) from exc

    def committed(self, raw: bytes) -> bytes | None:
        """StoreError where the store cannot be read."""
        try:
            return self._store.get_row(self._prefix + raw)  # pyright: ignore[reportReturnType]
        except Exception as exc:
            raise self._store.failed("read from", exc) from exc

    def scan(self, start: bytes = b"", end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Committed rows as raw keys and values, in key order, `start` inclusive, `end` exclusive."""
        return self._store.scan_rows(self._prefix, start, end)

    # -- writing

    def write_for(self, writes: WriteSet, key: Any, value: Any) -> None:
        """`writes.write` of a row of this table, by a shorter way for almost every row: one whose key is known, whose value is
        read back as it is, and of which nothing is large."""
        raw = self._raws.get(key) if type(key) is self._raw_key else None
        if raw is not None and not self._weights:
            try:
                encoded = self._encode_same(value)
            except TypeError:
                encoded = None
            if encoded is not None:
                size = len(raw) + len(encoded)
                held = writes.bytes + ROW_BYTES + size
                if size <= self._small and held <= writes.most_bytes:
                    if self.only is None and not self.several:
                        # As `_put`, without its call.
                        self.only, self.only_value = raw, encoded
                        writes.rows.append(self)
                    else:
                        self._put(raw, encoded)
                    self.hot[key] = value
                    writes.bytes = held
                    return
        writes.write(self, key, value)

    def write(self, key: Any, value: Any) -> tuple[bytes, bytes | _Missing | None, int]:
        """Set a row, or delete it with MISSING. Its key's bytes, what the event in hand had written before, the size of both."""
        raw = self.raw(key)
        before = self.only_value if raw == self.only else self.several.get(raw, MISSING)
        if value is MISSING:
            self.set(key, raw, None, value)
            return raw, before, len(raw)
        try:
            encoded = self._encode_same(value)
            same = encoded is not None
            if not same:
                encoded = self._encode(value)
        except TypeError as exc:
            raise self._unfit(key, exc) from exc
        encoded = self._checked(key, raw, encoded)
        self.set(key, raw, encoded, value, same=same)
        return raw, before, len(raw) + len(encoded)

    def encode(self, key: Any, raw: bytes, value: Any) -> bytes:
        try:
            return self._checked(key, raw, self._encode(value))
        except TypeError as exc:
            raise self._unfit(key, exc) from exc

    def _unfit(self, key: Any, why: TypeError) -> HandlingError:
        return HandlingError(f"table {self.name!r}, row {key!r}: {why}")

    def _checked(self, key: Any, raw: bytes, encoded: Any) -> bytes:
        if type(encoded) is not bytes:
            encoded = self._as_bytes(key, encoded)
        if len(encoded) + len(raw) > self.max_bytes:
            raise OutputRefused(
                f"table {self.name!r}, row {key!r:.120}: {len(encoded) + len(raw)} bytes do not fit its changelog, "
                f"which takes {self.max_bytes}; split the row, or raise max.message.bytes of the changelog topic"
            )
        return encoded

    def _as_bytes(self, key: Any, given: Any) -> bytes:
        """What a codec of somebody else's gave where bytes are to be: a row is written to Kafka and to the store."""
        if isinstance(given, (bytes, bytearray, memoryview)):
            return bytes(given)  # pyright: ignore[reportUnknownArgumentType]
        wrong = TypeError(f"its codec gave {given!r:.80}, of type {type(given).__name__}; Codec.encode returns bytes")
        raise HandlingError(f"table {self.name!r}, row {key!r:.120}: {wrong}") from wrong

    def set(self, key: Any, raw: bytes, encoded: bytes | None, value: Any, *, same: bool = False) -> None:
        """`same`: the value is read back as it is."""
        if self._kind_of is not None and not self.kind:
            self._kind = self._kind_of(key)
            if not self._kind:
                self._of_no_kind = raw
            # Among them may be keys of another kind that were only looked for.
            self._forget()
        self._put(raw, encoded)
        if encoded is not None and same:
            size = len(encoded)
            if size > SMALL_BYTES or self._weights:
                self._keep(key, value, size)
            else:
                self.hot[key] = value
        elif self.immutable:
            self._drop(key)

    def unwrite(self, key: Any, raw: bytes, before: bytes | _Missing | None) -> None:
        """Take one write back. `before`: what the event in hand had written of this row until then, as `write` tells it."""
        if not isinstance(before, _Missing):
            self._put(raw, before)
        elif raw == self.only:
            self.only = None
        else:
            self.several.pop(raw, None)
        self._drop(key)

    def undo(self) -> None:
        """Drop what the event in hand has written."""
        if self.hot:
            for raw in self.pending:
                self._drop(self.key_codec.decode(raw))
        self._forget_pending()

    # -- what the event in hand has written

    @property
    def pending(self) -> dict[bytes, bytes | None]:
        """All of it."""
        return self.several if self.only is None else {self.only: self.only_value}

    def _put(self, raw: bytes, encoded: bytes | None) -> None:
        if self.several:
            self.several[raw] = encoded
        elif self.only is None or self.only == raw:
            self.only, self.only_value = raw, encoded
        else:
            self.several = {self.only: self.only_value, raw: encoded}
            self.only = None

    def fold(self) -> None:
        """It joins the open epoch."""
        self.open.update(self.pending)
        self._forget_pending()

    def take_over(self, other: Rows) -> None:
        """What an event has written over these rows joins the open epoch."""
        if not self.kind:
            self._kind, self._of_no_kind = other._kind, other._of_no_kind
        if self.hot:
            for raw in other.pending:
                self._drop(self.key_codec.decode(raw))
        self.open.update(other.pending)
        other._forget_pending()

    def _forget_pending(self) -> None:
        self.only = self.only_value = None
        if self.several:
            self.several = {}

    # -- as a state log

    @property
    def prefix(self) -> bytes:
        return self._prefix

    def landed(self) -> None:
        if self._tells(self.sealed):
            self.noted_kind = self.kind
        super().landed()

    def drop(self) -> None:
        self._forget_pending()
        super().drop()
        self._forget()


def _plain_key(declared: Any) -> bool:
    """Whether values of the type that are equal are equal as bytes."""
    if declared in (str, bytes, int, bool, UUID):
        return True
    return isinstance(declared, type) and issubclass(declared, Enum)
