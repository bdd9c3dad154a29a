"""Timers of one task: outputs that are to be sent at a time, kept until then in the order in which they are due (rule 25).

An output with a time joins the write set of its event as a row does. It is in `{app}-timers` once the event is committed, and
leaves it in the transaction that sends it. Memory holds the next ones only, however many there are.

Of those with a name there is a second row, which stands for the name and says which timer is pending under it. A timer that is
replaced or cancelled leaves the log when the event that does so is done; of a timer and its name there are always both, or none.
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
VERSION, VERSION_NAMED = 1, 2
# So many of the next ones are at hand, or so many bytes of them; a larger one is read when it is due.
AT_HAND = 2_048
AT_HAND_BYTES = 4 << 20
SMALL_BYTES = 4_096
# What one takes of a transaction beside its record: its row, and later the end of that.
TIMER_BYTES = 160
# What a row is. Names come after all outputs.
_OUTPUT, _NAME = b"o", b"x"
_AFTER_OUTPUTS = b"p"
_PLACE = Struct(">QqI")
_HEAD = Struct(">BqI")
_LENGTH = Struct(">I")
_NONE = 0xFFFFFFFF
_NAMED_STEP = 1 << 31
_OTHER_VERSION = "it was written by another version of semel: run that one until no timer is pending, or `semel reset`"


class DelayedOutput(NamedTuple):
    """A record that is to be sent, to whichever partition of `topic` its key belongs then. `name`: the row of its name, empty
    where it has none."""

    topic: str
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    name: bytes = b""

    def encode(self) -> bytes:
        named = (self.name,) if self.name else ()
        pieces = [_HEAD.pack(VERSION_NAMED if named else VERSION, self.timestamp, len(self.headers))]
        for field in (self.topic.encode(), self.key, self.value, *named):
            pieces += _field(field)
        for name, value in self.headers:
            pieces += _field(name.encode("utf-8", "surrogatepass"))
            pieces += _field(value)
        return b"".join(pieces)


class TimerPlace(NamedTuple):
    """Which output it is: of the event at `offset` that an agent took from `topic`, the one numbered `step` of those that are
    sent later; those with a name are numbered apart. `due_ms`: by the wall clock."""

    due_ms: int
    topic: str
    agent: str
    offset: int
    step: int
    named: bool = False

    def encode(self) -> bytes:
        # Big-endian and unsigned, so that rows are in the order in which they are due.
        step = self.step | _NAMED_STEP if self.named else self.step
        return b"%b%b%b" % (
            _OUTPUT, _PLACE.pack(self.due_ms, self.offset, step), f"{self.topic}\0{self.agent}".encode()
        )  # fmt: skip


def _field(value: bytes | None) -> tuple[bytes, ...]:
    return (_LENGTH.pack(_NONE),) if value is None else (_LENGTH.pack(len(value)), value)


def due_ms(row: bytes) -> int:
    return int.from_bytes(row[1:9], "big")


def name_row(key: bytes, name: str) -> bytes:
    """The row of a name that events of this key give their timers."""
    return b"%b%b%b%b" % (_NAME, _LENGTH.pack(len(key)), key, name.encode())


def is_name(row: bytes) -> bool:
    """Whether a row stands for a name, and not for a timer."""
    return row[:1] == _NAME


def place_of(row: bytes) -> TimerPlace:
    """RecoveryError for what is no row of a timer."""
    try:
        if row[:1] != _OUTPUT:
            raise ValueError("of another kind")
        due, offset, step = _PLACE.unpack_from(row, 1)
        topic, agent = row[1 + _PLACE.size :].decode().split("\0")
    except (IndexError, ValueError, TypeError, StructError) as exc:
        raise RecoveryError(f"{row!r} is no key of a timer ({exc}); {_OTHER_VERSION}") from exc
    return TimerPlace(due, topic, agent, offset, step & ~_NAMED_STEP, bool(step & _NAMED_STEP))


def decode(row: bytes, raw: bytes) -> DelayedOutput:
    """RecoveryError for what this version cannot read."""
    try:
        version, timestamp, headers = _HEAD.unpack_from(raw)
        if version not in (VERSION, VERSION_NAMED):
            raise ValueError(f"version {version}, this version of semel reads {VERSION} and {VERSION_NAMED}")
        fields = _fields(raw, _HEAD.size)
        topic, key, value = fields[:3]
        name = (fields.pop(3) or b"") if version == VERSION_NAMED else b""
        names = [(name or b"").decode("utf-8", "surrogatepass") for name in fields[3::2]]
        if len(fields) != 3 + 2 * headers or topic is None:
            raise ValueError("it is cut off")
        return DelayedOutput(topic.decode(), timestamp, key, value, list(zip(names, fields[4::2], strict=True)), name)
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


class PendingName:
    """What is pending under a name, kept right while an event is in hand that uses it: `row` of the timer, None where there is
    none. `watchers`: how many events that are."""

    __slots__ = ("row", "watchers")

    def __init__(self, row: bytes | None) -> None:
        self.row = row
        self.watchers = 0


class EventTimers:
    """What the event in hand sets, as a part of its write set: `pending` by row. `steps`: how many, by the event's offset and
    whether they have a name."""

    __slots__ = ("_named", "_watched", "log", "only", "only_value", "pending", "steps")

    def __init__(self, log: TimerLog) -> None:
        self.log = log
        # A write set asks its tables so for the one row that most events write; timers are never that.
        self.only: bytes | None = None
        self.only_value: bytes | None = None
        self.pending: dict[bytes, bytes | None] = {}
        self.steps: dict[tuple[int, bool], int] = {}
        # By the row of the name: the row of the timer that is to be pending under it, None where it is cancelled.
        self._named: dict[bytes, bytes | None] = {}
        self._watched: dict[bytes, PendingName] = {}

    @property
    def open(self) -> dict[bytes, bytes | None]:
        """Where they go to."""
        return self.log.open

    def set(self, place: TimerPlace, output: bytes, name: bytes = b"") -> None:
        """`name`: the row of its name. StoreError; then nothing is set."""
        row = place.encode()
        if name:
            self._name(name, row)
        self.pending[row] = output
        self.steps[place.offset, place.named] = place.step + 1

    def cancel(self, name: bytes) -> None:
        """StoreError; then nothing is cancelled."""
        self._name(name, None)

    def _name(self, name: bytes, row: bytes | None) -> None:
        # Looked up now, where a store that cannot be read is the event's to hear of. Meanwhile its timer may be sent.
        if name not in self._watched:
            self._watched[name] = self.log.watch(name)
        before = self._named.get(name)
        if before is not None:
            # The event's own, which nobody else has heard of.
            del self.pending[before]
        self._named[name] = row

    def fold(self) -> None:
        """They join the open epoch."""
        self.log.join(self.pending)
        for name, row in self._named.items():
            self.log.give(name, self._watched[name], row)
        self._let_go()

    def undo(self) -> None:
        """The event has failed: nobody else knows of them."""
        self._let_go()

    def _let_go(self) -> None:
        for name, watched in self._watched.items():
            self.log.unwatch(name, watched)
        self._watched = {}


class TimerLog(RowLog):
    """All timers of one task, as a state log.

    `count`: how many are set and not sent, `sent`: how many were, by topic (empty for those without lineage); both of the open
    epoch. `max_bytes`: what a row may take.
    """

    __slots__ = ("_aside", "_gone", "_heap", "_horizon", "_watched", "count", "max_bytes", "sent")

    def __init__(self, store: Store, partition: int, number: int, topic: str, *, max_bytes: int) -> None:
        super().__init__(store, row_prefix(partition, number), topic)
        self.max_bytes = max_bytes
        self.count = 0
        self.sent: dict[str, int] = {}
        # The next ones with what is to be sent, unless that is large: all up to the horizon, None: all there are.
        self._heap: list[tuple[bytes, bytes | None]] = []
        self._horizon: bytes | None = b""
        self._aside: dict[bytes, float] = {}
        # Those at hand that were cancelled, and the names that events in hand use.
        self._gone: set[bytes] = set()
        self._watched: dict[bytes, PendingName] = {}

    def join(self, rows: Mapping[bytes, bytes | None]) -> None:
        """They are set, in the open epoch."""
        self.open.update(rows)
        self.count += len(rows)
        horizon = self._horizon
        for row, output in rows.items():
            if horizon is None or row <= horizon:
                heapq.heappush(self._heap, (row, _at_hand(output)))
        if len(self._heap) > 2 * AT_HAND:
            if self._gone:
                self._heap = [timer for timer in self._heap if timer[0] not in self._gone]
                self._gone = set()
            self._heap.sort()
            if len(self._heap) > AT_HAND:
                del self._heap[AT_HAND:]
                self._horizon = self._heap[-1][0]

    # -- names

    def watch(self, name: bytes) -> PendingName:
        """What is pending under a name, until it is not watched any more. StoreError."""
        watched = self._watched.get(name)
        if watched is None:
            watched = self._watched[name] = PendingName(self._pending_under(name))
        watched.watchers += 1
        return watched

    def unwatch(self, name: bytes, watched: PendingName) -> None:
        watched.watchers -= 1
        if not watched.watchers and self._watched.get(name) is watched:
            del self._watched[name]

    def give(self, name: bytes, watched: PendingName, row: bytes | None) -> None:
        """In the open epoch: the timer of this row, which has joined, is pending under the name, and what was before is not.
        None: nothing is."""
        before = watched.row
        if before is not None:
            self.count -= 1
            self._delete(before)
            if before in self._aside:
                del self._aside[before]
            elif self._horizon is None or before <= self._horizon:
                self._gone.add(before)
        if row is not None or before is not None:
            self.open[name] = row
        watched.row = row

    def _pending_under(self, name: bytes) -> bytes | None:
        for overlay in (self.open, self.sealed):
            if name in overlay:
                return overlay[name]
        try:
            return self._store.get_row(self._prefix + name)
        except Exception as exc:
            raise self._store.failed("read from", exc) from exc

    # -- what is due

    @property
    def next_due_ms(self) -> int | None:
        """When the next one is due, by the wall clock: 0 where that is to be looked up, None where there is none."""
        self._pass_gone()
        if self._heap:
            return due_ms(self._heap[0][0])
        return None if self._horizon is None or not self.count else 0

    def take(self, now_ms: int) -> tuple[bytes, DelayedOutput] | None:
        """The next one that is due, if one is; it is to be `done` then, or to be `set_aside`. StoreError, RecoveryError."""
        self._pass_gone()
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

    def done(self, row: bytes, topic: str, name: bytes = b"") -> None:
        """It is sent, in the open epoch. `topic`: empty where it has no lineage. `name`: the row of its name."""
        self.count -= 1
        self.sent[topic] = self.sent.get(topic, 0) + 1
        self._delete(row)
        if name:
            # Also where it was set in this epoch: the store may have the name from before.
            self.open[name] = None
            if (watched := self._watched.get(name)) is not None:
                watched.row = None

    def _pass_gone(self) -> None:
        while self._gone and self._heap and self._heap[0][0] in self._gone:
            self._gone.discard(heapq.heappop(self._heap)[0])

    def _delete(self, row: bytes) -> None:
        if self.open.get(row) is not None:
            # Nobody knows of it but the open epoch.
            del self.open[row]
        else:
            self.open[row] = None

    def _look_ahead(self, after: bytes) -> None:
        over = {**self.sealed, **self.open}
        size, heap, last = 0, self._heap, None
        for row, output in self._store.scan_rows(self._prefix, after, _AFTER_OUTPUTS):
            if row == after or row in over:
                continue
            heap.append((row, _at_hand(output)))
            size += len(output)
            if len(heap) >= AT_HAND or size >= AT_HAND_BYTES:
                last = row
                break
        for row, output in over.items():
            if output is not None and not is_name(row) and row > after and (last is None or row <= last):
                heap.append((row, _at_hand(output)))
        heapq.heapify(heap)
        self._horizon = last

    # -- as a state log

    def drop(self) -> None:
        super().drop()
        self._heap, self._horizon = [], b""
        self._aside = {}
        self._gone, self._watched = set(), {}


def _at_hand(output: bytes | None) -> bytes | None:
    return output if output is not None and len(output) <= SMALL_BYTES else None
