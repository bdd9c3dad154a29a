"""Rate limit: how many events a pipeline handles in a span of time. The declaration and the token bucket, both pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from semel.errors import DeclarationError
from semel.topic import is_whole

# Unless it is declared otherwise, so much of what may come may come at once.
BURST_S = 0.1
# Times are floats: what comes at the very moment for which it was asked to wait is not to wait again.
ROUNDING = 1e-6


@dataclass(frozen=True)
class RateLimit:
    """At most `events` in the span `per`, by all workers of a pipeline together.

    A worker takes of it what it has of the partitions: with 3 of 12 a quarter. So it needs to ask nobody, and they never come
    to more; where events lie unevenly over the workers they come to less.

    `burst`: how many may come at once, of all workers, after some time in which fewer came than may; unless given, as many as may
    come in a tenth of a second. Each worker has one at least. DeclarationError for what none of them can be.
    """

    events: float
    per: timedelta = timedelta(seconds=1)
    burst: int | None = None

    def __post_init__(self) -> None:
        events, per, burst = self.events, self.per, self.burst
        if isinstance(events, bool) or not isinstance(events, (int, float)) or not 0 < events < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DeclarationError(f"RateLimit events={events!r}; it takes a number above 0, as RateLimit(100)")
        if not isinstance(per, timedelta) or per <= timedelta(0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DeclarationError(f"RateLimit per={per!r}; give a timedelta above 0, as per=timedelta(minutes=1)")
        if burst is not None and (not is_whole(burst) or burst < 1):
            raise DeclarationError(f"RateLimit burst={burst!r}; it takes a whole number, one or more")

    @property
    def per_second(self) -> float:
        return self.events / self.per.total_seconds()

    @property
    def at_once(self) -> float:
        """How many may come at once."""
        return max(1.0, self.per_second * BURST_S) if self.burst is None else float(self.burst)


class Bucket(NamedTuple):
    """`tokens`: how many events may be taken at `at`, in monotonic seconds."""

    tokens: float
    at: float

    def filled(self, rate: float, most: float, now: float) -> Bucket:
        """As it is at `now`, after `rate` tokens a second; it holds `most`."""
        return Bucket(min(most, self.tokens + rate * max(0.0, now - self.at)), max(now, self.at))

    def less(self, events: float) -> Bucket:
        return Bucket(self.tokens - events, self.at)

    @property
    def events(self) -> int:
        """How many whole events it has."""
        return max(0, int(self.tokens + ROUNDING))

    def wait_s(self, rate: float, events: int) -> float:
        """How long until it has so many, if nothing is taken meanwhile."""
        short = events - self.tokens
        if short <= ROUNDING:
            return 0.0
        return short / rate if rate > 0 else math.inf
