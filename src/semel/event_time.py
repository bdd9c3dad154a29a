"""Event time: what gives it, declared with a source or, for its source, with a dedup rule."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from semel.errors import DeclarationError
from semel.functions import check_gives_value, is_reader, reader_of

EventTime = str | Callable[[Any], Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
# 2001 to 2103, in seconds: read as ms, five weeks of 1970.
_OUR_DAYS_S = (10**9, 42 * 10**8)
# Times beyond this fit no mark (64 bits, with room for a window).
_FAR_MS = 2**62


def checked(time: Any, where: str) -> EventTime | None:
    """A field's name, a function of the value, or None: the record's timestamp. DeclarationError for anything else."""
    if time is not None and not is_reader(time):
        raise DeclarationError(f"{where}={time!r}; give a field's name, or a function of the value")
    check_gives_value(time, where)
    return time


def time_reader(time: EventTime | None) -> Callable[[Any, Any], int] | None:
    """(value, record) -> event time in ms, or an error that says why there is none; None where the record's timestamp is it."""
    if time is None:
        return None
    read = reader_of(time)

    def by_value(value: Any, record: Any) -> int:
        found = read(value)
        if isinstance(found, str):
            found = datetime.fromisoformat(found)
        if isinstance(found, datetime):
            # The zone of the machine must not matter: another worker decides about the same event.
            return ((found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH) // _MS
        return _in_ms(found)

    return by_value


def noted(time: EventTime) -> str:
    """As stored state notes it."""
    return time if isinstance(time, str) else "callable"


def _in_ms(found: Any) -> int:
    """A number that is a time in ms. ValueError for one that is a time of our days in another unit, or no time at all."""
    at = int(found)
    for unit, per_s in (("seconds", 1), ("microseconds", 10**6), ("nanoseconds", 10**9)):
        if _OUR_DAYS_S[0] * per_s <= at < _OUR_DAYS_S[1] * per_s:
            way = "* 1000" if per_s == 1 else f"// {per_s // 1000}"
            raise ValueError(
                f"{found!r} is a time of our days in {unit}, and time= takes ms since 1970; give a function of the value, as "
                f"time=lambda value: value.at {way}"
            )
    if not -_FAR_MS < at < _FAR_MS:
        raise ValueError(f"{at} ms is no time")
    return at
