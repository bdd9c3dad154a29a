"""A redelivery with another payload: one that the pipeline's dedup rule knows as the same event, and as a conflict.

Whether it is one the rule itself is asked, as the engine does: what cannot be decoded, has another id or another time, or
differs in nothing that the rule compares, is no conflict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import inspect as shapes

from semel.chaos.events import ADDED, Headers, Made
from semel.chaos.generated import fields_in, make, names_in, of_value
from semel.chaos.subject import Subject
from semel.dedup import ContentKey, Dedup
from semel.errors import ConfigError
from semel.event_time import time_reader

# Values drawn of a field's type before it is given up.
DRAWS = 5


class _Seen(NamedTuple):
    """A record as the readers of a rule take it."""

    key: bytes | None
    value: bytes
    headers: Headers
    timestamp: int
    offset: int = 0


class Altering:
    """Calling it gives the value of a conflict with an event; None where nothing that is tried makes one.

    Tried are, in this order: the fields that `compare=` names; plain fields that are neither dedup key nor event time nor
    part of the record key (`keyed_by`, as JSON names them, or what stands in it); one more field. A value that is no JSON
    object is altered as a whole.
    """

    def __init__(self, subject: Subject, keyed_by: Sequence[str] = ()) -> None:
        rule, time = subject.dedup, subject.event_time
        self._decode = subject.source.value.decode
        self._at = time_reader(time)
        self._id = rule.key_reader() if rule is not None else None
        self._payload = rule.payload_reader() if rule is not None else None
        shape: shapes.Type | None = None
        with suppress(TypeError, NameError, NotImplementedError, ConfigError, msgspec.MsgspecError):
            shape = of_value(subject.source)
        self._shape = shape
        self._types = dict(fields_in(shape)) if shape is not None else {}
        in_json = names_in(shape) if shape is not None else {}
        self._compare = [in_json.get(name, name) for name in _compared(rule)]
        kept = [*_identifying(rule), *([time] if isinstance(time, str) else [])]
        self._kept = {in_json.get(name, name) for name in kept} | set(keyed_by)

    def __call__(self, made: Made) -> bytes | None:
        if made.value is None:
            return None
        before = self._read(made, made.value)
        if before is None:
            return None
        for value in self._values(made, made.value):
            after = self._read(made, value)
            if after is not None and after[:2] == before[:2] and after[2] != before[2]:
                return value
        return None

    def _read(self, made: Made, raw: bytes) -> tuple[Any, Any, Any] | None:
        """Id, time and payload as the rule has them; None of what it can make nothing of."""
        try:
            value = self._decode(raw)
            record = _Seen(made.key, raw, made.headers, made.timestamp_ms or 0)
            at = self._at(value, record) if self._at is not None else None
            if self._id is None or self._payload is None:
                return None, at, raw
            found = self._id(value, record)
            return None if found is None else (found, at, self._payload(value, record))
        except Exception:  # functions of the user's are among the readers
            return None

    def _values(self, made: Made, raw: bytes) -> Iterator[bytes]:
        rng = Random(raw)
        try:
            parsed = msgspec.json.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield raw + b"x"
            return
        if not isinstance(parsed, dict):
            yield from map(msgspec.json.encode, _others(parsed, self._shape, rng))
            return
        fields = cast("dict[str, Any]", parsed)
        compared = sorted((name for name in self._compare if name in fields), key=self._kept.__contains__)
        plain = [
            name
            for name, value in fields.items()
            if name not in self._compare
            and name not in self._kept
            and _is_plain(value)
            and not _in_key(value, made.key)
        ]
        for name in (*compared, *plain):
            for other in _others(fields[name], self._types.get(name), rng, name):
                yield msgspec.json.encode(fields | {name: other})
        yield msgspec.json.encode(fields | ADDED)


def _compared(rule: Dedup | None) -> Sequence[str]:
    if rule is None or rule.compare is None or callable(rule.compare):
        return ()
    return (rule.compare,) if isinstance(rule.compare, str) else tuple(rule.compare)


def _identifying(rule: Dedup | None) -> Sequence[str]:
    if rule is None:
        return ()
    if isinstance(rule.key, ContentKey):
        return rule.key.fields
    return (rule.key,) if isinstance(rule.key, str) else ()


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _in_key(value: Any, key: bytes | None) -> bool:
    """Whether the record key seems to be made of it. A number of one digit stands in many a text by chance."""
    text = str(value).encode()
    return key is not None and (text == key or (isinstance(value, str) and len(text) > 1 and text in key))


def _others(value: Any, shape: shapes.Type | None, rng: Random, name: str = "") -> Iterator[Any]:
    """Other values of the same JSON type: the nearest one, then some of the declared type, which may know no nearest."""
    kind: type = value.__class__
    match value:
        case bool():
            yield not value
        case int() | float():
            yield value + 1
        case str():
            yield value + "x"
        case list() if value:
            yield []
        case dict() if value:
            yield {}
        case _:
            pass
    if shape is not None:
        with suppress(ConfigError):
            drawn = [make(shape, rng, 0, name, depth=1) for _ in range(DRAWS)]
            yield from (other for other in drawn if type(other) is kind and other != value)
