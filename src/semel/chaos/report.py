"""What a run ended with: one document for programs, sentences for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from semel.chaos.timeline import Timeline, percentile
from semel.proof import Proof, Verdict

FINDINGS_SHOWN = 20
CLEAN, VIOLATED, UNPROVABLE, VOID = "clean", "violated", "unprovable", "void"
NOT_COUNTED: dict[str, int] = dict.fromkeys(
    ("aborts", "unknown", "fences", "recoveries", "assignments", "duplicates"), 0
)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything there is to say of one run. `proof` is None where it did not come to that.

    `engine`: what workers counted that shows that faults came through to them. `void`: why the run says nothing, `remarks`:
    what it does not show, `mended`: what was put right on the way, as sentences.
    """

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
    engine: Mapping[str, int] = field(default_factory=NOT_COUNTED.copy)
    findings: Sequence[str] = ()
    mended: Sequence[str] = ()
    void: Sequence[str] = ()
    remarks: Sequence[str] = ()
    proof: Proof | None = None

    @property
    def verdict(self) -> str:
        """violated, else unprovable, else void, else clean."""
        if self.findings or self.proof is None or self.proof.verdict is Verdict.VIOLATED:
            return VIOLATED
        if self.proof.verdict is Verdict.UNPROVABLE:
            return UNPROVABLE
        return VOID if self.void else CLEAN

    @property
    def ok(self) -> bool:
        return self.verdict == CLEAN

    @property
    def all_findings(self) -> list[str]:
        """Those of the run, then those of the proof."""
        of_proof = () if self.proof is None else self.proof.findings
        return [*self.findings, *("\n  ".join((f"{f.law}: {f.sentence}", *map(str, f.witnesses))) for f in of_proof)]

    def document(self) -> dict[str, Any]:
        recoveries = self.timeline.recoveries()
        shares = {
            name: percentile(recoveries, share) for name, share in (("p50_s", 0.5), ("p99_s", 0.99), ("max_s", 1.0))
        }
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
                "kinds": self.timeline.by_kind(),
                "left_out": dict(self.left_out),
            },
            "recoveries": {
                "count": len(recoveries),
                **{name: None if s is None else round(s, 2) for name, s in shares.items()},
            },
            "events": dict(self.events),
            "engine": dict(self.engine),
            "verdict": self.verdict,
            "void": list(self.void),
            "notes": list(self.remarks),
            "findings": self.all_findings[:FINDINGS_SHOWN],
            "mended": list(self.mended),
            "proof": None if self.proof is None else self.proof.to_json(),
            "ok": self.ok,
        }


def summary(report: Report) -> str:
    """The report as sentences."""
    document = report.document()
    faults, recoveries, engine = (document[name] for name in ("faults", "recoveries", "engine"))
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
        *_of_events(report.events),
        f"the engine counted {engine['aborts']} aborts, {engine['unknown']} commits without an answer, "
        f"{engine['fences']} fences, {engine['assignments']} assignments, {engine['duplicates']:,} duplicates",
        *(f"  {sentence}" for sentence in report.mended),
    ]
    if report.proof is not None:
        lines += [f"proof: {report.proof.headline()}", *(f"proof: note: {note}" for note in report.proof.notes)]
    lines += [f"  finding: {finding}" for finding in document["findings"]]
    if (more := len(report.all_findings) - FINDINGS_SHOWN) > 0:
        lines.append(f"  and {more} more")
    lines += [f"  note: {remark}" for remark in report.remarks]
    lines += [f"  void: {reason}" for reason in report.void]
    lines.append(f"{report.verdict}, seed {report.seed}")
    return "\n".join(lines)


def _of_events(events: Mapping[str, int]) -> list[str]:
    def count(name: str) -> str:
        return f"{events.get(name, 0):,}"

    met = f" and {count('conflicts_met')} met as such" if "conflicts_met" in events else ""
    lines = [
        f"{count('published')} records published, {count('redelivered')} of them redelivered, {count('conflict')} sent in "
        f"conflict{met}, {count('undecodable')} undecodable; {count('aborted')} more in aborted transactions"
    ]
    if events.get("compacted"):
        lines.append(
            f"{count('compacted')} were compacted away, {count('unread')} of them before they were known to be read"
        )
    if events.get("given_up"):
        lines.append(f"{count('accepted')} events accepted, {count('given_up')} given up (dead letters)")
    return lines
