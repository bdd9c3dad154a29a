"""What a proof says: the laws by name, findings with their witnesses, gaps, and the verdict over them; as data, as text for a
person, as one JSON document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from semel.display.counting import counted
from semel.port import TP

# Findings of one law that are kept with their witnesses; the rest are counted.
KEPT = 25


class Law(StrEnum):
    """The laws a history is held against; the value is the name reports use. `promise`: what it says."""

    promise: str

    def __new__(cls, name: str, promise: str) -> Law:
        law = str.__new__(cls, name)
        law._value_, law.promise = name, promise
        return law

    NO_LOSS = (
        "no-loss",
        "every event below the position took effect, or is accounted for: a duplicate, dropped, dead-lettered",
    )
    NO_DUPLICATE = "no-duplicate", "an event takes effect once within the window, and each of its outputs is there once"
    ORDER = "order-per-key", "outputs of one key stand in the order of their events"
    ATOMIC = "atomicity", "effects stand together or not at all: mark, outputs and position; nothing aborted was read"
    CONSERVATION = "conservation", "what went in is what came out, was filtered, a duplicate, dropped or dead-lettered"
    POSITION = "position-never-back", "the position of a task never goes back"
    FENCED = "fenced-writes-nothing", "a worker whose tasks were taken over writes nothing more"
    FOLD = "table-is-fold", "a table is the fold of its changelog"


class Witness(NamedTuple):
    """A record that shows it. `id`: the dedup id, `key`: the record's key, as text; None where not known."""

    tp: TP
    offset: int
    what: str
    id: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        named = [f", {name} {value!r}" for name, value in (("id", self.id), ("key", self.key)) if value is not None]
        return f"{place(self.tp, self.offset)}: {self.what}{''.join(named)}"


class Finding(NamedTuple):
    """A law that does not hold, in a sentence."""

    law: Law
    sentence: str
    witnesses: tuple[Witness, ...] = ()


class Gap(NamedTuple):
    """A stretch, offsets `start` to `end` (exclusive), about which nothing can be said, and why. `events`: how many."""

    tp: TP
    start: int
    end: int
    sentence: str
    events: int = 0

    def __str__(self) -> str:
        of = f", {self.events:,} events" if self.events else ""
        return f"{self.tp.topic}[{self.tp.partition}] {self.start:,} to {self.end:,}{of}: {self.sentence}"


# A law is broken, or nobody can say, or it is a note: what is worth knowing and breaks no law.
Remark = Finding | Gap | str


@dataclass(slots=True)
class Remarks:
    """Remarks as they are made. Of findings all are counted, and the first of each law kept."""

    findings: list[Finding] = field(default_factory=list[Finding])
    counts: Counter[Law] = field(default_factory=Counter[Law])
    gaps: list[Gap] = field(default_factory=list[Gap])
    notes: list[str] = field(default_factory=list[str])

    def add(self, remarks: Iterable[Remark]) -> None:
        for remark in remarks:
            if isinstance(remark, Finding):
                self.counts[remark.law] += 1
                if self.counts[remark.law] <= KEPT:
                    self.findings.append(remark)
            elif isinstance(remark, Gap):
                self.gaps.append(remark)
            else:
                self.notes.append(remark)


class Verdict(StrEnum):
    CLEAN = "clean"
    VIOLATED = "violated"
    UNPROVABLE = "unprovable"


class Progress(NamedTuple):
    """How far it is: `done` of `total` offsets read; `phase` in words."""

    phase: str
    done: int
    total: int


class Part(NamedTuple):
    """One source partition: the offsets judged, `start` to `end` (exclusive), and what was found of them."""

    tp: TP
    start: int
    end: int
    records: int
    took_effect: int
    duplicates: int
    dead_letters: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Proof:
    """`findings`: the first of each law with their witnesses; `found`: how many there are of each. `counts`: what was
    looked at, and the running counts of the position records (`in`, `out`, ...). `ledger`: whether the running counts close
    over the whole history. Times in ms since 1970, `seconds` it took.
    """

    pipeline: str
    at_ms: int
    since_ms: int | None
    until_ms: int | None
    findings: tuple[Finding, ...]
    by_law: dict[Law, int]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]
    counts: dict[str, int]
    parts: tuple[Part, ...]
    laws: tuple[Law, ...]
    ledger: bool
    seconds: float

    @property
    def verdict(self) -> Verdict:
        if self.by_law:
            return Verdict.VIOLATED
        return Verdict.UNPROVABLE if self.gaps else Verdict.CLEAN

    def to_json(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "verdict": self.verdict.value,
            "at": _iso(self.at_ms),
            "since": _iso(self.since_ms),
            "until": _iso(self.until_ms),
            "seconds": round(self.seconds, 3),
            "laws": {law.value: self.by_law.get(law, 0) for law in self.laws},
            "ledger": "closed" if self.ledger else "open",
            "findings": [
                {"law": f.law.value, "sentence": f.sentence, "witnesses": [_fields(w) for w in f.witnesses]}
                for f in self.findings
            ],
            "unprovable": [_fields(gap) for gap in self.gaps],
            "notes": list(self.notes),
            "counts": self.counts,
            "partitions": [_fields(part) for part in self.parts],
        }

    def text(self) -> str:
        """For a person, in a few lines."""
        lines, kept = [self.headline()], Counter(finding.law for finding in self.findings)
        for finding in self.findings:
            lines += [f"  {finding.law.value}: {finding.sentence}", *(f"      {w}" for w in finding.witnesses)]
        lines += [f"  {law.value}: {n - kept[law]:,} more" for law, n in self.by_law.items() if n > kept[law]]
        lines += [f"  unprovable: {gap}" for gap in self.gaps]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def headline(self) -> str:
        headlines = {
            Verdict.CLEAN: f"clean: {self.pipeline} keeps all {len(self.laws)} laws",
            Verdict.VIOLATED: f"violated: {self.pipeline} breaks {', '.join(law.value for law in self.by_law)}",
            Verdict.UNPROVABLE: f"unprovable in part: {self.pipeline} breaks no law where there are witnesses",
        }
        events, outputs = counted(self.counts["records"], "event"), counted(self.counts["outputs"], "output")
        # Outputs with a time are none of these: they are sent with no event, and an event may have ended them.
        sent = self.counts.get("counted_sent_at_time", 0)
        outputs += f" and {sent:,} sent at {'its' if sent == 1 else 'their'} time" if sent else ""
        return f"{headlines[self.verdict]} ({events}, {outputs}, {self.seconds:,.1f} s)"


def place(tp: TP, offset: int) -> str:
    return f"{tp.topic}[{tp.partition}]@{offset}"


def _fields(of: Witness | Gap | Part) -> dict[str, Any]:
    return {**of.tp._asdict(), **{name: value for name, value in of._asdict().items() if name != "tp"}}


def _iso(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
