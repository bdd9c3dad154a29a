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

from semel.port import TP

# Findings of one law that are kept with their witnesses; the rest are counted.
KEPT = 25


class Law(StrEnum):
    """The laws a history is held against; the value is the name reports use."""

    NO_LOSS = "no-loss"
    NO_DUPLICATE = "no-duplicate"
    ORDER = "order-per-key"
    ATOMIC = "atomicity"
    CONSERVATION = "conservation"
    POSITION = "position-never-back"
    FENCED = "fenced-writes-nothing"
    FOLD = "table-is-fold"


PROMISES = {
    Law.NO_LOSS: "every event below the position took effect, or is accounted for: a duplicate, dropped, dead-lettered",
    Law.NO_DUPLICATE: "an event takes effect once within the window, and each of its outputs is there once",
    Law.ORDER: "outputs of one key stand in the order of their events",
    Law.ATOMIC: "effects stand together or not at all: mark, outputs and position; nothing aborted was read",
    Law.CONSERVATION: "what went in is what came out, was filtered, a duplicate, dropped or dead-lettered",
    Law.POSITION: "the position of a task never goes back",
    Law.FENCED: "a worker whose tasks were taken over writes nothing more",
    Law.FOLD: "a table is the fold of its changelog",
}


class Witness(NamedTuple):
    """A record that shows it. `id`: the dedup id, `key`: the record's key, as text; None where not known."""

    tp: TP
    offset: int
    what: str
    id: str | None = None
    key: str | None = None


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


@dataclass(slots=True)
class Findings:
    """Findings as they are found: all counted, the first of each law kept."""

    kept: list[Finding] = field(default_factory=list[Finding])
    counts: Counter[Law] = field(default_factory=Counter[Law])

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.counts[finding.law] += 1
            if self.counts[finding.law] <= KEPT:
                self.kept.append(finding)


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
    looked at, and the running counts of the position records (`in`, `out`, ...). `notes`: what is worth knowing and breaks
    no law. `ledger`: whether the running counts close over the whole history. Times in ms since 1970, `seconds` it took.
    """

    pipeline: str
    at_ms: int
    since_ms: int | None
    until_ms: int | None
    findings: tuple[Finding, ...]
    found: dict[Law, int]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]
    counts: dict[str, int]
    parts: tuple[Part, ...]
    laws: tuple[Law, ...]
    ledger: bool
    seconds: float

    @property
    def verdict(self) -> Verdict:
        if self.found:
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
            "laws": {law.value: self.found.get(law, 0) for law in self.laws},
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
        lines = [self.headline()]
        for finding in self.findings:
            lines.append(f"  {finding.law.value}: {finding.sentence}")
            lines += [f"      {shown(witness)}" for witness in finding.witnesses]
        spelled = {law: sum(f.law is law for f in self.findings) for law in self.found}
        lines += [f"  {law.value}: {n - spelled[law]:,} more" for law, n in self.found.items() if n > spelled[law]]
        lines += [f"  unprovable: {shown_gap(gap)}" for gap in self.gaps]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def headline(self) -> str:
        events = self.counts["records"]
        over = f"{events:,} events, {self.counts['outputs']:,} outputs, {self.seconds:,.1f} s"
        headlines = {
            Verdict.CLEAN: f"clean: {self.pipeline} keeps all {len(self.laws)} laws",
            Verdict.VIOLATED: f"violated: {self.pipeline} breaks {', '.join(law.value for law in self.found)}",
            Verdict.UNPROVABLE: f"unprovable in part: {self.pipeline} breaks no law where there are witnesses",
        }
        return f"{headlines[self.verdict]} ({over})"


def shown(witness: Witness) -> str:
    named = "".join(
        f", {name} {value!r}" for name, value in (("id", witness.id), ("key", witness.key)) if value is not None
    )
    return f"{witness.tp.topic}[{witness.tp.partition}]@{witness.offset}: {witness.what}{named}"


def shown_gap(gap: Gap) -> str:
    of = f", {gap.events:,} events" if gap.events else ""
    return f"{gap.tp.topic}[{gap.tp.partition}] {gap.start:,} to {gap.end:,}{of}: {gap.sentence}"


def _fields(of: Witness | Gap | Part) -> dict[str, Any]:
    return {**of.tp._asdict(), **{name: value for name, value in of._asdict().items() if name != "tp"}}


def _iso(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
