"""Circuit breaker: whether it is the program that fails, or what it depends on, and not its events (protocol rule 3).

A fault of one event leaves the others alone. When events one after the other fail alike and nothing succeeds in between, the
next one would fail, too: a database is down, a table is not listed, a sink is missing. Then the agent takes no more of them, none
is given up, and one event at a time is tried, more and more rarely, until one succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from semel.errors import PipelineHalted

FIRST_PROBE_S, MOST_PROBE_S = 0.05, 15.0


@dataclass(frozen=True, slots=True)
class Halted:
    """`failed`: how many different events failed alike while nothing succeeded; `seconds`: for how long none was taken but to
    probe; `next_probe_s`: when the next one is."""

    agent: str
    error: str
    failed: int
    seconds: float
    next_probe_s: float


def overdue(agents: Iterable[Halted], timeout_ms: int) -> PipelineHalted | None:
    """What a worker ends with where one of its agents has halted for so long."""
    for at in agents:
        if at.seconds * 1000 >= timeout_ms:
            return PipelineHalted(at.agent, at.failed, at.seconds, at.error)
    return None


class CircuitBreaker:
    """One agent's. `succeeded`: how many events it has handled to their end. `after`: how many different events that fail alike
    in a row open it, 0: none do.

    Times are monotonic seconds.
    """

    def __init__(self, succeeded: Callable[[], int], after: int) -> None:
        self._succeeded = succeeded
        self._after = after
        self._before = 0
        self._failed: dict[Hashable, set[Hashable]] = {}
        self._error = ""
        self._since: float | None = None
        self._probe_at = 0.0
        self._probes = 0

    @property
    def open(self) -> bool:
        """No event is to be taken but to probe."""
        return self._since is not None

    def failed(self, event: Hashable, alike: Hashable, error: str, now: float) -> bool:
        """An attempt failed. `alike`: the same for errors that are. Whether that has opened the breaker just now."""
        self._look()
        if not self._after:
            return False
        events = self._failed.setdefault(alike, set())
        events.add(event)
        self._error = error
        if self._since is not None:
            self._probes += 1
            self._probe_at = now + min(FIRST_PROBE_S * 2.0 ** min(self._probes, 16), MOST_PROBE_S)
            return False
        if len(events) < self._after:
            return False
        self._since, self._probes, self._probe_at = now, 0, now + FIRST_PROBE_S
        return True

    def resume(self, events: int, error: str, now: float) -> bool:
        """An earlier process was halted by so many: unless an event has succeeded in this one, it is open from now on."""
        if not self._after or self.open or self._succeeded():
            return False
        self._failed["before"] = set(range(events))
        self._error = error
        self._since, self._probes, self._probe_at = now, 0, now
        return True

    def closes(self) -> bool:
        """Whether it was open and an event has succeeded since."""
        was_open = self.open
        self._look()
        return was_open and not self.open

    def wait_s(self, now: float) -> float:
        """For how long no event is to be taken; 0: one may be."""
        return max(0.0, self._probe_at - now) if self.open else 0.0

    def _look(self) -> None:
        succeeded = self._succeeded()
        if succeeded > self._before:
            self._failed.clear()
            self._since = None
            self._before = succeeded

    def halted(self, agent: str, now: float) -> Halted | None:
        if self._since is None:
            return None
        failed = max(map(len, self._failed.values()), default=0)
        return Halted(agent, self._error, failed, round(now - self._since, 1), round(self.wait_s(now), 1))
