"""Lingering: events that their agents do not finish, and records that they do not ask for, said while it lasts: which agent,
which record, where it waits.
"""

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
# An agent that is at one event for so many handler timeouts, or asks for none while records wait, makes the worker not ready;
# so does one that ended so many times in a row before it asked for a record.
UNREADY_TIMEOUTS = 3
UNREADY_STARTS = 3


@dataclass(frozen=True, slots=True)
class InHand:
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


class Lingering:
    """`run` looks every half second; nothing is counted where events are handled."""

    def __init__(self, lanes: Sequence[Lane], clock: Clock, *, handler_timeout_ms: int) -> None:
        self._lanes = lanes
        self._clock = clock
        self._patient_s = handler_timeout_ms / 1000
        self._unready_s = UNREADY_TIMEOUTS * self._patient_s
        # What each lane is at, since when, and when that is to be said next.
        self._at: dict[Lane, tuple[Hand, int, float, float]] = {}
        # When an agent was last said to wait at a place, of which event, and of how many others it was not said since.
        self._said: dict[tuple[str, str], tuple[float, int, int]] = {}
        # Lanes that ask for no record while some wait: in which run and after how many slices, since when, and when that is
        # to be said next.
        self._idle: dict[Lane, tuple[tuple[Hand, int], float, float]] = {}

    async def run(self) -> None:
        while True:
            await self._clock.sleep(LOOK_S)
            now = self._clock.monotonic()
            for lane in self._lanes:
                self._look(lane, now)
                self._look_whether_it_asks(lane, now)

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

    def _look_whether_it_asks(self, lane: Lane, now: float) -> None:
        cursor = lane.neglected
        if cursor is None:
            # A body that starts again is at nothing for a moment, too.
            if lane.slice is not None or lane.asking is lane.hand:
                self._idle.pop(lane, None)
            return
        run, at = (lane.hand, lane.taken), self._idle.get(lane)
        if at is None or at[0] != run:
            self._idle[lane] = run, now, now + self._patient_s
        elif now >= at[2]:
            self._idle[lane] = run, at[1], now + AGAIN_S
            found = self._not_asking(lane, now)
            log.warning(
                "agent %s has asked for no record for %.1f s, while %d wait, first %s; %s. Until its code comes to its loop and "
                "asks, none of them is handled",
                found.agent, found.seconds, sum(c.buffered for c in lane.ready), found.record, found.why,
            )  # fmt: skip

    def _not_asking(self, lane: Lane, now: float) -> NotAsking:
        cursor, at = lane.neglected, self._idle.get(lane)
        ended, error = lane.failed_starts, lane.start_error
        if not ended:
            why = f"it stands at {body.place(lane.code)}"
        else:
            how = f"with {error}" if error else "by returning"
            why = f"its code has ended {ended} times in a row before it asked for one, {how}"
        record = "" if cursor is None else f"{cursor.tp.topic}[{cursor.tp.partition}]@{cursor.position}"
        return NotAsking(lane.plan.name, record, 0.0 if at is None else round(now - at[1], 1), ended, why)

    def not_asking(self) -> list[NotAsking]:
        """Agents that keep records waiting for longer than a handler timeout, or whose code ends again and again before that."""
        now = self._clock.monotonic()
        return [
            self._not_asking(lane, now)
            for lane in self._lanes
            if lane.failed_starts >= UNREADY_STARTS or self._waited(lane, now) >= self._patient_s
        ]

    def _waited(self, lane: Lane, now: float) -> float:
        at = self._idle.get(lane)
        return now - at[1] if at is not None and at[0] == (lane.hand, lane.taken) and lane.neglected else 0.0

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

    def unready_not_asking(self) -> list[NotAsking]:
        """As `unready`, of agents that ask for nothing."""
        return [f for f in self.not_asking() if f.ended >= UNREADY_STARTS or f.seconds >= self._unready_s]
