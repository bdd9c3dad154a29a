"""Crash notes: what a worker's agents are at, where its next process finds it though this one dies without a word.

A file in the state directory, mapped into memory: what is written there needs no system call, and outlives the process.
It does not outlive the machine for certain, and is not meant to: a machine that goes down is no event's fault.

    head     magic, whether the process ended in order, its last sign of life
    slots    for each agent one or several: the events that its code has in hand
    verdicts one for each suspect: what has become of it since the process started
    rest     JSON: the boot of the machine, the names of agents and topics, the suspects

The file is made anew at each start, whole or not at all. After that nothing but single fields change, and a slot counts only
while its first two bytes say so: they are set last, and cleared first.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from semel.port import TP, Record

MAGIC = b"semelIH1"
_HEAD = struct.Struct("<8sBxHIIxxxxd")
_ENDED = 8
_SEEN = 24
SLOT = 64
_EVENTS = struct.Struct("<Iiqqqd")
_EVENTS_AT = 4
# The first bytes of a slot: the agent's code runs, or awaits something within its event; it has events.
CODE, HOLDS = 0, 1
RUNS, TOLD, ENDED = 0, 1, 2
LISTED, DONE, ANEW = 0, 1, 2
# More were never looked at: each costs a process its life.
SUSPECTS = 64

# Agent, topic, partition, first and last offset, timestamp of the first.
Events = tuple[str, str, int, int, int, int]


@dataclass(slots=True)
class Suspect:
    """The events `first` to `last` of a source partition, in hand of an agent when a process died. `timestamp`: the first one's.

    `crashes`: how often in a row with this event alone in hand; `held_s`: for how long it was in hand then, at most. `due`: when
    it may be tried again, once that is known; `tried`: this process has tried it.
    """

    agent: str
    topic: str
    partition: int
    first: int
    last: int
    timestamp: int
    crashes: int = 0
    held_s: float = 0.0
    due: float | None = field(default=None, compare=False)
    tried: bool = field(default=False, compare=False)

    @property
    def events(self) -> Events:
        return self.agent, self.topic, self.partition, self.first, self.last, self.timestamp

    def includes(self, record: Record) -> bool:
        """Whether the record is among them. One at the same place in a topic that was made anew is another."""
        if record.offset == self.first:
            return record.timestamp == self.timestamp
        return self.first < record.offset <= self.last


@dataclass(frozen=True, slots=True)
class Held:
    """What one agent had in hand, and since when by the machine's steady clock."""

    events: Events
    since: float

    @property
    def is_one(self) -> bool:
        return self.events[3] == self.events[4]

    def __str__(self) -> str:
        agent, topic, partition, first, last, _ = self.events
        return f"agent {agent} had {topic}[{partition}]@{first}{'' if self.is_one else f' to {last}'} in hand"


@dataclass(frozen=True, slots=True)
class Left:
    """What a process left. `boot`: of its machine; `explained`: it ended in order, or was told to; `seen`: when it last lived."""

    boot: str
    explained: bool
    seen: float
    held: list[Held]
    suspects: list[Suspect]


class CrashNotes:
    """What the agents of this process have in hand: in `slots`, one for each of `agents`, which names an agent as often as it is
    to have. `place`: where its file is; None: in memory."""

    def __init__(
        self,
        agents: Sequence[str],
        topics: Sequence[str],
        suspects: Sequence[Suspect] = (),
        *,
        boot: str = "",
        place: Path | None = None,
    ) -> None:
        """OSError where the file cannot be made."""
        self.suspects = list(suspects)
        self._listed = list(suspects)
        self._verdicts = _HEAD.size + SLOT * len(agents)
        self._topics = {name: number for number, name in enumerate(topics)}
        raw = _laid_out(agents, topics, self.suspects, boot)
        self.buffer = memoryview(raw if place is None else _mapped(raw, place))
        begins = range(_HEAD.size, self._verdicts, SLOT)
        self.slots = [self.buffer[at : at + SLOT] for at in begins]
        self._names = list(agents), list(topics)
        # The last sign of life and the slots, as they were when the process began to die.
        self._died: bytes | None = None

    def note(self, slot: memoryview, tp: TP, first: int, last: int, timestamp: int, now: float) -> None:
        """The agent of this slot is given events. `slot[HOLDS] = 0`: it has given them back."""
        _EVENTS.pack_into(slot, _EVENTS_AT, self._topics[tp.topic], tp.partition, first, last, timestamp, now)
        slot[HOLDS] = 1

    def alive(self, now: float) -> None:
        """A sign of life; also from another thread."""
        struct.pack_into("<d", self.buffer, _SEEN, now)

    def told(self) -> None:
        """The process is told to end: whatever ends it from here on is no event's fault."""
        if self.buffer[_ENDED] == RUNS and self._died is None:
            self.buffer[_ENDED] = TOLD

    def died(self) -> None:
        """Something ends the process that nobody has told to end, and no error explains it: it counts as a death with what is in
        hand now, however orderly the rest of its end is."""
        if self.buffer[_ENDED] == RUNS and self._died is None:
            self._died = bytes(self.buffer[_SEEN : self._verdicts])

    def ended(self) -> None:
        """It has ended in order, unless it had begun to die."""
        if self._died is None:
            self.buffer[_ENDED] = ENDED
        else:
            self.buffer[_SEEN : self._verdicts] = self._died

    def held(self) -> list[Held]:
        """What agents have in hand."""
        return _held(self.buffer[_HEAD.size : self._verdicts], *self._names)

    def done(self, suspect: Suspect) -> None:
        """Its events are committed, whatever has become of them."""
        self.suspects.remove(suspect)
        self._judge(suspect, DONE)

    def count_anew(self, suspect: Suspect) -> None:
        """There is evidence that something else ends the process."""
        suspect.crashes = 0
        self._judge(suspect, ANEW)

    def _judge(self, suspect: Suspect, verdict: int) -> None:
        self.buffer[self._verdicts + next(n for n, s in enumerate(self._listed) if s is suspect)] = verdict


def read(raw: bytes) -> Left | None:
    """What a file says; None where it is none of this version, or is damaged."""
    try:
        head: tuple[bytes, int, int, int, int, float] = _HEAD.unpack_from(raw)  # type: ignore[assignment]
        magic, ended, slots, size, checksum, seen = head
        if magic != MAGIC:
            return None
        verdicts = _HEAD.size + SLOT * slots
        rest = raw[len(raw) - size :]
        if zlib.crc32(rest) != checksum or ended not in (RUNS, TOLD, ENDED):
            return None
        header: dict[str, Any] = orjson.loads(rest)
        suspects: list[Suspect] = []
        for number, row in enumerate(cast("list[list[Any]]", header["suspects"])):
            suspect = Suspect(*row)
            verdict = raw[verdicts + number]
            if verdict == ANEW:
                suspect.crashes = 0
            if verdict != DONE:
                suspects.append(suspect)
        names = cast("list[str]", header["agents"]), cast("list[str]", header["topics"])
        held = _held(memoryview(raw)[_HEAD.size :], *names)
        return Left(header["boot"], ended != RUNS, seen, held, suspects)
    except (struct.error, orjson.JSONDecodeError, KeyError, IndexError, TypeError):
        return None


def _held(slots: memoryview, agents: Sequence[str], topics: Sequence[str]) -> list[Held]:
    held: list[Held] = []
    for number, agent in enumerate(agents):
        slot = slots[SLOT * number :][:SLOT]
        if slot[CODE] and slot[HOLDS]:
            topic, partition, first, last, timestamp, since = _EVENTS.unpack_from(slot, _EVENTS_AT)
            name = topics[int(topic)]
            held.append(Held((agent, name, partition, first, last, timestamp), since))
    return held


def boot_id() -> str:
    """Of the machine, another one each time it starts; empty where it does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _laid_out(agents: Sequence[str], topics: Sequence[str], suspects: Sequence[Suspect], boot: str) -> bytearray:
    rows = [[s.agent, s.topic, s.partition, s.first, s.last, s.timestamp, s.crashes, s.held_s] for s in suspects]
    rest = orjson.dumps({"boot": boot, "agents": list(agents), "topics": list(topics), "suspects": rows})
    raw = bytearray(_HEAD.size + SLOT * len(agents) + len(suspects)) + rest
    _HEAD.pack_into(raw, 0, MAGIC, RUNS, len(agents), len(rest), zlib.crc32(rest), 0.0)
    return raw


def _mapped(raw: bytearray, place: Path) -> mmap.mmap:
    fresh = place.with_suffix(".new")
    with open(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "r+b") as file:
        # Written, not only made so long: the disk may be full when a page is first touched.
        file.write(raw)
        file.flush()
        mapped = mmap.mmap(file.fileno(), len(raw))
    fresh.replace(place)
    return mapped
