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

from semel.chaos.events import Headers, Made
from semel.chaos.generated import fields_in, make, shape_of, valued
from semel.chaos.subject import Subject
from semel.errors import ConfigError
from semel.event_time import time_reader

# Values drawn of a field's type before it is given up.
DRAWS = 5
ADDED = {"_chaos": True}


class _Seen(NamedTuple):
    """A record as the readers of a rule take it."""

    key: bytes | None
    value: bytes
    headers: Headers
    timestamp: int
    offset: int = 0


class Altering:
    """Calling it gives the value of a conflict with an event; None where nothing that is tried makes one.

    Tried are one field after the other, then one field more, then those of the record key (`keyed_by`, as JSON names them,
    or what stands in it), which the agent may go by. A value that is no JSON object is altered as a whole.
    """

    def __init__(self, subject: Subject, keyed_by: Sequence[str] = ()) -> None:
        self._keyed_by = frozenset(keyed_by)
        self._decode = subject.source.value.decode
        self._at = time_reader(subject.event_time)
        rule = subject.dedup
        self._read = None if rule is None else (rule.key_reader(), rule.payload_reader())
        self._shape: shapes.Type | None = None
        with suppress(TypeError, NameError, NotImplementedError, ConfigError, msgspec.MsgspecError):
            self._shape = shape_of(valued(subject.source))

    def __call__(self, made: Made) -> bytes | None:
        if made.value is None or (before := self._seen(made, made.value)) is None:
            return None
        for value in self._values(made, made.value):
            after = self._seen(made, value)
            if after is not None and after[:2] == before[:2] and after[2] != before[2]:
                return value
        return None

    def _seen(self, made: Made, raw: bytes) -> tuple[Any, Any, Any] | None:
        """Id, time and payload as the rule has them; None of what it can make nothing of."""
        try:
            value = self._decode(raw)
            record = _Seen(made.key, raw, made.headers, made.timestamp_ms or 0)
            at = self._at(value, record) if self._at is not None else None
            if self._read is None:
                return None, at, raw
            key, payload = (read(value, record) for read in self._read)
        except Exception:  # functions of the user's are among the readers
            return None
        return None if key is None else (key, at, payload)

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
        types = {} if self._shape is None else fields_in(self._shape)
        in_key = [name for name, value in fields.items() if name in self._keyed_by or _in_key(value, made.key)]

        def altered(names: Sequence[str]) -> Iterator[bytes]:
            for name in names:
                for other in _others(fields[name], types.get(name), rng, name):
                    yield msgspec.json.encode(fields | {name: other})

        yield from altered([name for name in fields if name not in in_key])
        yield msgspec.json.encode(fields | ADDED)
        if self._read is not None:
            yield from altered(in_key)


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
