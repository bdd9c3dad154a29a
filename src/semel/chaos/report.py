"""What a run ended with: one document for programs, sentences for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from semel.chaos.timeline import Bites, Timeline, percentile

FINDINGS_SHOWN = 20
CLEAN, VIOLATED, UNPROVABLE, VOID = "clean", "violated", "unprovable", "void"


@dataclass(frozen=True, slots=True)
class Proved:
    """`verdict`: clean, violated or unprovable. `findings` and `summary` are sentences; `html` stands in the report."""

    verdict: str
    findings: tuple[str, ...]
    summary: tuple[str, ...]
    document: Mapping[str, Any]
    html: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything there is to say of one run. `proved` is None where it did not come to the proof."""

    pipeline: str
    seed: int
    workers: int
    brokers: int
    partitions: int
    timeline: Timeline = field(default_factory=Timeline)
    seconds: float = 0.0
    kinds: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    events: Mapping[str, int] = field(default_factory=dict[str, int])
    bites: Bites = field(default_factory=Bites)
    findings: Sequence[str] = ()
    mended: Sequence[str] = ()
    void: Sequence[str] = ()
    remarks: Sequence[str] = ()
    proved: Proved | None = None

    @property
    def verdict(self) -> str:
        """violated, else unprovable, else void, else clean."""
        if self.findings or self.proved is None or self.proved.verdict == VIOLATED:
            return VIOLATED
        if self.proved.verdict != CLEAN:
            return self.proved.verdict
        return VOID if self.void else CLEAN

    @property
    def ok(self) -> bool:
        return self.verdict == CLEAN

    @property
    def all_findings(self) -> list[str]:
        """Those of the run, then those of the proof."""
        return [*self.findings, *(self.proved.findings if self.proved is not None else ())]

    def document(self) -> dict[str, Any]:
        kinds = self.timeline.by_kind()
        recoveries = self.timeline.recoveries()
        return {
            "pipeline": self.pipeline,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "workers": self.workers,
            "brokers": self.brokers,
            "partitions": self.partitions,
            "faults": {
                "total": len(self.timeline.entries),
                "bit": sum(e.bit for e in self.timeline.entries),
                "kinds": kinds,
                "left_out": dict(self.left_out),
            },
            "recoveries": {
                "count": len(recoveries),
                "p50_s": _rounded(percentile(recoveries, 0.5)),
                "p99_s": _rounded(percentile(recoveries, 0.99)),
                "max_s": _rounded(percentile(recoveries, 1.0)),
            },
            "events": dict(self.events),
            "engine": asdict(self.bites),
            "verdict": self.verdict,
            "void": list(self.void),
            "notes": list(self.remarks),
            "findings": self.all_findings[:FINDINGS_SHOWN],
            "mended": list(self.mended),
            "proof": None if self.proved is None else self.proved.document,
            "ok": self.ok,
        }


def summary(report: Report) -> str:
    """The report as sentences."""
    document = report.document()
    faults, recoveries, events, engine = (document[name] for name in ("faults", "recoveries", "events", "engine"))
    kinds = ", ".join(f"{count['faults']} {kind}" for kind, count in faults["kinds"].items())
    lines = [
        f"{faults['total']} faults in {document['seconds']:,} s, {faults['bit']} of which met something at work: {kinds}",
        *(f"  no {kind}: {why}" for kind, why in report.left_out.items()),
    ]
    if recoveries["count"]:
        lines.append(
            f"recovery: {recoveries['p50_s']:.1f} s in the median, {recoveries['p99_s']:.1f} s at the 99th percentile, "
            f"{recoveries['max_s']:.1f} s at most"
        )
    lines += [
        f"{events.get('published', 0):,} records published, {events.get('redelivered', 0):,} of them redelivered, "
        f"{_conflicts(events)}, {events.get('undecodable', 0):,} undecodable; "
        f"{events.get('aborted', 0):,} more in aborted transactions",
        *_compacted(events),
        *_given_up(events),
        f"the engine counted {engine['aborts']} aborts, {engine['unknown']} commits without an answer, "
        f"{engine['fences']} fences, {engine['assignments']} assignments, {engine['duplicates']:,} duplicates",
    ]
    lines += [f"  {sentence}" for sentence in report.mended]
    if report.proved is not None:
        lines += [f"proof: {line}" for line in report.proved.summary]
    lines += [f"  finding: {finding}" for finding in report.all_findings[:FINDINGS_SHOWN]]
    if len(report.all_findings) > FINDINGS_SHOWN:
        lines.append(f"  and {len(report.all_findings) - FINDINGS_SHOWN} more")
    lines += [f"  note: {remark}" for remark in report.remarks]
    lines += [f"  void: {reason}" for reason in report.void]
    lines.append(f"{report.verdict}, seed {report.seed}")
    return "\n".join(lines)


def _conflicts(events: Mapping[str, int]) -> str:
    sent, met = events.get("conflict", 0), events.get("conflicts_met")
    return f"{sent:,} sent in conflict" + ("" if met is None else f" and {met:,} met as such")


def _given_up(events: Mapping[str, int]) -> list[str]:
    accepted, given_up = events.get("accepted", 0), events.get("given_up", 0)
    return [f"{accepted:,} events accepted, {given_up:,} given up (dead letters)"] if given_up else []


def _compacted(events: Mapping[str, int]) -> list[str]:
    gone, unread = events.get("compacted", 0), events.get("unread", 0)
    return [f"{gone:,} were compacted away, {unread:,} of them before they were known to be read"] if gone else []


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
