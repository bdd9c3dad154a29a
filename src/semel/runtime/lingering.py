"""Lingering: events that their agents do not finish, said while it lasts: which agent, which record, where it waits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from semel.hand import Hand
from semel.port import Clock
from semel.stages import body
from semel.stages.agent import Lane

log = logging.getLogger("semel.agent")

LOOK_S = 0.5
# An event is said after so long, and again this often while it lasts; of an agent whose every event waits at one place, so is
# one a minute.
SAY_S, AGAIN_S = 1.0, 60.0
# An agent that is at one event for so many handler timeouts makes the worker not ready.
UNREADY_TIMEOUTS = 3


@dataclass(frozen=True, slots=True)
class InHand:
    """`waits_at`: the innermost line of the agent's own code; `seconds`: for how long."""

    agent: str
    record: str
    seconds: float
    waits_at: str


class Lingering:
    """`run` looks every half second; nothing is counted where events are handled."""

    def __init__(self, lanes: Sequence[Lane], clock: Clock, *, handler_timeout_ms: int) -> None:
        self._lanes = lanes
        self._clock = clock
        self._unready_s = UNREADY_TIMEOUTS * handler_timeout_ms / 1000
        # What each lane is at, since when, and when that is to be said next.
        self._at: dict[Lane, tuple[Hand, int, float, float]] = {}
        # When an agent was last said to wait at a place, of which event, and of how many others it was not said since.
        self._said: dict[tuple[str, str], tuple[float, int, int]] = {}

    async def run(self) -> None:
        while True:
            await self._clock.sleep(LOOK_S)
            now = self._clock.monotonic()
            for lane in self._lanes:
                self._look(lane, now)

    def _look(self, lane: Lane, now: float) -> None:
        hand = lane.hand
        if not hand.holding:
            self._at.pop(lane, None)
            return
        at = self._at.get(lane)
        if at is None or at[0] is not hand or at[1] != hand.event:
            self._at[lane] = hand, hand.event, now, now + SAY_S
        elif now >= at[3]:
            self._at[lane] = hand, hand.event, at[2], now + AGAIN_S
            self._say(lane, hand.event, now - at[2], now)

    def _say(self, lane: Lane, event: int, seconds: float, now: float) -> None:
        place = body.place(lane.code)
        said_at, said_of, more = self._said.get((lane.plan.name, place), (-AGAIN_S, 0, 0))
        if now - said_at < AGAIN_S:
            if event != said_of:
                self._said[(lane.plan.name, place)] = said_at, event, more + 1
            return
        self._said[(lane.plan.name, place)] = now, event, 0
        log.warning(
            "agent %s has been at %s for %.1f s; it waits at %s%s. It handles one event at a time, so its other events on this "
            "worker wait, too, of whatever partition",
            lane.plan.name, lane.where, seconds, place, f" ({more} more events waited there)" if more else "",
        )  # fmt: skip

    def in_hand(self) -> list[InHand]:
        """The events that have been in hand for longer than a second."""
        now = self._clock.monotonic()
        return [
            InHand(lane.plan.name, lane.where, round(now - since, 1), body.place(lane.code))
            for lane, (hand, event, since, _) in self._at.items()
            if lane.hand is hand and hand.holding and hand.event == event and now - since >= SAY_S
        ]

    def unready(self) -> list[InHand]:
        """Those that have been for so long that somebody should look."""
        return [found for found in self.in_hand() if found.seconds >= self._unready_s]
