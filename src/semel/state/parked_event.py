"""What the log of parked events holds of an event: a row, keyed by source topic, agent and offset, and its versions. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from semel.errors import RecoveryError
from semel.port import Record

VERSION = 1
# A row of another version, compressed: where the log would not take it as it is.
PACKED = 2
# Of what versions do not know that had no holds: a held event is not to be handled once more by one of these.
WITH_HOLDS = 3
# What its next failures may add to a row: reason and error.
GROWS_BYTES = 4096
# What an event takes of a transaction beside its record.
EVENT_BYTES = 120
_HEAD = Struct(">BBIqqqqI")
_BLAMED, _FIRST_DEAD, _HALTED, _HELD = 1, 2, 4, 8
_LENGTH, _OFFSET = Struct(">I"), Struct(">q")
_NONE = 0xFFFFFFFF


class ParkedRecord(NamedTuple):
    """The source record, as it came."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """What the log holds of an event.

    `id`, `mark`: its dedup id and mark, where it has one. `attempts`: how many failed, 0 for one that waits for its key alone.
    `first_ms`: when the first did; `due_ms`: when the next may begin, both by the wall clock. `letter`: reason and error of one
    that is to go to the dead letters when its turn comes; `error`: what the last attempt failed with. `blamed`: others
    have succeeded since it failed first, and it failed all the same. `halted`: it failed last while nothing succeeded. `hold`: of
    one that is dead and holds its key, how its letter names it (`replay.place_of`); its record is without value and headers.
    `place`: the offset of the event whose place it has taken as the first of its key; -1 where it came in its turn.
    """

    record: Record
    id: bytes | None = None
    mark: bytes | None = None
    attempts: int = 0
    first_ms: int = 0
    due_ms: int = 0
    letter: tuple[str, str] | None = None
    error: str = ""
    blamed: bool = False
    first: int = -1
    first_dead: bool = False
    halted: bool = False
    hold: bytes = b""
    place: int = -1

    @property
    def size(self) -> int:
        """About what it takes of a transaction, in bytes."""
        record = self.record
        headers = sum(len(name) + len(value or b"") + 16 for name, value in record.headers)
        return EVENT_BYTES + len(self.id or b"") + len(record.key or b"") + len(record.value or b"") + headers

    def row(self, most_bytes: int) -> bytes:
        """As the log holds it, which takes `most_bytes`; compressed where it is larger."""
        raw = self.encode()
        return raw if len(raw) <= most_bytes else bytes([PACKED]) + zlib.compress(raw)

    def encode(self) -> bytes:
        record, headers = self.record, tuple(self.record.headers)
        reason, error = self.letter or (None, None)
        flags = self.blamed * _BLAMED | self.first_dead * _FIRST_DEAD | self.halted * _HALTED | bool(self.hold) * _HELD
        version = WITH_HOLDS if self.hold or self.place >= 0 else VERSION
        times = self.first_ms, self.due_ms, record.timestamp
        pieces = [_HEAD.pack(version, flags, self.attempts, *times, self.first, len(headers))]
        for text in (reason, error, self.error):
            pieces += _field(None if text is None else text.encode("utf-8", "surrogatepass"))
        for field in (self.id, self.mark, record.key, record.value):
            pieces += _field(field)
        for name, value in headers:
            pieces += _field(name.encode("utf-8", "surrogatepass"))
            pieces += _field(value)
        if version == WITH_HOLDS:
            pieces += _field(self.hold)
            pieces += _field(_OFFSET.pack(self.place))
        return b"".join(pieces)


def _field(value: bytes | None) -> tuple[bytes, ...]:
    return (_LENGTH.pack(_NONE),) if value is None else (_LENGTH.pack(len(value)), value)


def decode(offset: int, raw: bytes) -> ParkedEvent:
    """RecoveryError for what this version cannot read."""
    try:
        raw = _unpacked(raw)
        version, flags, attempts, first_ms, due_ms, timestamp, first, count = _HEAD.unpack_from(raw)
        headers: int = count
        if version not in (VERSION, WITH_HOLDS):
            raise ValueError(f"version {version}, this version of semel reads {VERSION} and {WITH_HOLDS}")
        fields = list(_fields(raw, _HEAD.size))
        reason, error, last, id, mark, key, value = fields[:7]
        named = [(_text(fields[7 + 2 * n]), fields[8 + 2 * n]) for n in range(headers)]
        hold: bytes = b""
        place = -1
        if version == WITH_HOLDS:
            hold = fields[7 + 2 * headers] or b""
            (place,) = _OFFSET.unpack(fields[8 + 2 * headers] or b"")
    except (IndexError, ValueError, TypeError, StructError, zlib.error) as exc:
        raise RecoveryError(
            f"the parked event of offset {offset} cannot be read ({exc}); it was written by another version of semel: run "
            "the version that wrote it until nothing is parked, or `semel reset`"
        ) from exc
    letter = None if reason is None else (_text(reason), _text(error))
    record = ParkedRecord(offset, timestamp, key, value, named)
    blamed, first_dead, halted = (bool(flags & flag) for flag in (_BLAMED, _FIRST_DEAD, _HALTED))
    return ParkedEvent(
        record, id, mark, attempts, first_ms, due_ms, letter, _text(last), blamed, first, first_dead, halted, hold,
        place,
    )  # fmt: skip


def is_held(raw: bytes) -> bool:
    """Whether a row is of an event that is dead, and not of one that waits."""
    raw = _unpacked(raw)
    return raw[:1] == bytes((WITH_HOLDS,)) and bool(raw[1] & _HELD)


def _unpacked(raw: bytes) -> bytes:
    return zlib.decompress(raw[1:]) if raw[:1] == bytes((PACKED,)) else raw


def _fields(raw: bytes, at: int) -> Iterator[bytes | None]:
    while at < len(raw):
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if length == _NONE:
            yield None
        else:
            if at + length > len(raw):
                raise ValueError("it is cut off")
            yield raw[at : at + length]
            at += length


def _text(field: bytes | None) -> str:
    return "" if field is None else field.decode("utf-8", "surrogatepass")


def row_of(prefix: bytes, offset: int) -> bytes:
    """The key of its row; `prefix`: `agent_prefix`."""
    return prefix + _OFFSET.pack(offset)


def agent_prefix(topic: str, agent: str) -> bytes:
    """What the keys of one agent's rows of a source begin with. `agent`: `AgentPlan.state_name`."""
    return f"{topic}\0{agent}\0".encode()


def read_row(row: bytes) -> tuple[tuple[str, str], int]:
    """(source topic, agent) and offset of a row's key. RecoveryError."""
    try:
        topic, agent, *_ = row[: -_OFFSET.size].decode().split("\0")
        (offset,) = _OFFSET.unpack(row[-_OFFSET.size :])
    except (ValueError, IndexError) as exc:
        raise RecoveryError(f"{row!r} is no key of a parked event ({exc})") from exc
    return (topic, agent), offset
