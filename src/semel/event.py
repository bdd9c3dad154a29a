"""Event: a record with its value decoded, as `stream.events()` and `semel.current_event()` give it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semel.output import Headers
from semel.port import Record
from semel.state.event_context import current_context


class Event:
    """A record and its value.

    `key` is of the type that the source declares (None: no key; DecodeError where it is none); `headers` a dict that also
    has those of one name (`Headers`); `timestamp` in ms; (`topic`, `partition`, `offset`) is its position. `record` is what
    it was made of.
    """

    __slots__ = ("_read_key", "partition", "record", "topic", "value")

    def __init__(
        self,
        value: Any,
        record: Record,
        topic: str,
        partition: int,
        read_key: Callable[[bytes], Any] | None = None,
    ) -> None:
        self.value = value
        self.record = record
        self.topic = topic
        self.partition = partition
        self._read_key = read_key

    @property
    def key(self) -> Any:
        raw = self.record.key
        return raw if raw is None or self._read_key is None else self._read_key(raw)

    @property
    def headers(self) -> Headers:
        return Headers(self.record.headers)

    @property
    def timestamp(self) -> int:
        return self.record.timestamp

    @property
    def offset(self) -> int:
        return self.record.offset

    def __repr__(self) -> str:
        return f"Event({self.topic}[{self.partition}]@{self.offset}, {self.value!r:.80})"


def current_event() -> Event | None:
    """The event in hand, inside an agent; None elsewhere, also in a task that has outlived its event."""
    context = current_context.get()
    if context is None or not context.mine:
        return None
    return None if context.current is None else context.current()
