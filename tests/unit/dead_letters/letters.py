"""Dead letters as a worker writes them, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from semel.dead_letters.audit import Action, Entry, touched
from semel.dead_letters.letter import Letter, letter_of
from semel.port import TP
from semel.stages.sink.dead_letters import DeadLetters, dead_letter
from semel.stages.sink.failure_cause import Cause

AT = TP("p.dlq", 3)


class Given(NamedTuple):
    offset: int = 12
    timestamp: int = 1_000
    key: bytes | None = b"account-1"
    value: bytes | None = b'{"id": "1"}'
    headers: Sequence[tuple[str, bytes | None]] = (("trace", b"t"),)


def letter(
    offset: int = 0,
    *,
    fingerprint: str = "ValueError@agents:settle",
    key: bytes | None = b"account-1",
    value: bytes | None = b'{"id": "1"}',
    headers: Sequence[tuple[str, bytes | None]] = (("trace", b"t"),),
    first_ms: int = 5_000,
    now_ms: int = 6_000,
    version: str = "v1",
    reason: str = "failed",
    error: str = "ValueError: no",
    without: Sequence[str] = (),
    pipeline: str = "p",
    at: TP = AT,
) -> Letter:
    written = dead_letter(
        DeadLetters("p.dlq", 8, 1_000_000, version), TP("payments", at.partition),
        Given(key=key, value=value, headers=headers), pipeline=pipeline, agent="settle", reason=reason, error=error, attempts=5,
        cause=Cause(fingerprint, "ValueError", "trace"), first_ms=first_ms, now_ms=now_ms,
    )  # fmt: skip
    kept = [(name, value) for name, value in written.headers if name not in without]
    return letter_of(at, Given(offset, 7_000, written.key, written.value, kept))


def entry(action: Action, *offsets: int, partition: int = 3, topic_id: str = "f" * 32, **more: object) -> Entry:
    """What the audit has of them."""
    letters = [letter(offset, at=TP(AT.topic, partition)) for offset in offsets]
    groups = {letters[0].fingerprint: len(letters)} if letters else {letter().fingerprint: 2}
    return Entry(action, 5, "ada", "why", AT.topic, topic_id, touched((one, 1) for one in letters), groups, more, "e1")
