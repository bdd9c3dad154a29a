"""Foreign headers: a dead letter said in the words of other systems, so that consoles which redrive by header find its record.

Names and encodings are theirs: Kafka's own for share groups (KIP-1191) and for Streams (KIP-1034) are text throughout, Spring
Kafka's numbers are big-endian. Of Spring's, `kafka_dlt-original-timestamp-type` is not written: nobody here knows it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from semel.port import TP

# A console shows a line of it; all of it stands in `semel.error`.
_MESSAGE_BYTES = 500
# The delivery count is a short.
_MOST_DELIVERIES = 2**15 - 1
_INT, _LONG = struct.Struct(">i"), struct.Struct(">q")

Headers = dict[str, bytes]


class Facts(NamedTuple):
    """What all of them say. `exception` and `trace` are empty where no exception was raised."""

    source: TP
    offset: int
    timestamp: int
    group: str
    attempts: int
    error: bytes
    exception: bytes
    trace: bytes


def _kip1191(facts: Facts) -> Headers:
    return {
        "__dlq.errors.topic": facts.source.topic.encode(),
        "__dlq.errors.partition": b"%d" % facts.source.partition,
        "__dlq.errors.offset": b"%d" % facts.offset,
        "__dlq.errors.group": facts.group.encode(),
        # What no agent got was delivered all the same.
        "__dlq.errors.delivery.count": b"%d" % min(max(facts.attempts, 1), _MOST_DELIVERIES),
        "__dlq.errors.message": _message(facts),
    }


def _streams(facts: Facts) -> Headers:
    headers = {
        "__streams.errors.topic": facts.source.topic.encode(),
        "__streams.errors.partition": b"%d" % facts.source.partition,
        "__streams.errors.offset": b"%d" % facts.offset,
        "__streams.errors.message": _message(facts),
    }
    if facts.exception:
        headers["__streams.errors.exception"] = facts.exception
        headers["__streams.errors.stacktrace"] = facts.trace
    return headers


def _spring(facts: Facts) -> Headers:
    headers = {
        "kafka_dlt-original-topic": facts.source.topic.encode(),
        "kafka_dlt-original-partition": _INT.pack(facts.source.partition),
        "kafka_dlt-original-offset": _LONG.pack(facts.offset),
        "kafka_dlt-original-timestamp": _LONG.pack(facts.timestamp),
        "kafka_dlt-original-consumer-group": facts.group.encode(),
        "kafka_dlt-exception-message": _message(facts),
    }
    if facts.exception:
        headers["kafka_dlt-exception-fqcn"] = facts.exception
        headers["kafka_dlt-exception-stacktrace"] = facts.trace
    return headers


FAMILIES = {"kip1191": _kip1191, "streams": _streams, "spring": _spring}

# From what is dropped first, where the dead-letter topic takes little. What redrives by header needs topic, partition, offset.
TEXTS: tuple[str, ...] = (
    "kafka_dlt-exception-stacktrace",
    "__streams.errors.stacktrace",
    "kafka_dlt-exception-message",
    "__streams.errors.message",
    "__dlq.errors.message",
    "kafka_dlt-exception-fqcn",
    "__streams.errors.exception",
)
PLACES: tuple[str, ...] = (
    "kafka_dlt-original-consumer-group",
    "kafka_dlt-original-timestamp",
    "kafka_dlt-original-offset",
    "kafka_dlt-original-partition",
    "kafka_dlt-original-topic",
    "__streams.errors.offset",
    "__streams.errors.partition",
    "__streams.errors.topic",
    "__dlq.errors.delivery.count",
    "__dlq.errors.group",
    "__dlq.errors.offset",
    "__dlq.errors.partition",
    "__dlq.errors.topic",
)
# Those of them that are numbers, for whoever shows them.
BINARY: Mapping[str, struct.Struct] = {
    "kafka_dlt-original-partition": _INT,
    "kafka_dlt-original-offset": _LONG,
    "kafka_dlt-original-timestamp": _LONG,
}


def _message(facts: Facts) -> bytes:
    if len(facts.error) <= _MESSAGE_BYTES:
        return facts.error
    return facts.error[:_MESSAGE_BYTES].decode(errors="ignore").encode()
