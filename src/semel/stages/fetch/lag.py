"""Lag: how far behind the tasks are, and how fast they go."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from semel.port import TP, Clock
from semel.stages.fetch.fetcher import STALE_S, PartitionFetch
from semel.state.task import Task


def lag(tasks: Iterable[Task], fetches: Mapping[TP, PartitionFetch], now: float) -> dict[TP, int | None]:
    """Records between the committed position and the log's end; None where nobody has said for a while where that is."""
    lags: dict[TP, int | None] = {}
    for task in tasks:
        for topic in task.topics:
            tp = TP(topic, task.partition)
            fetch, at = fetches.get(tp), task.committed.topics.get(topic)
            if fetch is None or at is None or fetch.high_watermark < 0 or now - fetch.seen_at >= STALE_S:
                lags[tp] = None
            else:
                lags[tp] = max(0, fetch.high_watermark - at.next)
    return lags


def whole(lags: Iterable[int | None]) -> int | None:
    """Of several partitions together; None where one of them is not known."""
    known = list(lags)
    return None if None in known else sum(n for n in known if n is not None)


class Rate:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at = 0.0
        self._done = 0
        self._last = 0.0

    def of(self, tasks: Iterable[Task]) -> float:
        """Events a second since the last time this was asked for, at least a second ago; else as then."""
        now = self._clock.monotonic()
        done = sum(task.committed.counts.get("in", 0) for task in tasks)
        passed = now - self._at
        if passed >= 1.0:
            self._last = max(0, done - self._done) / passed if self._at else 0.0
            self._at, self._done = now, done
        return self._last


# From a commit on an idle machine to the longest that `commit_timeout_ms` usually allows.
COMMIT_BOUNDS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Histogram:
    """How many values were at most each of `bounds`, ascending; the last count is of those above all. Never falls."""

    def __init__(self, bounds: Sequence[float] = COMMIT_BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
