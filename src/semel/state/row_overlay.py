"""Row overlay: the rows of a table as one of several events of a task sees them, all of which are in hand (protocol rule 1).

What the event writes lies over the rows until it is done. Of each row that it reads it notes what it found, and finds the same
again. When it is done, every one of them must still be what it was: then it is as if the event had been handled at that moment,
alone. Where one is not, another event has changed it meanwhile, and the later of the two is handled anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semel.state.table_rows import Rows

if TYPE_CHECKING:
    from semel.state.write_set import WriteSet

_SHARED = (
    "_decode", "_encode", "_encode_key", "_encode_same", "_exact_key", "_kind_of", "_prefix", "_raw_key", "_small", "_store",
    "immutable", "key_codec", "limit", "limit_bytes", "max_bytes", "name", "numeric_key", "partition", "place", "topic",
)  # fmt: skip


class RowOverlay(Rows):
    """Of one event: nothing of it is used for another. `seen`: what it found, by the row's key."""

    __slots__ = ("_base", "seen")

    def __init__(self, base: Rows) -> None:
        for name in _SHARED:
            setattr(self, name, getattr(base, name))
        self._base = base
        self.seen: dict[bytes, bytes | None] = {}
        self.noted_kind = base.kind
        self._kind = ""
        self._of_no_kind = None
        self._raws, self.hot, self._weights = {}, {}, {}
        self._heavy, self._most = 0, self.limit
        self.open, self.sealed, self.several = {}, {}, {}
        # A single row is one of several here, so that all of them pass `fold`.
        self.only = self.only_value = None

    @property
    def stale(self) -> bool:
        """Another event has changed what this one has seen. StoreError where the store cannot be read."""
        if self._kind and self._base.kind not in ("", self._kind):
            return True
        return any(self._base.load(raw) != found for raw, found in self.seen.items())

    def load(self, raw: bytes) -> bytes | None:
        if raw in self.several:
            return self.several[raw]
        if raw not in self.seen:
            self.seen[raw] = self._base.load(raw)
        return self.seen[raw]

    def write_for(self, writes: WriteSet, key: Any, value: Any) -> None:
        writes.write(self, key, value)

    def _put(self, raw: bytes, encoded: bytes | None) -> None:
        self.several[raw] = encoded

    def fold(self) -> None:
        """What it has written joins the open epoch."""
        self._base.take_over(self)
