"""Retry: what happens to an event whose handler raised. The declaration and the decision, both pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from semel.errors import DeclarationError, DecodeError, OutputRefused, Reject
from semel.topic import is_whole


@dataclass(frozen=True)
class Retry:
    """Try `attempts` times in all, waiting `first_delay` after the first failure, twice as long each time, with jitter.

    `max_delay`: the longest wait. `fatal`: exceptions that go to the dead letters at once. `transient`: if given, only
    these are retried. DeclarationError where they cannot be.
    """

    attempts: int = 5
    first_delay: timedelta = timedelta(milliseconds=200)
    max_delay: timedelta = timedelta(seconds=30)
    fatal: tuple[type[BaseException], ...] = ()
    transient: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if not is_whole(self.attempts) or self.attempts < 1:
            raise DeclarationError(f"Retry attempts={self.attempts!r}; it takes 1 (no retry) or more")
        for name, delay in (("first_delay", self.first_delay), ("max_delay", self.max_delay)):
            if not isinstance(delay, timedelta):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise DeclarationError(f"Retry {name}={delay!r}; give a timedelta, as timedelta(seconds=5)")
        if self.first_delay < timedelta(0) or self.max_delay < self.first_delay:
            raise DeclarationError(
                f"Retry first_delay={self.first_delay}, max_delay={self.max_delay}; give 0 <= first_delay <= max_delay"
            )
        for name, kinds in (("fatal", self.fatal), ("transient", self.transient)):
            if not _exceptions(kinds):
                raise DeclarationError(
                    f"Retry {name}={kinds!r}; give a tuple of exception classes, as {name}=(OSError,)"
                )

    def delay_s(self, exc: BaseException, attempt: int, draw: float) -> float | None:
        """Seconds to wait after failed attempt number `attempt` (from 1), or None: give up.

        `draw` in [0, 1) spreads the wait over [1/2, 1] of the full delay, so that retries do not march in step.
        """
        if isinstance(exc, (Reject, DecodeError, OutputRefused)) or (self.fatal and isinstance(exc, self.fatal)):
            return None
        if self.transient and not isinstance(exc, self.transient):
            return None
        if attempt >= self.attempts:
            return None
        doubled = self.first_delay.total_seconds() * 2.0 ** min(attempt - 1, 64)
        return min(doubled, self.max_delay.total_seconds()) * (0.5 + draw / 2)


def _exceptions(kinds: Any) -> bool:
    return isinstance(kinds, tuple) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in cast("tuple[Any, ...]", kinds)
    )
