"""Event: a record with its value decoded, as `stream.events()` and `semel.current_event()` give it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from semel.errors import OutsideEvent
from semel.output import Headers
from semel.port import Record
from semel.state.event_context import current_context


class EventIdentity(NamedTuple):
    """Which event one is, to whoever is to know it again: the app's name, and its agent's where it can have several; its
    place; its dedup `id`, None where that does not name one event; `edition`: of the value that an operator gave it, else
    empty; a hash of its `payload`, as its dedup rule compares them; its time, and for how long after it the id means this
    event. `attempt`: at handling it."""

    app: str
    agent: str
    topic: str
    topic_id: str
    partition: int
    offset: int
    id: bytes | None
    edition: bytes
    payload: bytes
    at_ms: int | None
    window_ms: int | None
    attempt: Attempt


class Attempt:
    """One attempt at handling an event, or a batch: what was done in it that an event may do once. `number`: of the event."""

    __slots__ = ("done", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.done: set[Any] = set()


class Event:
    """A record and its value.

    `key` is of the type that the source declares (None: no key; DecodeError where it is none); `headers` a dict that also
    has those of one name (`Headers`); `timestamp` in ms; (`topic`, `partition`, `offset`) is its position. `record` is what
    it was made of.
    """

    __slots__ = ("_identify", "_read_key", "partition", "record", "topic", "value")

    def __init__(
        self,
        value: Any,
        record: Record,
        topic: str,
        partition: int,
        read_key: Callable[[bytes], Any] | None = None,
        identify: Callable[[Event], EventIdentity] | None = None,
    ) -> None:
        self.value = value
        self.record = record
        self.topic = topic
        self.partition = partition
        self._read_key = read_key
        self._identify = identify

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

    def identity(self) -> EventIdentity:
        """Which event it is, for what happens outside of Kafka. OutsideEvent where it is not in hand."""
        if self._identify is None:
            raise OutsideEvent(f"{self!r} was given by no agent, so that nobody can say which event it is")
        return self._identify(self)

    def __repr__(self) -> str:
        return f"Event({self.topic}[{self.partition}]@{self.offset}, {self.value!r:.80})"


def current_event() -> Event | None:
    """The event in hand, inside an agent; None elsewhere, also in a task that has outlived its event."""
    context = current_context.get()
    if context is None or not context.mine:
        return None
    return None if context.current is None else context.current()
