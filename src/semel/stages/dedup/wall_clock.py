"""Wall clock: notices that this machine's is probably behind, from the events that are refused for it (rule 2)."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from semel.port import TP
from semel.stages.fetch.work_unit import WorkUnit

log = logging.getLogger("semel.agent")

# What brokers take unless configured otherwise (message.timestamp.after.max.ms): a record that is further ahead of this
# clock was hardly ahead of the broker's when it was written.
AHEAD_MS = 3_600_000
# One producer with a bad clock writes to some keys; a clock that is behind refuses whatever comes, wherever it lies.
IN_A_ROW = 10
PARTITIONS = 2
SAID_EVERY_S = 600.0


class WallClock:
    """Counts refused events that are ahead of the clock; any event that succeeds between them starts the count anew."""

    def __init__(self) -> None:
        self._row = 0
        # Partition -> how many of its events had succeeded at its latest refusal.
        self._succeeded: dict[TP, int] = {}
        self._said_at_s: float | None = None

    def refused(self, unit: WorkUnit, event_ms: int, now_s: float) -> None:
        """An event of the work unit, stamped `event_ms`, was refused for a time."""
        tp, counts, clock_ms = unit.cursor.tp, unit.cursor.task.counts, unit.wall_ms
        succeeded = counts["out"] + counts["filtered"]
        if event_ms <= clock_ms + AHEAD_MS:
            return
        if self._succeeded.get(tp, succeeded) != succeeded:
            self._row, self._succeeded = 0, {}
        self._row += 1
        self._succeeded[tp] = succeeded
        if self._row < IN_A_ROW or len(self._succeeded) < PARTITIONS:
            return
        if self._said_at_s is None or now_s - self._said_at_s >= SAID_EVERY_S:
            self._said_at_s = now_s
            log.warning(
                "the clock of this machine is probably behind: it says %s, and %d events in a row, of %d partitions, "
                "were refused that are more than an hour ahead of it, the latest one of %s; set the clock (NTP), the "
                "refused events are in the dead letters",
                _time_text(clock_ms), self._row, len(self._succeeded), _time_text(event_ms),
            )  # fmt: skip


def _time_text(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"
