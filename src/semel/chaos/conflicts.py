"""A redelivery with another payload: one that the pipeline's dedup rule knows as the same event, and as a conflict.

Whether it is one the rule itself is asked, as a proof does: what cannot be decoded, has another id or another time, or
differs in nothing that the rule compares, is no conflict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, cast

import msgspec
import numpy as np

from semel.chaos.events import Delivery
from semel.chaos.subject import Subject
from semel.proof.columns import Kind, Source

# Other events that are looked at for one to take a value from.
LOOKED_AT = 10
ADDED = {"_chaos": True}


class Altering:
    """Calling it gives the value of a conflict with an event, of what other events have; None where nothing makes one.

    Tried are the fields of another event, one after the other, then one field more, then those that seem to be in the record
    key, which the agent may go by. Of a value that is no JSON object another event's is tried as a whole.
    """

    def __init__(self, subject: Subject) -> None:
        self._source = None if subject.dedup is None else Source(subject.source, subject.dedup)

    def __call__(self, event: Delivery, others: Sequence[Delivery]) -> bytes | None:
        if self._source is None or event.value is None:
            return None
        others = Random(event.value).sample(others, min(LOOKED_AT, len(others)))
        tried = [event.value, *_values(event, [other.value for other in others if other.value is not None])]
        read = self._source.unmarked([event._replace(value=value) for value in tried])
        same = np.logical_and.reduce([read[name] == read[name][0] for name in ("id", "time")]) & (
            read["kind"] == Kind.KEYED
        )
        # 0: it cannot be compared.
        differs = (read["payload"] != read["payload"][0]) & (read["payload"] != 0)
        return next((tried[i] for i in np.flatnonzero(same & differs)), None)


def _values(event: Delivery, others: Sequence[bytes]) -> Iterator[bytes]:
    fields = _fields(event.value or b"")
    if fields is None:
        yield from others
        return
    theirs = list(filter(None, map(_fields, others)))
    in_key = {name for name, value in fields.items() if event.key and str(value).encode() in event.key}

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
