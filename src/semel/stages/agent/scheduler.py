"""Scheduler: when a runner may take an event, and what goes before it where one has held the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from semel.port import Clock
from semel.runtime import looptime

if TYPE_CHECKING:
    from semel.stages.agent.runner import AgentRunner
    from semel.stages.agent.slots import AgentSlots

# After an event that held the loop the others get, in loop time, at least the first share of it (at most so long), and up to
# the second where a commit or heartbeat waits. A commit takes some ten milliseconds.
LEAST_SHARE, LEAST_S, MOST_SHARE = 1 / 20, 0.05, 1 / 4
# A session was lost while several events were in hand, and any of them may have done it: for so long one at a time is.
APART_S = 120.0


class Scheduler:
    """One for all runners of a worker, and the agents that they are slots of. What it asks of the worker is given as functions:

    `open`: events are taken at all. `uncommitted`: something is done, or on its way, that is not committed. `isolating`: an
    epoch is to hold one event, so that a refused record names it (rule 2). `one_by_one`: a work unit is to hold one event.
    `behind`: a commit, a heartbeat or a takeover waits for the loop. `silent`: the group has not been heard for a session
    in which an agent held the loop for so many seconds.
    """

    def __init__(
        self,
        runners: Sequence[AgentRunner],
        agents: Sequence[AgentSlots],
        clock: Clock,
        *,
        handler_timeout_ms: int,
        open: Callable[[], bool],
        uncommitted: Callable[[], bool],
        isolating: Callable[[], bool],
        one_by_one: Callable[[], bool],
        behind: Callable[[], bool],
        silent: Callable[[float], bool],
    ) -> None:
        self._runners = runners
        self._agents = agents
        self._clock = clock
        self._patient_s = handler_timeout_ms / 1000
        self._open = open
        self._uncommitted = uncommitted
        self._isolating = isolating
        self._one_by_one = one_by_one
        self._behind = behind
        self._silent = silent
        # The runner that is to have the only event in hand, and since when it waits for that.
        self._alone: tuple[AgentRunner, float] | None = None
        self._catching_up = asyncio.Lock()
        self._owed_s = 0.0
        self._apart_until = 0.0
        # Nothing but agents runs user code on this loop: no timer, no page, no task of an app.
        self.only_agents = True
        # Whether the process ran while the loop was held for so long; a process that was stopped as a whole did not.
        self.awake: Callable[[float], bool] = lambda held_s: True

    # -- taking

    def may_take(self, runner: AgentRunner) -> bool:
        if not self._open():
            return False
        if self._alone is not None and self._alone[0] is not runner:
            asked, since = self._alone
            if asked.slots is not runner.slots or asked.unit is not None:
                return False
            # Of slots of one agent whichever comes: the one that asked may be in line behind it.
            self._alone = runner, since
        if self._apart_until and self._apart and any(other.unit is not None for other in self._runners):
            return False
        return not self._isolating() or not (
            self._uncommitted() or any(runner.unit is not None for runner in self._runners)
        )

    @property
    def _apart(self) -> bool:
        if self._clock.monotonic() >= self._apart_until:
            self._apart_until = 0.0
        return self._apart_until > 0

    @property
    def one_by_one(self) -> bool:
        """A work unit is to hold one event."""
        return self._isolating() or self._one_by_one()

    def has_all_to_itself(self, runner: AgentRunner) -> bool:
        """Whether no other runner has events. From now on none takes any, until this one, or another slot of its agent, has given
        back what it takes."""
        now = self._clock.monotonic()
        if self._alone is None:
            self._alone = runner, now
        mine, since = self._alone
        # One that does not end holds nobody up for ever.
        waited = now - since > self._patient_s
        return mine is runner and (waited or all(other.unit is None for other in self._runners if other is not runner))

    def released(self, runner: AgentRunner) -> None:
        """The runner has given its work unit back: others may have waited for that."""
        if self._alone is not None and self._alone[0] is runner:
            self._alone = None
        if len(self._agents) > 1:
            for agent in self._agents:
                if agent is not runner.slots and agent.queue.ready:
                    agent.queue.wake.set()

    def start_over(self) -> None:
        """All runners have given up what they had."""
        self._alone = None

    # -- the event loop

    async def catch_up(self, held_s: float) -> None:
        """Nothing ran for so long: let what waited for it run before the next event, within bounds.

        In loop time, and all runners wait for it, so that some that hold the loop in turns cannot use it up between them.
        """
        self._owed_s += held_s
        time = looptime.running()
        time.begin()
        try:
            async with self._catching_up:
                held_s, self._owed_s = self._owed_s, 0.0
                began = time.now()
                least, most = began + min(held_s * LEAST_SHARE, LEAST_S), began + held_s * MOST_SHARE
                while (now := time.now()) < most and (now < least or self._behind()):
                    await self._clock.sleep(0.002)
        finally:
            time.end()

    @property
    def catching_up(self) -> bool:
        return self._owed_s > 0 or self._catching_up.locked()

    def answers_for_all(self, runner: AgentRunner) -> bool:
        """Whatever held the loop while this runner's agent awaited something can only be what its event has started."""
        return self.only_agents and not any(other.context.holding for other in self._runners if other is not runner)

    def session_is_over(self, held_s: float, last_s: float) -> bool:
        """An agent has just held the loop for so long, of it `last_s` in one piece: whether that has cost the session.

        A session that is over for another reason, as a broker that is away, is no event's fault.
        """
        over = self._silent(held_s) and self.awake(last_s)
        if over and (self._apart_until or (self.only_agents and sum(r.context.holding for r in self._runners) > 1)):
            self._apart_until = self._clock.monotonic() + APART_S
        return over
