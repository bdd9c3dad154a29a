"""Decisions about dead letters: which are meant, what record each becomes, what stands in its way, and when to stop. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import orjson

from semel.codec import Codec
from semel.dead_letters.audit import Ledger, called, hashed
from semel.dead_letters.letter import Letter
from semel.errors import SemelError
from semel.partitioner import partition_of
from semel.plan import Plan
from semel.port import TP, Record
from semel.stages.sink.dead_letters import HELD
from semel.stages.sink.destination import OVERHEAD_BYTES, ProducerRecord, TopicLimits, header_bytes
from semel.state import replay
from semel.state.replay import MOST_REVISIONS

# Letters that are replayed before anything is known of how they fare.
FIRST_BATCH = 20
BATCH = 500
# Bytes of a transaction: what is left of a second at a slow broker.
BATCH_BYTES = 4 << 20
# Of those whose fate is known, more than this share come back: the cause is still there.
MOST_SHARE = 0.5
# Before so many are known, a share says little.
LEAST_KNOWN = 5


class NotReplayable(SemelError):
    """A dead letter cannot come back as it is."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant: all of those that fit. `at`: one, where it stands. Times in ms; `key`: its bytes."""

    at: tuple[int, int] | None = None
    group: str | None = None
    key: bytes | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    version: str | None = None
    # Also those that something was done with, and those of archived groups.
    again: bool = False

    def takes(self, letter: Letter) -> bool:
        return (
            (self.at is None or self.at == (letter.at.partition, letter.offset))
            and (self.group is None or letter.fingerprint == self.group)
            and (self.key is None or letter.record.key == self.key)
            and (self.since_ms is None or letter.last_ms >= self.since_ms)
            and (self.until_ms is None or letter.last_ms < self.until_ms)
            and (self.version is None or letter.text("code_version") == self.version)
        )

    def meets(self, letter: Letter, ledger: Ledger) -> bool:
        """Whether it is to be acted on. An archived group is meant where it, or one letter of it, is named."""
        if not self.takes(letter):
            return False
        if self.again:
            return True
        named = self.group is not None or self.at is not None
        return not ledger.done_by(letter) and (named or not ledger.is_archived(letter))


# -- what a letter becomes

# Why a letter is left alone, also where others are acted on again.
FORGOTTEN = "its key was forgotten, and what is forgotten is never written anywhere again"


class Place(NamedTuple):
    """A topic that a letter is to be written to, as it is."""

    partitions: int
    limits: TopicLimits


def revision_of(letter: Letter) -> int:
    """That of the event which died: 0 where it was no replay."""
    return replay.revision_of(letter.headers)


def replayed(letter: Letter, value: bytes | None, *, edited: bool = False) -> ProducerRecord:
    """The record that brings a letter back to where it came from. NotReplayable.

    `value`: that of the letter, or of its source record where it was left out, or another where it is `edited`.
    """
    topic, partition, revision = letter.text("topic"), letter.number("partition"), revision_of(letter) + 1
    if not topic or partition < 0:
        raise NotReplayable(f"{_where(letter)} does not say where it came from: it is no letter of semel's")
    if revision > MOST_REVISIONS:
        raise NotReplayable(
            f"{_where(letter)} has been replayed {MOST_REVISIONS} times, which is as often as a dedup mark can tell; send "
            "the event anew under another id"
        )
    headers: list[tuple[str, bytes | None]] = [
        *replay.without(letter.headers),
        (replay.REVISION, b"%d" % revision),
        (replay.LETTER, _where(letter).encode()),
    ]
    if letter.hold:
        headers.append((replay.HOLD, letter.hold))
    if edited:
        headers.append((replay.EDITED, hashed(letter.record.value).encode()))
    else:
        # Whoever replays what was edited before replays an edited event.
        headers += [(name, before) for name, before in letter.headers if name == replay.EDITED][:1]
    return _record(TP(topic, partition), letter, value, headers)


def skipped(letter: Letter, value: bytes | None) -> ProducerRecord | None:
    """The record that lets a key go on that a letter holds, without its event; None where it holds none. `value`: what others who
    read the source are to see, to whom it is the event once more."""
    topic, partition = letter.text("topic"), letter.number("partition")
    if not letter.hold or not topic or partition < 0:
        return None
    headers = ((replay.SKIP, letter.hold), (replay.LETTER, _where(letter).encode()))
    # Never none: to a log that is compacted that would say that the key is gone. And of now: the event's own time may be too old.
    return _record(TP(topic, partition), letter, value or b"", headers)._replace(timestamp=None)


def unread_by_one(plan: Plan, topic: str) -> str:
    """Why a record put back into a topic would not be handled by the agent that gave it up, and by no other; else empty."""
    readers = [agent.name for agent in plan.agents if topic in {source.name for source in agent.sources}]
    if not readers:
        return f"it came from {topic!r}, which is no source of {plan.app!r} any more; redirect it to one"
    if len(readers) > 1:
        return (
            f"{topic!r} is read by {', '.join(readers)}, and all of them would handle it, also those that have; redirect it to a "
            "topic of one of them"
        )
    return ""


def redirected(letter: Letter, value: bytes | None, topic: str, partitions: int) -> ProducerRecord:
    """A letter as its event came, to another topic: by its key, else to the partition of the same number."""
    key, partition = letter.record.key, max(0, letter.number("partition"))
    place = partition_of(key, partitions) if key is not None else partition % partitions
    return _record(TP(topic, place), letter, value, replay.without(letter.headers))


def held(letter: Letter, value: bytes) -> ProducerRecord:
    """A letter that takes the place of another, with a value that is to be replayed later."""
    # As they were read, from the last to the first.
    own = {HELD: _where(letter).encode()}
    own |= {name: content for name, content in letter.own.items() if name not in (HELD, "semel.left_out")}
    headers: list[tuple[str, bytes | None]] = [h for h in letter.headers if h[0] != replay.EDITED]
    headers.append((replay.EDITED, hashed(letter.record.value).encode()))
    return _record(letter.at, letter, value, [*headers, *reversed(own.items())])._replace(timestamp=-1)


def _record(tp: TP, letter: Letter, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> ProducerRecord:
    key, stamped = letter.record.key, letter.number("timestamp")
    size = OVERHEAD_BYTES + len(key or b"") + len(value or b"") + header_bytes(headers)
    return ProducerRecord(tp, stamped if "semel.timestamp" in letter.own else None, key, value, headers, size)


def obstacle(record: ProducerRecord, place: Place | None, now_ms: int) -> str:
    """Why a broker would not take it, in words; empty where it would."""
    if place is None:
        return f"there is no topic {record.tp.topic!r}"
    limits, at = place.limits, record.timestamp
    if record.tp.partition >= place.partitions:
        return (
            f"{record.tp.topic!r} has {place.partitions} partitions, and it came from partition {record.tp.partition}"
        )
    if record.size > limits.max_bytes:
        return f"it is of about {record.size} bytes, above max.message.bytes={limits.max_bytes} of {record.tp.topic!r}"
    if record.key is None and limits.compacted:
        return f"it has no key, and {record.tp.topic!r} is compacted"
    if at is not None and at >= 0 and not limits.broker_time:
        if limits.max_behind_ms is not None and at < now_ms - limits.max_behind_ms:
            return f"its time {at} is older than message.timestamp.before.max.ms of {record.tp.topic!r} allows"
        if limits.max_ahead_ms is not None and at > now_ms + limits.max_ahead_ms:
            return f"its time {at} is further ahead than message.timestamp.after.max.ms of {record.tp.topic!r} allows"
    return ""


def is_source_of(letter: Letter, record: Record) -> bool:
    """Whether a record that stands where a letter came from is the one that died: the topic may have been made anew."""
    same_time = record.offset == letter.number("offset") and record.timestamp == letter.number("timestamp")
    # A key is left out of a letter only where it is too large, too.
    return same_time and letter.record.key in (record.key, None)


def _where(letter: Letter) -> str:
    return f"{letter.at.topic}[{letter.at.partition}]@{letter.offset}"


# -- when to stop


class Fates(NamedTuple):
    """`known`: of how many replayed letters it is known what became of them; `back`: how many of those died again."""

    replayed: int
    known: int
    back: int

    @property
    def most_come_back(self) -> bool:
        return self.known >= LEAST_KNOWN and self.back > MOST_SHARE * self.known

    def __str__(self) -> str:
        return f"{self.back:,} of {self.known:,} came back to the dead letters"


def batch_letters(done: int, rate: float) -> int:
    """How many letters the next transaction has."""
    most = BATCH if rate <= 0 else int(max(1, min(BATCH, rate)))
    return min(most, FIRST_BATCH) if done < FIRST_BATCH else most


# -- edits


def pretty(value: bytes | None) -> str:
    """For an editor, and for a diff: JSON a field a line, each number as it is written; else the text; bytes that are neither as
    hex."""
    if value is None:
        return ""
    try:
        orjson.loads(value)
        return msgspec.json.format(value, indent=2).decode() + "\n"
    except (orjson.JSONDecodeError, msgspec.MsgspecError):
        pass
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"


def unpretty(text: str, before: bytes | None) -> bytes:
    """What was edited, as bytes: compact JSON where it was JSON before, or is now."""
    try:
        orjson.loads(text)
        return msgspec.json.format(text.encode(), indent=-1)
    except (orjson.JSONDecodeError, msgspec.MsgspecError):
        if before is not None and text.startswith("0x"):
            return bytes.fromhex(text[2:].strip())
        return text.encode()


def diff(before: bytes | None, after: bytes | None) -> list[str]:
    lines = difflib.unified_diff(
        pretty(before).splitlines(), pretty(after).splitlines(), "the letter", "the replay", lineterm="", n=3
    )
    return list(lines)


def check_value(codec: Codec[Any], value: bytes) -> Any:
    """What the pipeline will read. NotReplayable."""
    try:
        return codec.decode(value)
    except Exception as exc:  # a codec of the user's may raise anything
        raise NotReplayable(f"the new value is not what the topic declares: {exc}; nothing was written") from exc


def plural(counts: Mapping[str, int]) -> str:
    """`1 edited, 2,000 replayed`, of states."""
    return ", ".join(f"{n:,} {called(what)}" for what, n in counts.items() if n)
