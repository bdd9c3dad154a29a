"""Event time: what gives it, declared with a source or, for its source, with a dedup rule."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from semel.errors import DeclarationError
from semel.functions import called, check_gives_value, is_reader, reader_of
from semel.port import NO_TIMESTAMP

EventTime = str | Callable[[Any], Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
# 2001 to 2103, in seconds: read as ms, five weeks of 1970.
_OUR_DAYS_S = (10**9, 42 * 10**8)
# Times beyond this fit no mark (64 bits, with room for a window).
_FAR_MS = 2**62
# As ISO 8601 writes a date without hyphens.
_DIGITS_OF_A_DATE = 8


def checked(time: Any, where: str) -> EventTime | None:
    """A field's name, a function of the value, or None: the record's timestamp. DeclarationError for anything else."""
    if time is not None and not is_reader(time):
        raise DeclarationError(f"{where}={time!r}; give a field's name, or a function of the value")
    check_gives_value(time, where)
    return time


def time_reader(time: EventTime | None) -> Callable[[Any, Any], int] | None:
    """(value, record) -> event time in ms, or an error that says why there is none; None where the record's timestamp is it.

    A tombstone has no value to read, so its timestamp is its time.
    """
    if time is None:
        return None
    read, name = reader_of(time), repr(time) if isinstance(time, str) else called(time)

    def by_value(value: Any, record: Any) -> int:
        if value is None:
            if record.timestamp == NO_TIMESTAMP:
                raise ValueError("a tombstone without a timestamp has no time")
            return record.timestamp
        time = read(value)
        if time is None:
            raise ValueError(
                f"time={name} gives None: the event has no time; where another field has it, give a function, as "
                "time=lambda value: value.at or value.created_at"
            )
        if isinstance(time, str):
            # Some numbers of ms are read as dates of other centuries, their neighbours are not.
            if time.isdigit() and len(time) != _DIGITS_OF_A_DATE:
                raise ValueError(f"{time!r} is a number as text; give a number of ms since 1970, or an ISO 8601 text")
            time = datetime.fromisoformat(time)
        if isinstance(time, datetime):
            # The zone of the machine must not matter: another worker decides about the same event.
            return int(((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MS)
        return _in_ms(time)

    return by_value


def noted(time: EventTime) -> str:
    """As stored state notes it."""
    return time if isinstance(time, str) else "callable"


def _in_ms(time: Any) -> int:
    """A number that is a time in ms. ValueError for one that is a time of our days in another unit, or no time at all."""
    if isinstance(time, bool):
        raise TypeError(f"{time!r} is no time; give a number of ms since 1970, or a datetime")
    try:
        at = int(time)
    except TypeError:
        raise TypeError(
            f"{time!r:.80}, of type {type(time).__name__}, is no time; give a number of ms since 1970, an ISO 8601 text or a "
            "datetime"
        ) from None
    for unit, per_s in (("seconds", 1), ("microseconds", 10**6), ("nanoseconds", 10**9)):
        if _OUR_DAYS_S[0] * per_s <= at < _OUR_DAYS_S[1] * per_s:
            way = "* 1000" if per_s == 1 else f"// {per_s // 1000}"
            raise ValueError(
                f"{time!r} is a time of our days in {unit}, and time= takes ms since 1970; give a function of the value, as "
                f"time=lambda value: value.at {way}"
            )
    if not -_FAR_MS < at < _FAR_MS:
        raise ValueError(f"{at} ms is no time")
    return at
