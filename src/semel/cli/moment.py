"""Times that a person writes on the command line."""

from __future__ import annotations

from datetime import datetime

from semel.errors import ConfigError


def moment(option: str, text: str, *, instead: str = "") -> datetime:
    """A time as ISO 8601; one without an offset is read as local. ConfigError, also where Kafka has no such time."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        negation = f"neither {instead} nor" if instead else "not"
        raise ConfigError(f"{option} {text!r} is {negation} a time; write one as 2026-03-01T12:00:00+00:00") from None
    try:
        at = at if at.tzinfo is not None else at.astimezone()
        before = at.timestamp() < 0
    except (OverflowError, ValueError):  # what has no local time is as far away
        before = at.year < 1970
        if not before:
            raise ConfigError(f"{option} {text!r} is beyond what clocks can tell; give an earlier time") from None
    if before:
        way = "earliest" if instead else "leave the option out"
        raise ConfigError(f"{option} {text!r} is before 1970, where Kafka's times begin; give a later time, or {way}")
    return at
