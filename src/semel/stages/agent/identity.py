"""Identity: which event the one in hand is, to whoever is to know it again outside of Kafka. Pure."""

from __future__ import annotations

from semel.dedup import Dedup, payload_hash
from semel.event import Attempt, Event, EventIdentity
from semel.state import replay
from semel.state.task import Task


class EventIdentifier:
    """Says it by the dedup rule of an agent."""

    def __init__(self, app: str, rule: Dedup | None) -> None:
        self._app = app
        self._window_ms = None if rule is None else rule.window_ms
        self._payload_of = None if rule is None else rule.payload_reader()
        self._time_of = None if rule is None else rule.time_reader()
        # Where conflicting or late events take effect, two events may have one id.
        self._by_id = rule is not None and not rule.passes & {"conflict", "late"}

    def identity(self, event: Event, task: Task, agent: str, id: bytes | None, attempt: Attempt) -> EventIdentity:
        """`agent`: its name, which counts where `task` runs several; `id`: the event's dedup id."""
        record = event.record
        at_ms = record.timestamp if self._time_of is None else self._time_of(event.value, record)
        raw = 0 if record.value is None else payload_hash(record.value)
        payload = raw if self._payload_of is None else self._payload_of(event.value, record)
        again = replay.of(record.headers)
        several = len({name for name, _ in task.cursors}) > 1
        topic_id, _ = task.topics.get(event.topic, ("", 0))
        return EventIdentity(
            self._app, agent if several else "", event.topic, topic_id, event.partition, event.offset,
            id if self._by_id and type(id) is bytes else None,
            # A replay has a number, but what it leads to is another effect only where somebody has changed its value.
            raw.to_bytes(8, "big") if again is not None and again.edited else b"",
            payload.to_bytes(8, "big"), at_ms, self._window_ms, attempt,
        )  # fmt: skip
