"""Identity: which event the one in hand is, to whoever is to know it again outside of Kafka. Pure."""

from __future__ import annotations

from semel.dedup import payload_hash
from semel.event import Attempt, Event, EventIdentity
from semel.event_time import time_reader
from semel.plan import AgentPlan
from semel.port import NO_TIMESTAMP
from semel.state import replay
from semel.state.task import Task


class EventIdentifier:
    """Says it by the dedup rule of an agent, and names the agent where its app could have another: whether it has one must not
    matter, or an event would be another one once there are two."""

    def __init__(self, app: str, plan: AgentPlan) -> None:
        rule = plan.dedup
        self._app, self._agent = app, plan.state_name
        self._window_ms = None if rule is None else rule.window_ms
        self._payload_of = None if rule is None else rule.payload_reader()
        self._time_of = {source.name: time_reader(plan.event_time(source)) for source in plan.sources}
        # Where conflicting or late events take effect, two events may have one id.
        self._by_id = rule is not None and not rule.passes & {"conflict", "late"}

    def identity(self, event: Event, task: Task, id: bytes | None, attempt: Attempt) -> EventIdentity:
        """`id`: the event's dedup id."""
        record, at_ms = event.record, self._time(event)
        raw = 0 if record.value is None else payload_hash(record.value)
        payload = raw if self._payload_of is None else self._payload_of(event.value, record)
        again = replay.of(record.headers)
        topic_id, _ = task.topics.get(event.topic, ("", 0))
        return EventIdentity(
            self._app, self._agent, event.topic, topic_id, event.partition, event.offset,
            # An id means an event for as long as its window lasts, which nobody can tell without a time.
            id if self._by_id and type(id) is bytes and at_ms is not None else None,
            # A replay has a number, but what it leads to is another effect only where somebody has changed its value.
            raw.to_bytes(8, "big") if again is not None and again.edited else b"",
            payload.to_bytes(8, "big"), at_ms, self._window_ms, attempt,
        )  # fmt: skip

    def _time(self, event: Event) -> int | None:
        """As the dedup rule sees it; None where there is none, with which a rule may let an event pass."""
        read = self._time_of[event.topic]
        try:
            at_ms: int = event.record.timestamp if read is None else read(event.value, event.record)
        except Exception:
            return None
        return None if at_ms == NO_TIMESTAMP else at_ms
