"""What happened when: faults with their recoveries, phases of the workers, samples of the flow. Data, and sums of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

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


@dataclass(frozen=True, slots=True)
class Sample:
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

    @property
    def workers(self) -> list[str]:
        return sorted(self.turns)

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


@dataclass(frozen=True, slots=True)
class Bites:
    """What shows that faults came through to the engine; sums over every process that ran."""

    aborts: int = 0
    unknown: int = 0
    fences: int = 0
    recoveries: int = 0
    assignments: int = 0
    duplicates: int = 0


# So many events have twenty conflicts among them, nearly always some.
_ENOUGH = 2_000


def conflict_remarks(published: int, sent: int, met: int) -> tuple[str, ...]:
    """What a run does not show of conflicts, as sentences. For a dedup rule that does not let them pass."""
    if sent and not met:
        return (
            f"none of {sent:,} records sent with another payload under a known id was met as a conflict, so this run says "
            "nothing of conflicts; look at what Dedup(compare=) compares, and at the dead letters",
        )
    if not sent and published >= _ENOUGH:
        return (
            "no conflict could be sent: nothing of these events can be altered so that the dedup rule sees another payload "
            "under the same id, and this run says nothing of conflicts; where the rule knows any, give events that can have "
            "one, by chaos_events(rng) in the pipeline's module, or --input",
        )
    if not sent:
        return (
            f"no conflict was sent among {published:,} records, so this run says nothing of conflicts; run it longer",
        )
    return ()


_LONGER = "run it longer, or with more kinds of faults"


def void_reasons(
    entries: Iterable[Entry],
    bites: Bites,
    *,
    starts: int,
    redelivered: int,
    deduped: bool,
    taken_in: int = 0,
    given_up: int = 0,
) -> list[str]:
    """Why the run says nothing of the pipeline, whatever the proof says; empty where it does.

    `starts`: how many workers were started; each of them had one assignment without any fault. `given_up`: how many of the
    records `taken_in` became dead letters.
    """
    entries = list(entries)
    reasons: list[str] = []
    if not entries:
        return [f"no fault took place; {_LONGER}"]
    if not any(e.bit for e in entries):
        reasons.append(f"none of the {len(entries)} faults met anything at work")
    if not (
        bites.assignments > starts or bites.aborts or bites.unknown or bites.fences or bites.recoveries
    ) and not any(e.bit and e.seen for e in entries):
        reasons.append("no rebalance, abort, fence or restart was seen")
    if deduped and redelivered and not bites.duplicates:
        reasons.append(f"none of {redelivered:,} redelivered records was met as a duplicate")
    if deduped and not redelivered:
        reasons.append("no record was redelivered")
    reasons = [f"{reason}; {_LONGER}" for reason in reasons]
    if given_up * 2 > taken_in:
        reasons.append(
            f"{given_up:,} of {taken_in:,} records became dead letters, so that hardly any took effect; give events that this "
            "pipeline takes, by --key, chaos_events(rng) in its module, or --input"
        )
    return reasons
