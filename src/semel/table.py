"""Table: a dict whose rows are kept with the events that made them, exactly once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Number
from threading import get_ident
from typing import Any, NoReturn, TypeVar, cast, get_origin

from semel.codec import Codec, codec_for, key_codec_for
from semel.errors import DeclarationError, OutsideEvent
from semel.functions import called, check_gives_value
from semel.state.event_context import EventContext, current_context, event_number
from semel.state.table_rows import MISSING, Rows
from semel.topic import checked_name, is_whole

RESERVED = frozenset({"dedup", "positions", "parked", "replay", "repartition", "timers"})
D = TypeVar("D")
# Where no event is in hand, and so no table either.
_NOTHING = EventContext()


class Table:
    """A table of one pipeline, listed in its `tables=`; used like a dict inside the pipeline's agent.

    `key`, `value`: types as for `Topic`. `default`: a value, or a callable that makes one, for rows that are not
    there; without it `[]` raises KeyError. `merge(a, b)`: combines two partial rows of one key, for a table that is
    not keyed as its source is; then each partition keeps its own partial row and the views show them combined.

    `migrate(old)`: makes a row of today's type of one that was written as another, given as plain JSON; it is called once
    for each row when a worker starts on them. `version`: a number to change where the type stays and its meaning does not.

    A row belongs to the partition that its key hashes to; using another one's raises WrongPartition. A value that is
    changed in place is written back when its event ends, also one that `default` made. Reads and writes are atomic
    with the event: one that fails leaves no trace. Reading and writing need an event in hand: OutsideEvent otherwise,
    also for a task that a handler started and that goes on when the handler's event is over.

    DeclarationError for a name, type or default that cannot be.
    """

    def __init__(
        self,
        name: str,
        *,
        key: Any = str,
        value: Any = Any,
        default: Any = None,
        merge: Callable[[Any, Any], Any] | None = None,
        version: int = 1,
        migrate: Callable[[Any], Any] | None = None,
    ) -> None:
        checked_name(name, "table")
        if name in RESERVED:
            raise DeclarationError(f"table name {name!r} is reserved ({', '.join(sorted(RESERVED))}); choose another")
        self.name = name
        self.key: Codec[Any] = key_codec_for(key)
        self.value: Codec[Any] = codec_for(value)
        self.merge = merge
        self.version = version
        self.migrate = migrate
        self.owner: str | None = None
        if not _hashable(self.key.type):
            raise DeclarationError(f"table {name!r}: key={self.key.name} can change in place, so it is no key")
        if merge is not None and not callable(merge):  # pyright: ignore[reportUnnecessaryComparison]
            raise DeclarationError(f"table {name!r}: merge={merge!r}; give a function of two values of one key")
        if merge is not None and not _takes(merge, 2):
            raise DeclarationError(
                f"table {name!r}: merge={called(merge)} does not take two values of one key; give a function of two"
            )
        for what, given in (("default", default), ("merge", merge), ("migrate", migrate)):
            check_gives_value(given, f"table {name!r}: {what}")
        if not is_whole(version):
            raise DeclarationError(f"table {name!r}: version={version!r}; give a number, as version=2")
        if migrate is not None and not callable(migrate):  # pyright: ignore[reportUnnecessaryComparison]
            raise DeclarationError(f"table {name!r}: migrate={migrate!r}; give a function of a row as it was written")
        if migrate is not None and not _takes(migrate, 1):
            raise DeclarationError(
                f"table {name!r}: migrate={called(migrate)} does not take one row as it was written; give a function of one"
            )
        self._make = _maker(name, default, self.value)

    def __repr__(self) -> str:
        return f"Table({self.name!r}, key={self.key.name}, value={self.value.name})"

    # -- reading

    # Reading and writing of a row begin as `_rows` does, without its call: an event may do it often, and does little else.

    def __getitem__(self, key: Any) -> Any:
        context = current_context.get() or _NOTHING
        try:
            rows = context.tables[self.name]
        except KeyError:
            rows = None
        if (
            rows is None
            or not (context.holding and context.alive)
            or event_number.get() != context.event
            or get_ident() != context.thread
        ):
            context, rows = self._rows()
        value = rows.hot.get(key)
        if value is None or rows.numeric_key is not None:
            value = context.read(rows, key, self._make)
            if value is MISSING:
                if self._make is None:
                    raise KeyError(key)
                return self._make()
        return value

    def get(self, key: Any, default: D | None = None) -> Any | D | None:
        context, rows = self._rows()
        value = context.read(rows, key, None)
        return default if value is MISSING else value

    def __contains__(self, key: Any) -> bool:
        context, rows = self._rows()
        return context.has(rows, key)

    def get_many(self, keys: Iterable[Any]) -> list[Any]:
        """The values of `keys` in order, `None` (or the default) for rows that are not there."""
        context, rows = self._rows()
        make = self._make
        values = [context.read(rows, key, make) for key in keys]
        return [(make() if make else None) if value is MISSING else value for value in values]

    # -- writing

    def __setitem__(self, key: Any, value: Any) -> None:
        context = current_context.get() or _NOTHING
        try:
            rows = context.tables[self.name]
        except KeyError:
            rows = None
        if (
            rows is None
            or not (context.holding and context.alive)
            or event_number.get() != context.event
            or get_ident() != context.thread
        ):
            context, rows = self._rows()
        rows.write_for(context.writes, key, value)

    def __delitem__(self, key: Any) -> None:
        """KeyError where there is no such row. One that cannot be read is deleted all the same."""
        context, rows = self._rows()
        if not context.has(rows, key):
            raise KeyError(key)
        context.writes.write(rows, key, MISSING)

    def pop(self, key: Any, *default: Any) -> Any:
        context, rows = self._rows()
        value = context.read(rows, key, None)
        if value is MISSING:
            if default:
                return default[0]
            raise KeyError(key)
        context.writes.write(rows, key, MISSING)
        return value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, changes: Mapping[Any, Any]) -> None:
        for key, value in changes.items():
            self[key] = value

    def __iter__(self) -> NoReturn:
        # Without it Python would try table[0], table[1], ..., and a table with a default never ends.
        raise TypeError(
            f"table {self.name!r} cannot be iterated: its rows are spread over partitions and workers. Name the rows, "
            f"or ask the web views: GET /tables/{self.name}"
        )

    def belong_to(self, pipeline: str) -> None:
        """Take note of the pipeline the table is listed in. DeclarationError where it is in another one already."""
        if self.owner not in (None, pipeline):
            raise DeclarationError(
                f"table {self.name!r} is in tables= of pipelines {self.owner!r} and {pipeline!r}; a table belongs to "
                "one pipeline, which alone commits its rows: declare a second Table, or send the second pipeline what "
                "the first one knows through a topic"
            )
        self.owner = pipeline

    def _rows(self) -> tuple[EventContext, Rows]:
        context = current_context.get()
        if context is not None:
            return context, context.rows(self.name)
        raise OutsideEvent(
            f"table {self.name!r} was used where no event is in hand; use it inside an agent, while it handles an event. "
            "From outside, ask the web views: GET /tables/" + self.name
        )

    def structure(self) -> dict[str, Any]:
        """What the bytes of the stored rows look like."""
        return {"key": self.key.structure, "value": self.value.structure, "version": self.version}

    def shape(self) -> dict[str, Any]:
        """What the stored rows depend on (protocol rule 24)."""
        return {"key": self.key.name, "value": self.value.name, "merge": self.merge is not None}


def _maker(name: str, default: Any, value: Codec[Any]) -> Callable[[], Any] | None:
    if default is None:
        return None
    if isinstance(default, type):
        _check_made(name, cast("type[Any]", default), value)
    if callable(default):
        return default
    try:
        value.encode(default)
    except TypeError as exc:
        raise DeclarationError(f"table {name!r}: default={default!r} is no value of the table: {exc}") from exc
    if not value.immutable:
        raise DeclarationError(
            f"table {name!r}: default={default!r} would be shared by all rows; give a callable that makes one, as "
            f"default={type(default).__name__} or default=lambda: {default!r}"
        )
    return lambda: default


def _check_made(name: str, default: type[Any], value: Codec[Any]) -> None:
    """DeclarationError where what the class makes is no value of the table. A number may stand for one of another type."""
    try:
        made = default()
        if not (isinstance(made, (int, float)) and isinstance(value.type, type) and issubclass(value.type, Number)):
            value.encode(made)
    except Exception as exc:
        raise DeclarationError(
            f"table {name!r}: default={default.__name__} makes no value of the table, which is {value.name}: {exc}"
        ) from exc


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*(None,) * count)
    except ValueError:  # nothing is known of its parameters
        return True
    except TypeError:
        return False
    return True


def _hashable(declared: Any) -> bool:
    return getattr(get_origin(declared) or declared, "__hash__", None) is not None
