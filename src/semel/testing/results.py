"""What came of a test's events, as data: records on topics, dead letters, counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from semel.codec import Codec
from semel.errors import DecodeError
from semel.port import TP, Record
from semel.stages.sink.dead_letters import split_headers
from semel.state.positions import accepted
from semel.testing.errors import PipelineTesterError
from semel.topic import Topic


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """A committed record, decoded by its topic's types.

    `timestamp`: ms since 1970. `key`: bytes where they are no key of the topic's type. `headers`: the last one of each
    name. `raw_key`, `raw_value`: the bytes on the topic.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: Any
    value: Any
    headers: Mapping[str, bytes | None]
    raw_key: bytes | None = field(repr=False)
    raw_value: bytes | None = field(repr=False)

    @property
    def position(self) -> tuple[TP, int]:
        return TP(self.topic, self.partition), self.offset


@dataclass(frozen=True, slots=True)
class DeadLetter(TopicRecord):
    """A record of the source that could not be done; topic, position, time, key, value and headers are the source record's.

    `reason`: "failed", "rejected", "undecodable", "conflict", ... (the reference has them all). `error`: the exception, or
    what was wrong. `attempts`: how often the agent tried. `value`: the bytes where they cannot be decoded. `agent`: whose
    event it was. `fingerprint`: what it has in common with others of its cause. `exception`: its type, `trace`: where it was
    raised; both empty where none was. `letter_headers`: those appended to the source record's, as the dead-letter topic has them.
    """

    reason: str
    error: str
    attempts: int
    agent: str
    fingerprint: str = ""
    exception: str = ""
    trace: str = field(default="", repr=False)
    letter_headers: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Records of the source that are done, by what became of them; from the position records, as `GET /pipelines`.

    `received` = `accepted` + `duplicates` + `replayed` + `dropped` + `dead_lettered`. A conflict is also counted as what
    the rule makes of it, dead-lettered mostly. `outputs`: results written. `filtered`: accepted events without one.
    """

    received: int
    accepted: int
    outputs: int
    filtered: int
    duplicates: int
    replayed: int
    conflicts: int
    dropped: int
    dead_lettered: int


def counts_of(positions: Iterable[Mapping[str, int]]) -> Counts:
    """The counts of position records, added up."""
    summed: dict[str, int] = {}
    for counts in positions:
        for name, count in counts.items():
            summed[name] = summed.get(name, 0) + count
    return Counts(
        received=summed.get("in", 0),
        accepted=accepted(summed),
        outputs=summed.get("out", 0),
        filtered=summed.get("filtered", 0),
        duplicates=summed.get("duplicates", 0),
        replayed=summed.get("replayed", 0),
        conflicts=summed.get("conflicts", 0),
        dropped=summed.get("dropped", 0),
        dead_lettered=summed.get("dead", 0),
    )


def record_of(topic: Topic, tp: TP, record: Record) -> TopicRecord:
    """PipelineTesterError where the value is none of the topic's."""
    try:
        value = None if record.value is None else topic.value.decode(record.value)
    except DecodeError as exc:
        raise PipelineTesterError(
            f"{tp.topic}[{tp.partition}]@{record.offset} cannot be read as declared: {exc}"
        ) from exc
    return TopicRecord(
        tp.topic,
        tp.partition,
        record.offset,
        record.timestamp,
        or_bytes(topic.key, record.key),
        value,
        dict(record.headers),
        record.key,
        record.value,
    )


def letter_of(source: Topic, letter: Record) -> DeadLetter:
    """A record of the dead-letter topic as what it was; our headers, appended last, say where it was."""
    headers, appended = split_headers(letter.headers)
    ours = {name: value.decode() for name, value in appended.items() if name.startswith("semel.")}
    return DeadLetter(
        ours["semel.topic"],
        int(ours["semel.partition"]),
        int(ours["semel.offset"]),
        int(ours["semel.timestamp"]),
        or_bytes(source.key, letter.key),
        or_bytes(source.value, letter.value),
        dict(headers),
        letter.key,
        letter.value,
        ours["semel.reason"],
        ours["semel.error"],
        int(ours["semel.attempts"]),
        ours["semel.agent"],
        ours["semel.fingerprint"],
        ours.get("semel.exception", ""),
        ours.get("semel.trace", ""),
        appended,
    )


def or_bytes(codec: Codec[Any], raw: bytes | None) -> Any:
    """What the bytes stand for; the bytes where they stand for nothing."""
    try:
        return None if raw is None else codec.decode(raw)
    except Exception:
        # A codec of the user's may raise anything; the worker survives it, too.
        return raw
