"""Dead letters: a record that cannot be handled becomes one that says where from and why (protocol rule 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from semel.port import NO_TIMESTAMP, TP, Record, TooLarge
from semel.stages.sink import foreign_headers
from semel.stages.sink.destination import NOT_THE_VALUE_BYTES, OVERHEAD_BYTES, ProducerRecord, header_bytes
from semel.stages.sink.failure_cause import Cause
from semel.stages.sink.foreign_headers import FAMILIES, Facts
from semel.state import replay

ERROR_BYTES = 2_000
# What is left of an error where value and headers of the record take the rest.
_LEAST_ERROR_BYTES = 500
# The header that says what was left out.
_LEFT_OUT_BYTES = 160
# A piece of a trace that is worth its header.
_LEAST_TRACE_BYTES = 200

# Never left out: the record itself stands there, whatever else does not fit.
_KEPT = ("semel.reason", "semel.topic", "semel.partition", "semel.offset", replay.HOLD)
# Before any of these the record's own value goes.
_BEFORE_THE_VALUE = (
    "semel.left_out",
    "semel.dead_at",
    "semel.attempts",
    "semel.timestamp",
    "semel.agent",
    "semel.pipeline",
    "semel.error",
)
# From what is dropped first, where the topic takes little, to what is dropped last. A trace is cut before it is dropped.
DROPPED_FIRST = (
    *foreign_headers.TEXTS,
    "semel.trace",
    *foreign_headers.PLACES,
    "semel.failed_last_at",
    "semel.failed_first_at",
    "semel.code_version",
    "semel.exception",
    "semel.fingerprint",
    *_BEFORE_THE_VALUE,
)
# Of a letter that took the place of another, with a value that is to be replayed later: where the other stands.
HELD = "semel.held"
HEADERS = frozenset((*_KEPT, *DROPPED_FIRST, HELD))


class DeadLetters(NamedTuple):
    """The dead-letter topic as it is: one of the user's may have fewer partitions, or take less, than ours would.

    `code_version`: what runs, empty where nobody knows. `families`: in whose words else a letter is said (`FAMILIES`).
    """

    topic: str
    partitions: int
    max_bytes: int
    code_version: str = ""
    families: tuple[str, ...] = ("kip1191",)


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
    cause: Cause,
    first_ms: int,
    now_ms: int,
    hold: bytes = b"",
) -> ProducerRecord:
    """The record as it came, bytes and headers untouched, with headers appended that say where from and why.

    In the dead-letter topic's partition of the same number, stamped by the broker: a bad timestamp may be the very
    reason, and our own clock may be the one that is wrong. A
    value that does not fit the topic is left out, and a header says so; it still stands at its source position. Of
    the error, and of what says why, as much is written as fits (`DROPPED_FIRST`). `first_ms`: when it failed for the first
    time, and now for the last. `hold`: the name under which its event holds its key.
    """
    key, value, headers = record.key, record.value, record.headers
    text = error[:ERROR_BYTES].encode(errors="backslashreplace")
    if len(text) > ERROR_BYTES:
        text = text[:ERROR_BYTES].decode(errors="ignore").encode()
    trace, now = cause.trace.encode(), b"%d" % now_ms
    facts = Facts(source, record.offset, record.timestamp, pipeline, attempts, text, cause.exception.encode(), trace)
    own = {
        "semel.pipeline": pipeline.encode(),
        "semel.agent": agent.encode(),
        "semel.reason": reason.encode(),
        "semel.error": text,
        "semel.attempts": b"%d" % attempts,
        "semel.topic": source.topic.encode(),
        "semel.partition": b"%d" % source.partition,
        "semel.offset": b"%d" % record.offset,
        "semel.timestamp": b"%d" % record.timestamp,
        "semel.dead_at": now,
        "semel.fingerprint": cause.fingerprint.encode(),
    }
    if hold:
        own[replay.HOLD] = hold
    if facts.exception:
        own["semel.exception"] = facts.exception
    own["semel.failed_first_at"] = b"%d" % first_ms
    own["semel.failed_last_at"] = now
    if letters.code_version:
        own["semel.code_version"] = letters.code_version.encode()
    if trace:
        own["semel.trace"] = trace
    for family in letters.families:
        own |= FAMILIES[family](facts)
    whole = letters.max_bytes + NOT_THE_VALUE_BYTES - OVERHEAD_BYTES
    held = len(key or b"") + len(value or b"") + (header_bytes(headers) if headers else 0)
    if isinstance(record, TooLarge):
        own["semel.left_out"] = record.why.encode()
    of_ours = header_bytes(own.items())
    if held + of_ours > whole:
        key, value, headers, left_out = _what_fits(record, whole - _least_bytes(own))
        if left_out and not isinstance(record, TooLarge):
            own["semel.left_out"] = f"{left_out} does not fit the dead-letter topic".encode()
        held = len(key or b"") + len(value or b"") + header_bytes(headers)
        _drop(own, whole - held)
        of_ours = header_bytes(own.items())
    tp = TP(letters.topic, source.partition % letters.partitions)
    return ProducerRecord(tp, NO_TIMESTAMP, key, value, [*headers, *own.items()], OVERHEAD_BYTES + held + of_ours)


def split_headers(
    headers: Sequence[tuple[str, bytes | None]],
) -> tuple[Sequence[tuple[str, bytes | None]], dict[str, bytes]]:
    """The headers that the record of a dead letter came with, and those that were appended."""
    own: dict[str, bytes] = {}
    end = len(headers)
    # What was a dead letter before has them twice. Ours are the last, and begin with the pipeline's.
    while end and "semel.pipeline" not in own and headers[end - 1][0] in HEADERS and headers[end - 1][0] not in own:
        end -= 1
        name, value = headers[end]
        own[name] = value or b""
    return headers[:end], own


def _least_bytes(own: dict[str, bytes]) -> int:
    """What is ours before the record's own value."""
    least = [(name, own[name]) for name in (*_KEPT, *_BEFORE_THE_VALUE) if name in own and name != "semel.left_out"]
    error = own["semel.error"]
    return header_bytes(least) - len(error) + min(len(error), _LEAST_ERROR_BYTES) + _LEFT_OUT_BYTES


def _what_fits(record: Record, room: int) -> tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]], str]:
    """Of a record its key, value and headers, and in words what does not fit: first the value, then its headers."""
    key, value, headers = record.key, record.value, record.headers
    of_key, of_headers = len(key or b""), header_bytes(headers)
    left_out: list[str] = []
    if value is not None and of_key + of_headers + len(value) > room:
        left_out.append(f"a value of {len(value)} bytes")
        value = None
    if headers and of_key + of_headers > room:
        left_out.append(f"{len(headers)} headers of about {of_headers} bytes")
        headers = ()
    if key is not None and of_key > room:
        left_out.append(f"a key of {of_key} bytes")
        key = None
    return key, value, headers, " and ".join(left_out)


def _drop(own: dict[str, bytes], room: int) -> None:
    """Until it fits. Of a topic that takes next to nothing, where the record came from matters most: the value stands there."""
    error, trace = own["semel.error"], own.get("semel.trace", b"")
    own["semel.error"] = error[:_LEAST_ERROR_BYTES]
    for name in DROPPED_FIRST:
        if name == _BEFORE_THE_VALUE[0]:
            own["semel.error"] = b""
        if header_bytes(own.items()) > room:
            own.pop(name, None)
    left = room - header_bytes(own.items())
    if "semel.error" in own:
        own["semel.error"] = _cut(error, left)
        left -= len(own["semel.error"])
    left -= header_bytes((("semel.trace", b""),))
    if trace and "semel.trace" not in own and left >= min(len(trace), _LEAST_TRACE_BYTES):
        own["semel.trace"] = trace[-left:].decode(errors="ignore").encode()


def _cut(text: bytes, most: int) -> bytes:
    return text[: max(0, most)].decode(errors="ignore").encode()
