"""Unfinished: events that their agents do not finish, and records that they do not ask for, said while it lasts: which agent,
which record, where it waits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from semel.errors import HandlerTimeout
from semel.port import Clock
from semel.stages.agent import agent_loop
from semel.stages.agent.runner import AgentRunner
from semel.state.event_context import EventContext

log = logging.getLogger("semel.agent")

LOOK_S = 0.5
# Within a timeout it is looked so often: an event is seen a look late at most, and ended a look late.
LOOKS = 16
# An event is said after so long, and again this often while it lasts; of an agent whose every event waits at one place, so is
# one a minute.
SAY_S, AGAIN_S = 1.0, 60.0
# An agent that is at one event for so many handler timeouts, or asks for none while records wait, makes the worker not ready;
# so does one that ended so many times in a row before it asked for a record.
UNREADY_TIMEOUTS = 3
UNREADY_STARTS = 3


@dataclass(frozen=True, slots=True)
class UnfinishedEvent:
    """`waits_at`: the innermost line of the agent's own code; `seconds`: for how long."""

    agent: str
    record: str
    seconds: float
    waits_at: str


@dataclass(frozen=True, slots=True)
class NotAsking:
    """`record`: the first that waits, empty where none does; `seconds`: for how long it was not asked for; `ended`: how often
    in a row the agent's code ended before it asked for a record; `why`: where it stands, or what it ended with."""

    agent: str
    record: str
    seconds: float
    ended: int
    why: str


class UnfinishedEvents:
    """`run` looks every half second, or more often where a timeout is short; nothing is counted where events are handled. An
    event that takes longer than its pipeline's `timeout` has failed; for how long code held the loop meanwhile does not count,
    since what it waits for may have been there before it could look."""

    def __init__(
        self, runners: Sequence[AgentRunner], clock: Clock, stats: dict[str, float], *, handler_timeout_ms: int
    ) -> None:
        self._runners = runners
        self._clock = clock
        self._stats = stats
        self._patient_s = handler_timeout_ms / 1000
        self._look_s = min(LOOK_S, self._patient_s / 4)
        self._unready_s = UNREADY_TIMEOUTS * self._patient_s
        # What each runner is at, since when, and when that is to be said next.
        self._at: dict[AgentRunner, tuple[EventContext, int, float, float]] = {}
        # For how long the loop has been seen to run.
        self._ran_s = 0.0
        # By that count, since when an event with a timeout is in hand.
        self._begun: dict[AgentRunner, float] = {}
        # Events that have taken longer than handler_timeout_ms, and were counted.
        self._left_out: dict[AgentRunner, tuple[EventContext, int]] = {}
        # When an agent was last said to wait at a place, of which event, and of how many others it was not said since.
        self._said_of_place: dict[tuple[str, str], tuple[float, tuple[EventContext, int] | None, int]] = {}
        # Runners that ask for no record while some wait: in which run and after how many work units, since when, and when that is
        # to be said next.
        self._idle: dict[AgentRunner, tuple[tuple[EventContext, int], float, float]] = {}

    async def run(self) -> None:
        timeouts_s = [runner.plan.timeout_s for runner in self._runners if runner.plan.timeout_s is not None]
        look_s = min([self._look_s, *(timeout_s / LOOKS for timeout_s in timeouts_s)])
        now = self._clock.monotonic()
        while True:
            before = now
            await self._clock.sleep(look_s)
            now = self._clock.monotonic()
            self._ran_s += min(now - before, 2 * look_s)
            for runner in self._runners:
                self._look(runner, now)
                self._look_whether_it_asks(runner, now)

    def _look(self, runner: AgentRunner, now: float) -> None:
        context = runner.context
        if not context.holding:
            self._at.pop(runner, None)
            return
        at = self._at.get(runner)
        if at is None or at[0] is not context or at[1] != context.event:
            self._at[runner] = context, context.event, now, now + SAY_S
            self._begun[runner] = self._ran_s
            return
        if self._timed_out(runner):
            return
        if now >= at[3]:
            self._at[runner] = context, context.event, at[2], now + AGAIN_S
            self._say(runner, (context, context.event), now - at[2], now)
        if now - at[2] >= self._patient_s and self._left_out.get(runner) != (context, context.event):
            self._left_out[runner] = context, context.event
            self._stats["left_out"] += 1
            log.warning(
                "agent %s has been handling %s for over %.0f ms; it is left out of the epochs until it is done",
                runner.plan.name, runner.where, self._patient_s * 1000,
            )  # fmt: skip

    def _timed_out(self, runner: AgentRunner) -> bool:
        timeout_s = runner.plan.timeout_s
        if timeout_s is None:
            return False
        if runner.opens:
            # It waits for the engine, and has its time for what comes after.
            self._begun[runner] = self._ran_s
        if self._ran_s - self._begun[runner] < timeout_s:
            return False
        self._stats["timed_out"] += 1
        runner.time_out(HandlerTimeout(timeout_s, agent_loop.stands_at(runner)))
        return True

    def _say(self, runner: AgentRunner, event: tuple[EventContext, int], seconds: float, now: float) -> None:
        place = agent_loop.stands_at(runner)
        said_at, said_of, more = self._said_of_place.get((runner.plan.name, place), (-AGAIN_S, None, 0))
        if now - said_at < AGAIN_S:
            if event != said_of:
                self._said_of_place[(runner.plan.name, place)] = said_at, event, more + 1
            return
        self._said_of_place[(runner.plan.name, place)] = now, event, 0
        log.warning(
            "agent %s has been at %s for %.1f s; it waits at %s%s. %s",
            runner.plan.name, runner.where, seconds, place, f" ({more} more events waited there)" if more else "",
            runner.slots.who_waits,
        )  # fmt: skip

    def _look_whether_it_asks(self, runner: AgentRunner, now: float) -> None:
        cursor = runner.neglected
        if cursor is None:
            # A body that starts again is at nothing for a moment, too.
            if runner.unit is not None or runner.asking is runner.context:
                self._idle.pop(runner, None)
            return
        run, at = (runner.context, runner.taken), self._idle.get(runner)
        if at is None or at[0] != run:
            self._idle[runner] = run, now, now + self._patient_s
        elif now >= at[2]:
            self._idle[runner] = run, at[1], now + AGAIN_S
            idle = self._not_asking(runner, now)
            log.warning(
                "agent %s has asked for no record for %.1f s, while %d wait, first %s; %s. Until its code comes to its loop and "
                "asks, none of them is handled",
                idle.agent, idle.seconds, sum(c.buffered for c in runner.queue.ready), idle.record, idle.why,
            )  # fmt: skip

    def _not_asking(self, runner: AgentRunner, now: float) -> NotAsking:
        cursor, at = runner.neglected, self._idle.get(runner)
        ended, error = runner.failed_starts, runner.start_error
        if runner.misuse is not None:
            why = str(runner.misuse)
        elif not ended:
            why = f"it stands at {agent_loop.stands_at(runner)}"
        else:
            how = f"with {error}" if error else "by returning"
            why = f"its code has ended {ended} times in a row before it asked for one, {how}"
        record = "" if cursor is None else f"{cursor.tp.topic}[{cursor.tp.partition}]@{cursor.position}"
        return NotAsking(runner.plan.name, record, 0.0 if at is None else round(now - at[1], 1), ended, why)

    def not_asking(self) -> list[NotAsking]:
        """Agents that keep records waiting for longer than a handler timeout, whose code ends again and again before that, or
        that ask in a way that is refused."""
        return self._all_not_asking(self._patient_s)

    def _all_not_asking(self, patient_s: float) -> list[NotAsking]:
        now = self._clock.monotonic()
        return [
            self._not_asking(runner, now)
            for runner in self._runners
            if runner.misuse is not None
            or runner.failed_starts >= UNREADY_STARTS
            or self._waited(runner, now) >= patient_s
        ]

    def _waited(self, runner: AgentRunner, now: float) -> float:
        at = self._idle.get(runner)
        return now - at[1] if at is not None and at[0] == (runner.context, runner.taken) and runner.neglected else 0.0

    def in_hand(self) -> list[UnfinishedEvent]:
        """The events that have been in hand for longer than a second."""
        now = self._clock.monotonic()
        return [
            UnfinishedEvent(runner.plan.name, runner.where, round(now - since, 1), agent_loop.stands_at(runner))
            for runner, (context, event, since, _) in self._at.items()
            if runner.context is context and context.holding and context.event == event and now - since >= SAY_S
        ]

    def unready(self) -> list[UnfinishedEvent]:
        """Those that have been for so long that somebody should look."""
        return [event for event in self.in_hand() if event.seconds >= self._unready_s]

    def unready_not_asking(self) -> list[NotAsking]:
        """As `unready`, of agents that ask for nothing."""
        return self._all_not_asking(self._unready_s)
