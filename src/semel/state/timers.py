"""Timers of one task: outputs that are to be sent at a time, kept until then in the order in which they are due (rule 25).

An output with a time joins the write set of its event as a row does. It is in `{app}-timers` once the event is committed, and
leaves it in the transaction that sends it. Memory holds the next ones only, however many there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from semel.errors import RecoveryError
from semel.state.state_log import RowLog
from semel.state.store import Store, row_prefix

# The reserved name under which the store numbers these rows.
TABLE = "timers"
VERSION = 1
# So many of the next ones are at hand, or so many bytes of them; a larger one is read when it is due.
AT_HAND = 2_048
AT_HAND_BYTES = 4 << 20
SMALL_BYTES = 4_096
# What one takes of a transaction beside its record: its row, and later the end of that.
TIMER_BYTES = 160
# What a row is: other kinds of timers come after the outputs.
_OUTPUT = b"o"
_PLACE = Struct(">QqI")
_HEAD = Struct(">BqI")
_LENGTH = Struct(">I")
_NONE = 0xFFFFFFFF
_OTHER_VERSION = "it was written by another version of semel: run that one until no timer is pending, or `semel reset`"


class DelayedOutput(NamedTuple):
    """A record that is to be sent, to whichever partition of `topic` its key belongs then."""

    topic: str
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]

    def encode(self) -> bytes:
        pieces = [_HEAD.pack(VERSION, self.timestamp, len(self.headers))]
        for field in (self.topic.encode(), self.key, self.value):
            pieces += _field(field)
        for name, value in self.headers:
            pieces += _field(name.encode("utf-8", "surrogatepass"))
            pieces += _field(value)
        return b"".join(pieces)


class TimerPlace(NamedTuple):
    """Which output it is: of the event at `offset` that an agent took from `topic`, the one numbered `step` of those that are
    sent later. `due_ms`: by the wall clock."""

    due_ms: int
    topic: str
    agent: str
    offset: int
    step: int

    def encode(self) -> bytes:
        # Big-endian and unsigned, so that rows are in the order in which they are due.
        return b"%b%b%b" % (
            _OUTPUT, _PLACE.pack(self.due_ms, self.offset, self.step), f"{self.topic}\0{self.agent}".encode()
        )  # fmt: skip


def _field(value: bytes | None) -> tuple[bytes, ...]:
    return (_LENGTH.pack(_NONE),) if value is None else (_LENGTH.pack(len(value)), value)


def due_ms(row: bytes) -> int:
    return int.from_bytes(row[1:9], "big")


def place_of(row: bytes) -> TimerPlace:
    """RecoveryError for what is no row of this log."""
    try:
        if row[:1] != _OUTPUT:
            raise ValueError("of another kind")
        due, offset, step = _PLACE.unpack_from(row, 1)
        topic, agent = row[1 + _PLACE.size :].decode().split("\0")
    except (IndexError, ValueError, TypeError, StructError) as exc:
        raise RecoveryError(f"{row!r} is no key of a timer ({exc}); {_OTHER_VERSION}") from exc
    return TimerPlace(due, topic, agent, offset, step)


def decode(row: bytes, raw: bytes) -> DelayedOutput:
    """RecoveryError for what this version cannot read."""
    try:
        version, timestamp, headers = _HEAD.unpack_from(raw)
        if version != VERSION:
            raise ValueError(f"version {version}, this version of semel reads {VERSION}")
        fields = _fields(raw, _HEAD.size)
        topic, key, value = fields[:3]
        names = [(name or b"").decode("utf-8", "surrogatepass") for name in fields[3::2]]
        if len(fields) != 3 + 2 * headers or topic is None:
            raise ValueError("it is cut off")
        return DelayedOutput(topic.decode(), timestamp, key, value, list(zip(names, fields[4::2], strict=True)))
    except (IndexError, ValueError, TypeError, StructError) as exc:
        raise RecoveryError(f"the timer {row!r} cannot be read ({exc}); {_OTHER_VERSION}") from exc


def _fields(raw: bytes, at: int) -> list[bytes | None]:
    fields: list[bytes | None] = []
    while at < len(raw):
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if length == _NONE:
            fields.append(None)
            continue
        if at + length > len(raw):
            raise ValueError("it is cut off")
        fields.append(raw[at : at + length])
        at += length
    return fields


class EventTimers:
    """What the event in hand sets, as a part of its write set: `pending` by row. `steps`: how many, by the event's offset."""

    __slots__ = ("log", "only", "only_value", "pending", "steps")

    def __init__(self, log: TimerLog) -> None:
        self.log = log
        # A write set asks its tables so for the one row that most events write; timers are never that.
        self.only: bytes | None = None
        self.only_value: bytes | None = None
        self.pending: dict[bytes, bytes | None] = {}
        self.steps: dict[int, int] = {}

    @property
    def open(self) -> dict[bytes, bytes | None]:
        """Where they go to."""
        return self.log.open

    def set(self, place: TimerPlace, output: bytes) -> None:
        self.pending[place.encode()] = output
        self.steps[place.offset] = place.step + 1

    def fold(self) -> None:
        """They join the open epoch."""
        self.log.join(self.pending)

    def undo(self) -> None:
        """The event has failed: nobody else knows of them."""


class TimerLog(RowLog):
    """All timers of one task, as a state log.

    `count`: how many are set and not sent, `sent`: how many were, by topic (empty for those without lineage); both of the open
    epoch. `max_bytes`: what a row may take.
    """

    __slots__ = ("_aside", "_heap", "_horizon", "count", "max_bytes", "sent")

    def __init__(self, store: Store, partition: int, number: int, topic: str, *, max_bytes: int) -> None:
        super().__init__(store, row_prefix(partition, number), topic)
        self.max_bytes = max_bytes
        self.count = 0
        self.sent: dict[str, int] = {}
        # The next ones with what is to be sent, unless that is large: all up to the horizon, None: all there are.
        self._heap: list[tuple[bytes, bytes | None]] = []
        self._horizon: bytes | None = b""
        self._aside: dict[bytes, float] = {}

    def join(self, rows: Mapping[bytes, bytes | None]) -> None:
        """They are set, in the open epoch."""
        self.open.update(rows)
        self.count += len(rows)
        horizon = self._horizon
        for row, output in rows.items():
            if horizon is None or row <= horizon:
                heapq.heappush(self._heap, (row, _at_hand(output)))
        if len(self._heap) > 2 * AT_HAND:
            self._heap.sort()
            del self._heap[AT_HAND:]
            self._horizon = self._heap[-1][0]

    # -- what is due

    @property
    def next_due_ms(self) -> int | None:
        """When the next one is due, by the wall clock: 0 where that is to be looked up, None where there is none."""
        if self._heap:
            return due_ms(self._heap[0][0])
        return None if self._horizon is None or not self.count else 0

    def take(self, now_ms: int) -> tuple[bytes, DelayedOutput] | None:
        """The next one that is due, if one is; it is to be `done` then, or to be `set_aside`. StoreError, RecoveryError."""
        if not self._heap and self._horizon is not None and self.count:
            self._look_ahead(self._horizon)
        if not self._heap or due_ms(self._heap[0][0]) > now_ms:
            return None
        row, raw = heapq.heappop(self._heap)
        return row, decode(row, self.row(row) if raw is None else raw)

    def set_aside(self, row: bytes, until: float) -> None:
        """It was taken and cannot be sent: the others go on, and it comes again at `until`, in monotonic seconds."""
        self._aside[row] = until

    def bring_back(self, now: float) -> None:
        for row in [row for row, until in self._aside.items() if until <= now]:
            del self._aside[row]
            heapq.heappush(self._heap, (row, None))

    @property
    def aside_until(self) -> float | None:
        """When the next of those comes again."""
        return min(self._aside.values(), default=None)

    def done(self, row: bytes, topic: str) -> None:
        """It is sent, in the open epoch. `topic`: empty where it has no lineage."""
        self.count -= 1
        self.sent[topic] = self.sent.get(topic, 0) + 1
        if self.open.get(row) is not None:
            # Nobody knows of it but the open epoch.
            del self.open[row]
        else:
            self.open[row] = None

    def _look_ahead(self, after: bytes) -> None:
        over = {**self.sealed, **self.open}
        size, found, last = 0, self._heap, None
        for row, output in self._store.scan_rows(self._prefix, after):
            if row == after or row in over:
                continue
            found.append((row, _at_hand(output)))
            size += len(output)
            if len(found) >= AT_HAND or size >= AT_HAND_BYTES:
                last = row
                break
        for row, output in over.items():
            if output is not None and row > after and (last is None or row <= last):
                found.append((row, _at_hand(output)))
        heapq.heapify(found)
        self._horizon = last

    # -- as a state log

    def drop(self) -> None:
        super().drop()
        self._heap, self._horizon = [], b""
        self._aside = {}


def _at_hand(output: bytes | None) -> bytes | None:
    return output if output is not None and len(output) <= SMALL_BYTES else None
