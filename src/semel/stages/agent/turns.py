"""Turns: an agent's code has the event loop step by step; others get their share of it between two events (rules 3 and 7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from semel.port import Clock
from semel.runtime import looptime
from semel.stages.agent.scheduler import Scheduler
from semel.stages.sink.open_epoch import OpenEpoch

# A body that never lets go of the event loop keeps heartbeats and commits waiting; runners let go this often.
TURN_S = 0.004
# An agent that held the loop for longer has not let go of it that often: commits, heartbeats and answers get a share of the
# time before its next event.
HELD_S = 0.05


class LoopUsage:
    """For how long one agent's code holds the event loop. A step is from where it is resumed to where it awaits something.

    `stepped_at`: when the running step began, or was looked at last; None where the code does not run. `held_s`: what is owed.
    """

    __slots__ = ("_awaiting", "_clock", "held_s", "stepped_at")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.stepped_at: float | None = None
        self.held_s = 0.0
        # The loop's time, and for how long the loop had been held, when the code began to await something within its event.
        self._awaiting: tuple[looptime.LoopTime, float] | None = None

    def begin_step(self) -> float:
        """For how long the loop was held, by whomever, while the code awaited something within its event; 0: not for long."""
        held_s = self.stop_awaiting()
        self.stepped_at = self._clock.monotonic()
        return self._owe(held_s)

    def look(self) -> float:
        """For how long the running step has held the loop since it began or was looked at; 0: not for long."""
        if self.stepped_at is None:
            return 0.0
        now = self._clock.monotonic()
        held_s, self.stepped_at = now - self.stepped_at, now
        return self._owe(held_s)

    def end_step(self, *, within_event: bool) -> None:
        """It awaits something; `within_event`: tasks that its event has started may hold the loop meanwhile."""
        self.stepped_at = None
        if within_event:
            time = looptime.running()
            time.watch()
            self._awaiting = time, time.held_s

    def stop_awaiting(self) -> float:
        """What it awaited within its event is over."""
        if self._awaiting is None:
            return 0.0
        time, before = self._awaiting
        self._awaiting = None
        held_s = time.held_s - before
        time.unwatch()
        return held_s

    def pay(self) -> float:
        """What is owed, and is not any more."""
        held_s, self.held_s = self.held_s, 0.0
        return held_s

    def _owe(self, held_s: float) -> float:
        if held_s <= HELD_S:
            return 0.0
        self.held_s += held_s
        return held_s


class Turns:
    """One agent's. `answers_for_all`: whatever holds the loop while its code awaits something is its event's doing.
    `session_lost`: told that the event in hand has held the loop for longer than the session."""

    def __init__(
        self,
        clock: Clock,
        scheduler: Scheduler,
        epoch: OpenEpoch,
        *,
        answers_for_all: Callable[[], bool],
        session_lost: Callable[[], None],
    ) -> None:
        self.usage = LoopUsage(clock)
        self._scheduler = scheduler
        self._epoch = epoch
        self._answers_for_all = answers_for_all
        self._session_lost = session_lost
        # The step that runs, or ran last, is of the run whose events count.
        self._counts = False

    # -- steps

    def begin_step(self, *, counts: bool) -> None:
        held_s = self.usage.begin_step()
        if held_s and counts:
            self._look_at_the_session(held_s, mine=self._answers_for_all())
        self._counts = counts

    def end_step(self, *, within_event: bool) -> bool:
        """Whether the step counted to its end."""
        self.look()
        self.usage.end_step(within_event=self._counts and within_event)
        return self._counts

    def look(self) -> None:
        """How long has this step held the loop? Called while what did it is still in hand."""
        held_s = self.usage.look()
        if held_s and self._counts:
            self._look_at_the_session(held_s, mine=True)

    def _look_at_the_session(self, held_s: float, *, mine: bool) -> None:
        if self._scheduler.session_is_over(self.usage.held_s, held_s) and mine:
            self._session_lost()

    def forget(self) -> None:
        """The run is over: nothing is owed for it, and the rest of its step counts no more."""
        self.usage.stop_awaiting()
        self.usage.pay()
        self._counts = False

    # -- between two events

    async def let_go(self) -> None:
        """Let others run: for a turn of the loop, or longer where this agent has held it."""
        self.look()
        await self.give_back()

    async def give_back(self) -> None:
        held_s = self.usage.pay()
        if held_s:
            await self._scheduler.catch_up(held_s)
        else:
            await asyncio.sleep(0)

    @property
    def passes(self) -> bool:
        """Nothing is to be done before the next event begins."""
        return not (self._epoch.closed or self._scheduler.catching_up)

    async def wait(self) -> None:
        """For what is to be done first; ask again then."""
        await (self._epoch.gate() if self._epoch.closed else self._scheduler.catch_up(0.0))
