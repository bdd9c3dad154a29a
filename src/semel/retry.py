"""Retry: what happens to an event whose handler raised. The declaration and the decision, both pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast, get_args

from semel.errors import DeclarationError, DecodeError, HandlingError, OutputRefused, Reject, consists_of, contains
from semel.topic import is_whole

Then = Literal["dead", "hold", "park", "stop"]


@dataclass(frozen=True)
class Retry:
    """Try `attempts` times in all, waiting `first_delay` after the first failure, twice as long each time, with jitter.

    An event that waits for its next attempt is set aside with the later events of its key; all others go on.

    `max_delay`: the longest wait. `delays`: the waits one by one, instead of these two; the last one goes on. `fatal`: exceptions
    that go to the dead letters at once. `transient`: if given, only these are retried. A group of errors, as a `TaskGroup` raises
    one, is fatal where one of them is, and transient where all of them are.

    `then`: what comes after the last attempt. "dead": the event goes to the dead letters. "hold": so it does, and the later
    events of its key wait until its letter was replayed with success, or dropped. "park": it stays set aside with its key,
    and is tried again after the last of the waits, for as long as it takes. "stop": as "park", and its partition takes no
    further events meanwhile. DeclarationError for what none of them can be.
    """

    attempts: int = 5
    first_delay: timedelta = timedelta(milliseconds=200)
    max_delay: timedelta = timedelta(seconds=30)
    fatal: tuple[type[BaseException], ...] = ()
    transient: tuple[type[BaseException], ...] = ()
    delays: tuple[timedelta, ...] = ()
    then: Then = "dead"

    def __post_init__(self) -> None:
        for name in ("delays", "fatal", "transient"):
            if isinstance(given := getattr(self, name), list):
                object.__setattr__(self, name, tuple(cast("list[Any]", given)))
        if not is_whole(self.attempts) or self.attempts < 1:
            raise DeclarationError(f"Retry attempts={self.attempts!r}; it takes 1 (no retry) or more")
        for name, delay in (("first_delay", self.first_delay), ("max_delay", self.max_delay)):
            if not isinstance(delay, timedelta):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise DeclarationError(f"Retry {name}={delay!r}; give a timedelta, as timedelta(seconds=5)")
        if self.first_delay < timedelta(0) or self.max_delay < self.first_delay:
            raise DeclarationError(
                f"Retry first_delay={self.first_delay}, max_delay={self.max_delay}; give 0 <= first_delay <= max_delay"
            )
        if not _waits(self.delays):
            raise DeclarationError(
                f"Retry delays={self.delays!r}; give a tuple of timedeltas of 0 or more, as delays=(timedelta(seconds=1),)"
            )
        if self.then not in get_args(Then):
            raise DeclarationError(f"Retry then={self.then!r}; it takes {', '.join(map(repr, get_args(Then)))}")
        for name, kinds in (("fatal", self.fatal), ("transient", self.transient)):
            if not _exceptions(kinds):
                raise DeclarationError(
                    f"Retry {name}={kinds!r}; give a tuple of exception classes, as {name}=(OSError,)"
                )

    def delay_s(self, exc: BaseException, attempt: int, draw: float) -> float | None:
        """Seconds to wait after failed attempt number `attempt` (from 1), or None: give up.

        `draw` in [0, 1) spreads the wait over [1/2, 1] of the full delay, so that retries do not march in step.
        """
        if contains(exc, (Reject, DecodeError, OutputRefused)) or self.is_fatal(exc):
            return None
        if self.transient and not consists_of(exc, self.transient):
            return None
        if attempt >= self.attempts and self.gives_up:
            return None
        return self._full_delay_s(attempt) * (0.5 + draw / 2)

    def _full_delay_s(self, attempt: int) -> float:
        if self.delays:
            return self.delays[min(attempt, len(self.delays)) - 1].total_seconds()
        doubled = self.first_delay.total_seconds() * 2.0 ** min(attempt - 1, 64)
        return min(doubled, self.max_delay.total_seconds())

    def is_fatal(self, exc: BaseException) -> bool:
        """Whether it is declared as such, or not among what is declared as transient."""
        if self.fatal and contains(exc, self.fatal):
            return True
        return bool(self.transient) and not consists_of(exc, (*self.transient, HandlingError))

    @property
    def gives_up(self) -> bool:
        """An event that has used up its attempts goes to the dead letters."""
        return self.then in ("dead", "hold")

    def holds(self, exc: BaseException) -> bool:
        """Whether the key of an event that ends so waits for its dead letter. What was declared to be no loss, by `Reject` or as
        `fatal`, holds up nobody."""
        return self.then == "hold" and not contains(exc, (Reject, *self.fatal))

    def why_final(self, exc: BaseException) -> str:
        """Why the declaration has it that this is not tried again; empty where it has not."""
        if self.fatal and contains(exc, self.fatal):
            return "among fatal="
        return "not among transient=" if self.is_fatal(exc) else ""

    @property
    def longest_delay_s(self) -> float:
        return max(self.delays or (self.max_delay,)).total_seconds()


def _waits(delays: Any) -> bool:
    return isinstance(delays, tuple) and all(
        isinstance(delay, timedelta) and delay >= timedelta(0) for delay in cast("tuple[Any, ...]", delays)
    )


def _exceptions(kinds: Any) -> bool:
    return isinstance(kinds, tuple) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in cast("tuple[Any, ...]", kinds)
    )
