"""Record: one event as it stands on a topic."""

from __future__ import annotations

from typing import NamedTuple


class Record(NamedTuple):
    """Key and value as bytes, and the event time, which becomes the Kafka record's timestamp."""

    key: bytes
    value: bytes
    timestamp_ms: int
