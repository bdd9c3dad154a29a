"""Dead letters: a record that cannot be handled becomes one that says where from and why (protocol rule 2)."""

from __future__ import annotations

from typing import NamedTuple

from semel.port import NO_TIMESTAMP, TP, Record, TooLarge
from semel.stages.sink.destination import NOT_THE_VALUE_BYTES, OVERHEAD_BYTES, ProducerRecord, header_bytes

# What is left of an error where value and headers of the record take the rest.
_LEAST_ERROR_BYTES = 500
# The header that says what was left out.
_LEFT_OUT_BYTES = 160
_DISPENSABLE = ("semel.left_out", "semel.dead_at", "semel.attempts", "semel.timestamp", "semel.agent", "semel.pipeline",
                "semel.error")  # fmt: skip


class DeadLetters(NamedTuple):
    """The dead-letter topic as it is: one of the user's may have fewer partitions, or take less, than ours would."""

    topic: str
    partitions: int
    max_bytes: int


def dead_letter(
    letters: DeadLetters,
    source: TP,
    record: Record,
    *,
    pipeline: str,
    agent: str,
    reason: str,
    error: str,
    attempts: int,
    now_ms: int,
) -> ProducerRecord:
    """The record as it came, bytes and headers untouched, with headers appended that say where from and why.

    In the dead-letter topic's partition of the same number, stamped by the broker: a bad timestamp may be the very
    reason, and our own clock may be the one that is wrong. A
    value that does not fit the topic is left out, and a header says so; it still stands at its source position. Of
    the error, and of what says why, as much is written as fits.
    """
    key, value, headers = record.key, record.value, record.headers
    own_headers = {
        "semel.pipeline": pipeline,
        "semel.agent": agent,
        "semel.reason": reason,
        "semel.error": "",
        "semel.attempts": str(attempts),
        "semel.topic": source.topic,
        "semel.partition": str(source.partition),
        "semel.offset": str(record.offset),
        "semel.timestamp": str(record.timestamp),
        "semel.dead_at": str(now_ms),
    }
    text = error.encode(errors="backslashreplace")[:2000].decode(errors="ignore")
    whole = letters.max_bytes + NOT_THE_VALUE_BYTES - OVERHEAD_BYTES
    room = whole - header_bytes(own_headers.items()) - min(len(text.encode()), _LEAST_ERROR_BYTES) - _LEFT_OUT_BYTES
    of_headers = header_bytes(headers)
    left_out: list[str] = []
    if value is not None and len(key or b"") + of_headers + len(value) > room:
        left_out.append(f"a value of {len(value)} bytes")
        value = None
    if headers and len(key or b"") + of_headers > room:
        left_out.append(f"{len(headers)} headers of about {of_headers} bytes")
        headers, of_headers = (), 0
    if key is not None and len(key) > room:
        left_out.append(f"a key of {len(key)} bytes")
        key = None
    if left_out:
        own_headers["semel.left_out"] = f"{' and '.join(left_out)} does not fit the dead-letter topic"
    if isinstance(record, TooLarge):
        own_headers["semel.left_out"] = record.why
    held = len(key or b"") + len(value or b"") + of_headers
    # Of a topic that takes next to nothing, where it came from matters most: the value stands there.
    for name in _DISPENSABLE:
        if held + header_bytes(own_headers.items()) > whole:
            own_headers.pop(name, None)
    left = whole - held - header_bytes(own_headers.items())
    if "semel.error" in own_headers:
        own_headers["semel.error"] = text.encode()[: max(0, left)].decode(errors="ignore")
    written = [*headers, *((name, content.encode()) for name, content in own_headers.items())]
    size = OVERHEAD_BYTES + held + header_bytes(own_headers.items())
    return ProducerRecord(
        TP(letters.topic, source.partition % letters.partitions), NO_TIMESTAMP, key, value, written, size
    )
