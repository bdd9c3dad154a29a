"""Letter: a record of a dead-letter topic as what it says. Pure; reads also what versions wrote that said less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from semel.codec import Codec
from semel.port import TP, Record
from semel.stages.sink.dead_letters import split_headers
from semel.stages.sink.failure_cause import cause_without_exception
from semel.stages.sink.foreign_headers import BINARY
from semel.state import replay
from semel.topic import Topic

UNKNOWN = -1


class Letter(NamedTuple):
    """`at`, `offset`: where it stands in the dead-letter topic. Times in ms, `UNKNOWN` where there is none."""

    at: TP
    offset: int
    record: Record
    headers: Sequence[tuple[str, bytes | None]]
    own: dict[str, bytes]

    def text(self, name: str) -> str:
        """One of semel's headers, without the prefix; empty where it is not there."""
        return self.own.get(f"semel.{name}", b"").decode(errors="replace")

    def number(self, name: str) -> int:
        raw = self.own.get(f"semel.{name}", b"")
        return int(raw) if raw.removeprefix(b"-").isdigit() else UNKNOWN

    @property
    def first_ms(self) -> int:
        first = self.number("failed_first_at")
        return self.last_ms if first == UNKNOWN else first

    @property
    def last_ms(self) -> int:
        for name in ("failed_last_at", "dead_at"):
            if (ms := self.number(name)) != UNKNOWN:
                return ms
        return self.record.timestamp

    @property
    def fingerprint(self) -> str:
        """That of the header; else, of an older version's, the reason and the error's first words."""
        if given := self.text("fingerprint"):
            return given
        return cause_without_exception(self.text("reason"), self.text("topic"), self.text("error")).fingerprint

    @property
    def hold(self) -> bytes:
        """How its event is named, which holds its key until something was done with the letter; empty where it holds none."""
        return self.own.get(replay.HOLD, b"")

    def with_value(self, value: bytes | None) -> Letter:
        record = self.record
        return self._replace(record=_WithValue(record.offset, record.timestamp, record.key, value, record.headers))

    @property
    def position(self) -> str:
        """As `semel dlq show` takes it."""
        return f"{self.at.partition}@{self.offset}"

    @property
    def source(self) -> str:
        """Where the record came from, as the log names it."""
        return f"{self.text('topic')}[{self.text('partition')}]@{self.text('offset')}"


class _WithValue(NamedTuple):
    """A record whose value was left out, with that of its source record."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


def letter_of(at: TP, record: Record) -> Letter:
    headers, own = split_headers(record.headers)
    return Letter(at, record.offset, record, headers, own)


def is_of(letter: Letter, app: str) -> bool:
    """Whether that pipeline gave it up: others may use the topic, too. Small topics have no room to say whose it is."""
    if not letter.own:
        return False
    return letter.own.get("semel.pipeline", app.encode()) == app.encode()


def is_waited_for(state: str) -> bool:
    """Of a letter that holds its key: whether that still waits for something to be done with it."""
    return state in ("open", "archived")


def mentions(letter: Letter, text: str) -> bool:
    """Whether a text stands in it as it is: in its key, its value or any of its headers."""
    wanted, record = text.encode(errors="surrogateescape"), letter.record
    return any(wanted in (content or b"") for content in (record.key, record.value, *(v for _, v in record.headers)))


# -- what bytes stand for


def key_of(letter: Letter, sources: dict[str, Topic]) -> Any:
    topic = sources.get(letter.text("topic"))
    return readable(letter.record.key, None if topic is None else topic.key)


def value_of(letter: Letter, sources: dict[str, Topic]) -> Any:
    topic = sources.get(letter.text("topic"))
    return readable(letter.record.value, None if topic is None else topic.value)


def is_declared(letter: Letter, sources: dict[str, Topic]) -> bool:
    """Whether its value is of the type that its source declares today."""
    topic, raw = sources.get(letter.text("topic")), letter.record.value
    if topic is None:
        return False
    if raw is None:
        return topic.value.nullable
    try:
        topic.value.decode(raw)
    except Exception:  # a codec of the user's may raise anything
        return False
    return True


def readable(raw: bytes | None, codec: Codec[Any] | None) -> Any:
    """As plain JSON: JSON where it is declared as such, or as nothing that is known; else text; else hex behind `0x`."""
    if raw is None:
        return None
    if codec is None or codec.type not in (str, bytes):
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass
    try:
        if (text := raw.decode()).isprintable() or "\n" in text:
            return text
    except UnicodeDecodeError:
        pass
    try:
        # Avro, Protobuf, a schema registry's frame: what the user's codec makes of it.
        value = None if codec is None or codec.type in (str, bytes) else codec.decode(raw)
    except Exception:
        value = None
    return f"0x{raw.hex()}" if value is None else str(value)


def header_text(name: str, raw: bytes | None) -> str | None:
    if raw is None:
        return None
    if (number := BINARY.get(name)) is not None and len(raw) == number.size:
        return str(number.unpack(raw)[0])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"0x{raw.hex()}"
