"""A redelivery with another payload: one that the pipeline's dedup rule knows as the same event, and as a conflict.

Whether it is one the rule itself is asked, as the engine does: what cannot be decoded, has another id or another time, or
differs in nothing that the rule compares, is no conflict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple, cast

import msgspec

from semel.chaos.events import Delivery, Headers
from semel.chaos.subject import Subject
from semel.event_time import time_reader

# Other events that are looked at for one to take a value from.
LOOKED_AT = 10
ADDED = {"_chaos": True}


class _Seen(NamedTuple):
    """A record as the readers of a rule take it."""

    key: bytes | None
    value: bytes
    headers: Headers
    timestamp: int
    offset: int = 0


class Altering:
    """Calling it gives the value of a conflict with an event, of what other events have; None where nothing makes one.

    Tried are the fields of another event, one after the other, then one field more, then those that seem to be in the record
    key, which the agent may go by. Of a value that is no JSON object another event's is tried as a whole.
    """

    def __init__(self, subject: Subject) -> None:
        self._decode = subject.source.value.decode
        self._at = time_reader(subject.event_time)
        rule = subject.dedup
        self._read = None if rule is None else (rule.key_reader(), rule.payload_reader())

    def __call__(self, made: Delivery, others: Sequence[Delivery]) -> bytes | None:
        if made.value is None or (before := self._seen(made, made.value)) is None:
            return None
        others = Random(made.value).sample(others, min(LOOKED_AT, len(others)))
        for value in _values(made, made.value, [other.value for other in others if other.value is not None]):
            after = self._seen(made, value)
            if after is not None and after[:2] == before[:2] and after[2] != before[2]:
                return value
        return None

    def _seen(self, made: Delivery, raw: bytes) -> tuple[Any, Any, Any] | None:
        """Id, time and payload as the rule has them; None of what it can make nothing of."""
        try:
            value = self._decode(raw)
            record = _Seen(made.key, raw, made.headers, made.timestamp_ms)
            at = self._at(value, record) if self._at is not None else None
            if self._read is None:
                return None, at, raw
            key, payload = (read(value, record) for read in self._read)
        except Exception:  # functions of the user's are among the readers
            return None
        return None if key is None else (key, at, payload)


def _values(made: Delivery, raw: bytes, others: Sequence[bytes]) -> Iterator[bytes]:
    fields = _fields(raw)
    if fields is None:
        yield from others
        return
    theirs = list(filter(None, map(_fields, others)))
    in_key = {name for name, value in fields.items() if made.key and str(value).encode() in made.key}

    def altered(names: Sequence[str]) -> Iterator[bytes]:
        for name in names:
            for other in theirs:
                if other.get(name, fields[name]) != fields[name]:
                    yield msgspec.json.encode(fields | {name: other[name]})

    yield from altered([name for name in fields if name not in in_key])
    yield msgspec.json.encode(fields | ADDED)
    yield from altered(sorted(in_key))


def _fields(raw: bytes) -> dict[str, Any] | None:
    """Of a JSON object; None of what is none."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None
