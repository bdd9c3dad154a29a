"""Rate limiter: how many events an agent may be given now, of what its pipeline may handle in all (protocol rule 3)."""

from __future__ import annotations

from dataclasses import dataclass

from semel.port import Clock
from semel.rate_limit import Bucket, RateLimit

# Events that wait do so for so long at least, where that costs none of what may come: at a high rate not each has a wait, a work
# unit and an epoch of its own.
LEAST_WAIT_S = 0.005


@dataclass(frozen=True, slots=True)
class Limited:
    """`per_second`: of all workers; `here_per_second`: this one's share; `limited_s`: for how long it had events to handle, and
    let them wait for that; `limits`: it does now."""

    agent: str
    per_second: float
    here_per_second: float
    limited_s: float
    limits: bool


class RateLimiter:
    """One agent's on this worker. `begin`: which part of the partitions is this worker's.

    What is in the bucket is kept when that changes: all workers together never hold more than the burst, since a new one begins
    with nothing, and between two assignments none gets anything.
    """

    def __init__(self, limit: RateLimit, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._share = 0.0
        self._bucket = Bucket(0.0, clock.monotonic())
        # How many are waited for at a time.
        self._wanted = 1
        # Since when there is something to handle that is not to be handled yet; how long that was before.
        self._since: float | None = None
        self._limited_s = 0.0

    @property
    def here_per_second(self) -> float:
        return self._limit.per_second * self._share

    @property
    def _most(self) -> float:
        return max(1.0, self._limit.at_once * self._share)

    @property
    def unit(self) -> int:
        """How many events may be taken to be handled one after the other: as many as a hundredth of a second allows. While the
        first of them waits for what it depends on the others are counted already, and come all at once then."""
        return max(1, int(self.here_per_second / 100))

    def _fill(self) -> Bucket:
        self._bucket = self._bucket.filled(self.here_per_second, self._most, self._clock.monotonic())
        return self._bucket

    def begin(self, share: float) -> None:
        """From now on this part of the partitions is this worker's; 0: none."""
        if self._share:
            self._fill()
        self._share = share
        self._bucket = Bucket(self._bucket.tokens, self._clock.monotonic())
        self.over()

    def allowed(self, at_once: int = 1) -> int:
        """How many events may be taken now: none while there may be fewer than `at_once`, or than ever may be at once."""
        self._wanted = max(1, min(at_once, int(self._most)))
        events = self._fill().events
        return events if events >= self._wanted else 0

    def wait_s(self) -> float:
        """There is something to take, and nothing is allowed: how long until it is."""
        if self._since is None:
            self._since = self._clock.monotonic()
        rate, bucket = self.here_per_second, self._bucket
        return max(bucket.wait_s(rate, self._wanted), min(LEAST_WAIT_S, bucket.wait_s(rate, int(self._most))))

    def took(self, events: int) -> None:
        self._bucket = self._fill().less(events)
        self.over()

    def gave_back(self, events: int) -> None:
        """They were taken, and the agent was not given them."""
        self._bucket = self._fill().less(-events)

    def over(self) -> None:
        """Nothing waits for the limit any more."""
        if self._since is not None:
            self._limited_s += self._clock.monotonic() - self._since
            self._since = None

    @property
    def limits(self) -> bool:
        """There is something to handle that waits for nothing but the limit."""
        return self._since is not None

    @property
    def next_at(self) -> float | None:
        """When what waits may be handled, in monotonic seconds; None where nothing does."""
        return None if self._since is None else self._bucket.at + self.wait_s()

    @property
    def limited_s(self) -> float:
        return self._limited_s + (0.0 if self._since is None else self._clock.monotonic() - self._since)

    def now(self, agent: str) -> Limited:
        here, limited = round(self.here_per_second, 3), round(self.limited_s, 1)
        return Limited(agent, round(self._limit.per_second, 3), here, limited, self.limits)
