"""What happened when: faults with their recoveries, phases of the workers, samples of the flow. Data, and sums of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Literal, NamedTuple

# A guest that has left is away; that is no fault.
Phase = Literal["starting", "running", "frozen", "dead", "away"]


@dataclass(slots=True)
class Entry:
    """One fault. Times in seconds since the run began.

    `bit`: it met something at work (a process that held partitions died, an exchange was lost, a generation went by);
    one that did not bite proves nothing. `recovered_s`: all partitions ran again and commits went on. `seen`: it hits a
    process, and that it was met needs no count of the engine.
    """

    number: int
    kind: str
    what: str
    whom: str
    at_s: float
    healed_s: float | None = None
    recovered_s: float | None = None
    bit: bool = False
    note: str = ""
    seen: bool = False

    @property
    def recovery_s(self) -> float | None:
        """From its end to the recovery."""
        if self.healed_s is None or self.recovered_s is None:
            return None
        return max(0.0, self.recovered_s - self.healed_s)

    @property
    def remarks(self) -> str:
        return "; ".join(filter(None, ("" if self.bit else "it met nothing at work", self.note)))


class Sample(NamedTuple):
    """The flow at one moment. `processed`: source records whose effects are committed, as far as workers have said."""

    at_s: float
    published: int
    processed: int
    lag: int


@dataclass(slots=True)
class Timeline:
    """`turns`: of each worker, since when it was in which phase."""

    entries: list[Entry] = field(default_factory=list[Entry])
    samples: list[Sample] = field(default_factory=list[Sample])
    turns: dict[str, list[tuple[float, Phase]]] = field(default_factory=dict[str, list[tuple[float, Phase]]])

    def turn(self, worker: str, at_s: float, phase: Phase) -> None:
        """Noted where it is news."""
        turns = self.turns.setdefault(worker, [])
        if not turns or turns[-1][1] != phase:
            turns.append((at_s, phase))

    def phase(self, worker: str) -> Phase:
        return self.turns[worker][-1][1]

    def spans(self, worker: str, end_s: float) -> list[tuple[float, float, Phase]]:
        """From, to and phase, without gaps, since the worker was first seen."""
        turns = self.turns[worker]
        ends = [*(at_s for at_s, _ in turns[1:]), end_s]
        return [(at_s, end, phase) for (at_s, phase), end in zip(turns, ends, strict=True) if end > at_s]

    # -- sums

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Kind -> how many took place, and how many of them bit."""
        took, bit = Counter(e.kind for e in self.entries), Counter(e.kind for e in self.entries if e.bit)
        return {kind: {"faults": took[kind], "bit": bit[kind]} for kind in sorted(took)}

    def recoveries(self) -> list[float]:
        return sorted(e.recovery_s for e in self.entries if e.bit and e.recovery_s is not None)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share is not above; None of nothing."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None


def rates(samples: Sequence[Sample], over_s: float) -> list[tuple[float, float]]:
    """(time, processed records a second), each over the `over_s` before it."""
    by_sample: list[tuple[float, float]] = []
    first = 0
    for now in samples:
        while samples[first].at_s < now.at_s - over_s:
            first += 1
        before = samples[first]
        if now.at_s > before.at_s:
            by_sample.append((now.at_s, max(0.0, (now.processed - before.processed) / (now.at_s - before.at_s))))
    return by_sample
