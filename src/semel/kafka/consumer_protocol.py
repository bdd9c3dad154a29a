"""Member metadata and assignments in the envelope that brokers and tools expect of a "consumer" group.

The group coordinator reads the subscription of every member, and a join whose metadata it cannot make sense of is
never answered (Kafka 3.9 and 4.1: one wrong length suffices). The admin tools read assignments likewise. So our own
bytes travel as the user data of version 0 of both.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from aiokafka.protocol.types import Array, Bytes, Int16, Int32, Schema, String

from semel.kafka.wire import array

_VERSION = 0
_string = String("utf-8")
_SUBSCRIPTION = Schema(("version", Int16), ("topics", Array(_string)), ("user_data", Bytes))
_ASSIGNMENT = Schema(
    ("version", Int16),
    ("topics", array(("topic", _string), ("partitions", Array(Int32)))),
    ("user_data", Bytes),
)


def subscription(metadata: bytes, topics: Sequence[str]) -> bytes:
    """The broker keeps the group's offsets of these topics from expiring while the group is alive."""
    return _SUBSCRIPTION.encode((_VERSION, sorted(topics), metadata))


def assignment(data: bytes) -> bytes:
    nothing_for_tools: tuple[()] = ()
    return _ASSIGNMENT.encode((_VERSION, nothing_for_tools, data))


def subscribed_metadata(data: bytes) -> bytes:
    return _user_data(_SUBSCRIPTION, data)


def assigned_data(data: bytes) -> bytes:
    return _user_data(_ASSIGNMENT, data)


def _user_data(schema: Schema, data: bytes) -> bytes:
    """What stands inside; empty where there is no envelope, as for a member that is still joining."""
    if not data:
        return b""
    try:
        values: tuple[Any, ...] = schema.decode(BytesIO(data))
    except ValueError:
        return b""
    return values[2] or b""
