"""The one document that `semel up --json` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FINDINGS_SHOWN = 20


@dataclass(slots=True)
class Report:
    """Numbers of a run; None for what it did not come to. `ok` is the audit's word, and false without an audit.

    `seconds`: from the first record published to the last one committed, the kill and the recovery within.
    `events_per_s`: `events` by `seconds`, so without the redelivered records, which were work too.
    """

    seed: int
    events: int = 0
    redelivered: int = 0
    accepted: int | None = None
    duplicates: int | None = None
    conflicts: int | None = None
    dead_lettered: int | None = None
    lost: int | None = None
    doubled: int | None = None
    wrong_rows: int | None = None
    kills: int = 0
    seconds: float | None = None
    ok: bool = False
    findings: tuple[str, ...] = ()
    error: str = ""

    def document(self) -> dict[str, Any]:
        """The contract's keys; `error` and `findings` (the first twenty) only where there is something to say."""
        found: dict[str, Any] = {
            "events": self.events,
            "redelivered": self.redelivered,
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
            "dead_lettered": self.dead_lettered,
            "lost": self.lost,
            "doubled": self.doubled,
            "wrong_rows": self.wrong_rows,
            "kills": self.kills,
            "seconds": None if self.seconds is None else round(self.seconds, 2),
            "events_per_s": round(self.events / self.seconds) if self.seconds else None,
            "seed": self.seed,
            "ok": self.ok,
        }
        if self.error:
            found["error"] = self.error
        if self.findings:
            found["findings"] = list(self.findings[:FINDINGS_SHOWN])
        return found
