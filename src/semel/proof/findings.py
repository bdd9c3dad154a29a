"""What a proof says: the laws by name, findings with their witnesses, gaps, and the verdict over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

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


class Verdict(StrEnum):
    CLEAN = "clean"
    VIOLATED = "violated"
    UNPROVABLE = "unprovable"


@dataclass(slots=True)
class Findings:
    """Findings as they are found: all counted, the first of each law kept."""

    kept: list[Finding] = field(default_factory=list[Finding])
    counts: Counter[Law] = field(default_factory=Counter[Law])

    def add(self, found: Iterable[Finding]) -> None:
        for finding in found:
            self.counts[finding.law] += 1
            if self.counts[finding.law] <= KEPT:
                self.kept.append(finding)
