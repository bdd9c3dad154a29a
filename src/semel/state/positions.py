"""The position record: the authority on how far a task has come (protocol rule 10).

One record per task in every transaction that touches it, in `{app}-positions`, in the partition of the task's number.
The schema is versioned JSON; it has room for ranges finished ahead (`done`) and for consumers ahead of the common
position (`cursors`), which later capabilities fill. What was added since (`shape`, `logs`, `first`, `outputs`, `readers`,
`passed`, `born`, `sinks`, `types`, `migrating`, `left`, `claims`, `former`, `hashed_from`, `windows`, `kinds`, `trimmed`,
`letters`, `parked`, `timers`, `sent_later`) may be absent; a reader of the same version passes over what it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson

from semel.errors import RecoveryError
from semel.port import TP, Record

VERSION = 1
KEY = b"position"
RESETTING_KEY = b"resetting"
# Where the topics that outputs go to ended when the app was reset: what lies before belongs to an earlier life of it.
BEGAN_KEY = b"began"
COUNTS = ("in", "out", "filtered", "duplicates", "replayed", "conflicts", "dropped", "dead")


def accepted(counts: Mapping[str, int]) -> int:
    """How many records took effect: one may have several results, or none."""
    return counts.get("in", 0) - sum(counts.get(name, 0) for name in ("duplicates", "replayed", "dropped", "dead"))


UNKNOWN = -1


class Windows(NamedTuple):
    """Records from `since` on were judged by the dedup window of now, those before by others, of `least_ms` to `most_ms`."""

    since: int
    least_ms: int
    most_ms: int


@dataclass(frozen=True, slots=True)
class TopicPosition:
    """`next`: the offset every consumer of the task has reached; `cursors`: agents that are further.

    `first`: where the task began; -1 where that was not noted. `born`: how many partitions the topic had when the app
    began to read it; 0 where that was not noted. `former`: where agents stand that were declared once, to go on there; `UNKNOWN`
    where that was not noted.
    `hashed_from`: marks of records before it have the payload hash of another `compare=`. `windows`: None where the dedup
    window was always the same, or that it changed was not noted here.
    """

    id: str
    partitions: int
    next: int
    cursors: dict[str, int] = field(default_factory=dict[str, int])
    done: tuple[tuple[int, int], ...] = ()
    first: int = -1
    born: int = 0
    former: dict[str, int] = field(default_factory=dict[str, int])
    hashed_from: int = 0
    windows: Windows | None = None

    @property
    def since(self) -> int:
        """From which partition on they came later than the app."""
        return self.born or self.partitions

    def stands(self, agent: str) -> int:
        """Where it goes on. Of whom nothing is known begins where the app stands."""
        former = self.former.get(agent, UNKNOWN)
        return self.cursors.get(agent, self.next if former == UNKNOWN else former)

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "id": self.id,
            "partitions": self.partitions,
            "next": self.next,
            "cursors": self.cursors,
            "done": self.done,
            "first": self.first,
            "born": self.born,
        }
        if self.former:
            fields["former"] = self.former
        if self.hashed_from:
            fields["hashed_from"] = self.hashed_from
        if self.windows is not None:
            fields["windows"] = [*self.windows]
        return fields


class Sink(NamedTuple):
    """A topic that outputs go to. `partitions`: over how many keys are spread; `least`: the fewest that ever were."""

    id: str
    partitions: int
    least: int


@dataclass(frozen=True, slots=True)
class StreamTime:
    """The greatest event time seen, in ms; None before the first record.

    `pending`: event times of the latest records that jumped more than a window, without dedup an hour, ahead (rule 20).
    """

    ms: int | None = None
    pending: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Position:
    """Where a task stands. `generation`, `writer`, `epoch` say who wrote the record; `at_ms` when, by its wall clock.

    `logs`: the ids of the topics that hold the rows and marks that go with it; empty where they were not noted.
    `outputs`: how many outputs with lineage went to each topic since the task began.
    `readers`: whose events the counts and marks are of, as `Plan.readers` names them, also such that are declared no more.
    `passed`: which of `missing`, `conflict` and `late` was ever declared as "pass", so that events took effect without a
    mark; and "window" and "compare" where these changed. Both are empty where they were not noted.
    `sinks`: what is known of each topic that outputs go to.
    `types`: what rows look like (`Plan.types`). `migrating`: of tables whose rows are being migrated the last key that is, in
    hex, and to what; `shape` and `types` are the old ones until the end. `left`: topics that were sources once.
    `claims`: logs that the app is about to write to for the first time, and since when, in ms.
    `kinds`: of what kind the keys of rows are, where two kinds could have the same bytes.
    `trimmed`: the log of marks may begin there, and no later: what lies before it has expired. -1 where that was not noted.
    `letters`: the topics that dead letters were ever to go to; empty where that was the default alone.
    `parked`: how many events before `next` are not done: they wait in the log of parked events, and `counts` do not have them.
    `timers`: how many outputs are still to be sent at their time; `sent_later`: how many went to each topic when that had come.
    Neither is in `counts` or in `outputs`.
    """

    topics: dict[str, TopicPosition]
    stream_time: StreamTime = StreamTime()
    counts: dict[str, int] = field(default_factory=dict[str, int])
    generation: int = -1
    writer: str = ""
    epoch: int = 0
    at_ms: int = 0
    shape: str = ""
    logs: dict[str, str] = field(default_factory=dict[str, str])
    outputs: dict[str, int] = field(default_factory=dict[str, int])
    readers: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    sinks: dict[str, Sink] = field(default_factory=dict[str, Sink])
    types: str = ""
    migrating: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    left: dict[str, TopicPosition] = field(default_factory=dict[str, TopicPosition])
    claims: dict[str, int] = field(default_factory=dict[str, int])
    kinds: dict[str, str] = field(default_factory=dict[str, str])
    trimmed: int = -1
    letters: tuple[str, ...] = ()
    parked: int = 0
    timers: int = 0
    sent_later: dict[str, int] = field(default_factory=dict[str, int])

    def encode(self) -> bytes:
        return orjson.dumps(self.to_json())

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "v": VERSION,
            "topics": {name: t.to_json() for name, t in self.topics.items()},
            "stream_time": self.stream_time.ms,
            "pending": self.stream_time.pending,
            "counts": self.counts,
            "generation": self.generation,
            "writer": self.writer,
            "epoch": self.epoch,
            "at": self.at_ms,
            "shape": self.shape,
            "logs": self.logs,
            "outputs": self.outputs,
            "readers": self.readers,
            "passed": self.passed,
            "sinks": {name: [*sink] for name, sink in self.sinks.items()},
            "types": self.types,
        }
        if self.migrating:
            fields["migrating"] = self.migrating
        if self.claims:
            fields["claims"] = self.claims
        if self.kinds:
            fields["kinds"] = self.kinds
        if self.trimmed >= 0:
            fields["trimmed"] = self.trimmed
        if self.letters:
            fields["letters"] = self.letters
        if self.parked:
            fields["parked"] = self.parked
        if self.timers:
            fields["timers"] = self.timers
        if self.sent_later:
            fields["sent_later"] = self.sent_later
        if self.left:
            fields["left"] = {name: t.to_json() for name, t in self.left.items()}
        return fields

    @property
    def stamp(self) -> tuple[str, int, int]:
        """Who wrote it, in which epoch, when: tells our own commit from another one at the same offset (rule 18)."""
        return self.writer, self.epoch, self.at_ms


def decode(raw: bytes, where: str) -> Position:
    """RecoveryError for a record this version cannot read."""
    try:
        return from_json(orjson.loads(raw))
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise RecoveryError(
            f"the position record in {where} cannot be read ({exc}); it was written by another version of semel, or by "
            "another program: run the version that wrote it, or `semel reset`"
        ) from exc


@dataclass(slots=True)
class PositionLog:
    """What a partition of the positions says, as far as it was read: the last `position`, at which `offset` it stands, and
    whether a reset is under way.
    """

    position: Position | None = None
    offset: int = -1
    resetting: bool = False

    def see(self, record: Record, tp: TP) -> Position | None:
        """The next record; the position that it is, if it is one. RecoveryError."""
        if record.key == RESETTING_KEY:
            self.resetting = record.value is not None
        if record.key != KEY:
            return None
        where = f"{tp.topic}[{tp.partition}]@{record.offset}"
        self.position = None if record.value is None else decode(record.value, where)
        self.offset = record.offset
        return self.position


def from_json(fields: dict[str, Any]) -> Position:
    if fields["v"] != VERSION:
        raise ValueError(f"record version {fields['v']!r}, this version of semel reads {VERSION}")
    return Position(
        topics={name: _topic(t) for name, t in fields["topics"].items()},
        stream_time=StreamTime(fields["stream_time"], tuple(fields["pending"])),
        counts=dict(fields["counts"]),
        generation=fields["generation"],
        writer=fields["writer"],
        epoch=fields["epoch"],
        at_ms=fields["at"],
        shape=fields.get("shape", ""),
        logs=dict(fields.get("logs", {})),
        outputs=dict(fields.get("outputs", {})),
        readers=tuple(fields.get("readers", ())),
        passed=tuple(fields.get("passed", ())),
        sinks={name: Sink(*sink) for name, sink in fields.get("sinks", {}).items()},
        types=fields.get("types", ""),
        migrating={name: (upto, to) for name, (upto, to) in fields.get("migrating", {}).items()},
        left={name: _topic(t) for name, t in fields.get("left", {}).items()},
        claims=dict(fields.get("claims", {})),
        kinds=dict(fields.get("kinds", {})),
        trimmed=fields.get("trimmed", -1),
        letters=tuple(fields.get("letters", ())),
        parked=fields.get("parked", 0),
        timers=fields.get("timers", 0),
        sent_later=dict(fields.get("sent_later", {})),
    )


def _topic(fields: dict[str, Any]) -> TopicPosition:
    return TopicPosition(
        fields["id"],
        fields["partitions"],
        fields["next"],
        dict(fields["cursors"]),
        tuple((a, b) for a, b in fields["done"]),
        fields.get("first", -1),
        fields.get("born", 0),
        dict(fields.get("former", {})),
        fields.get("hashed_from", 0),
        Windows(*fields["windows"]) if "windows" in fields else None,
    )


def moved(position: Position, **changes: Any) -> Position:
    return replace(position, **changes)
