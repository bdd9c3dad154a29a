"""Table: a dict whose rows are kept with the events that made them, exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from semel.codec import Codec, codec_for
from semel.errors import DeclarationError, OutsideEvent
from semel.hand import Hand, in_hand
from semel.state.overlay import MISSING, Rows
from semel.topic import checked_name

RESERVED = frozenset({"dedup", "positions", "parked", "replay", "repartition"})
D = TypeVar("D")


class Table:
    """A table of one pipeline, listed in its `tables=`; used like a dict inside the pipeline's agent.

    `key`, `value`: types as for `Topic`. `default`: a value, or a callable that makes one, for rows that are not
    there; without it `[]` raises KeyError. `merge(a, b)`: combines two partial rows of one key, for a table that is
    not keyed as its source is; then each partition keeps its own partial row and the views show them combined.

    A row belongs to the partition that its key hashes to; using another one's raises WrongPartition. A value that is
    changed in place is written back when its event ends. Reads and writes are atomic with the event: one that fails
    leaves no trace. Reading and writing need an event in hand: OutsideEvent otherwise.
    """

    def __init__(
        self,
        name: str,
        *,
        key: Any = str,
        value: Any = Any,
        default: Any = None,
        merge: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        checked_name(name, "table")
        if name in RESERVED:
            raise DeclarationError(f"table name {name!r} is reserved ({', '.join(sorted(RESERVED))}); choose another")
        self.name = name
        self.key: Codec[Any] = codec_for(key)
        self.value: Codec[Any] = codec_for(value)
        self.merge = merge
        self._make = _maker(name, default, self.value)

    def __repr__(self) -> str:
        return f"Table({self.name!r}, key={self.key.name}, value={self.value.name})"

    # -- reading

    def __getitem__(self, key: Any) -> Any:
        hand, rows = self._rows()
        found = rows.hot.get(key, MISSING)
        if found is MISSING:
            found = hand.read(rows, key, self._make)
            if found is MISSING:
                if self._make is None:
                    raise KeyError(key)
                return self._make()
        return found

    def get(self, key: Any, default: D | None = None) -> Any | D | None:
        hand, rows = self._rows()
        found = hand.read(rows, key, None)
        return default if found is MISSING else found

    def __contains__(self, key: Any) -> bool:
        hand, rows = self._rows()
        return hand.read(rows, key, None) is not MISSING

    def get_many(self, keys: Iterable[Any]) -> list[Any]:
        """The values of `keys` in order, `None` (or the default) for rows that are not there."""
        hand, rows = self._rows()
        make = self._make
        found = [hand.read(rows, key, make) for key in keys]
        return [(make() if make else None) if value is MISSING else value for value in found]

    # -- writing

    def __setitem__(self, key: Any, value: Any) -> None:
        hand, rows = self._rows()
        hand.write(rows, key, value)

    def __delitem__(self, key: Any) -> None:
        """KeyError where there is no such row."""
        hand, rows = self._rows()
        if hand.read(rows, key, None) is MISSING:
            raise KeyError(key)
        hand.write(rows, key, MISSING)

    def pop(self, key: Any, *default: Any) -> Any:
        hand, rows = self._rows()
        found = hand.read(rows, key, None)
        if found is MISSING:
            if default:
                return default[0]
            raise KeyError(key)
        hand.write(rows, key, MISSING)
        return found

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, changes: dict[Any, Any]) -> None:
        for key, value in changes.items():
            self[key] = value

    def _rows(self) -> tuple[Hand, Rows]:
        hand = in_hand.get()
        if hand is None:
            raise OutsideEvent(
                f"table {self.name!r} was used where no event is in hand; use it inside an agent, while it handles an "
                "event. From outside, ask the web views: GET /tables/" + self.name
            )
        return hand, hand.rows(self.name)

    def shape(self) -> dict[str, Any]:
        """What the stored rows depend on (protocol rule 24)."""
        return {"key": self.key.name, "value": self.value.name, "merge": self.merge is not None}


def _maker(name: str, default: Any, value: Codec[Any]) -> Callable[[], Any] | None:
    if default is None:
        return None
    if callable(default):
        return default
    if not value.immutable:
        raise DeclarationError(
            f"table {name!r}: default={default!r} would be shared by all rows; give a callable that makes one, as "
            f"default={type(default).__name__} or default=lambda: {default!r}"
        )
    return lambda: default
