"""Due timers: outputs whose time has come join the epoch that is about to be cut, and leave the log of timers in it (rule 25)."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from semel.errors import OutputRefused, SemelError
from semel.plan import Plan
from semel.port import Clock, RpcError, RpcLost
from semel.stages.commit.ownership import Ownership
from semel.stages.fetch.lag import Histogram
from semel.stages.sink.destination import Destination, ProducerRecord
from semel.stages.sink.open_epoch import OpenEpoch
from semel.state import lineage
from semel.state.task import Task
from semel.state.timers import TIMER_BYTES, DelayedOutput, due_ms
from semel.topic import Topic, UnnamedTopic

log = logging.getLogger("semel.engine")

# The wall clock may be set: nobody waits for longer without a look at it.
LOOK_S = 1.0
# So many join one epoch: they do so in one go, and hold the event loop for some 20 us each.
AT_ONCE = 4_000
# One that its topic does not take is tried again after this long.
HOLD_S = 10.0
# A topic that is being asked for is looked for again this soon.
_ASKED_S = 0.02
LATENESS_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0)


class Held(NamedTuple):
    """Why a timer is not sent, and until when it is not tried, in monotonic seconds."""

    why: str
    until: float


class DueTimers:
    """Of all tasks that run. `lateness`: from when each was due to when it was committed.

    `destination`: of the topics that are known, the one so named; `open_destination` gets to know another; `changed` is set
    where that is done.
    """

    def __init__(
        self,
        owned: Ownership,
        epoch: OpenEpoch,
        plan: Plan,
        clock: Clock,
        *,
        destination: Callable[[str], Destination | None],
        open_destination: Callable[[Topic], Awaitable[Destination]],
        changed: asyncio.Event,
    ) -> None:
        self._owned = owned
        self._epoch = epoch
        self._plan = plan
        self._clock = clock
        self._destination = destination
        self._open_destination = open_destination
        self._changed = changed
        self.lateness = Histogram(LATENESS_BOUNDS_S)
        self._held: dict[tuple[int, bytes], Held] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._unopened: dict[str, Held] = {}
        # What the epoch that is on its way sends: by task and row.
        self._sealed: list[tuple[int, bytes]] = []

    async def close(self) -> None:
        for asking in self._asking.values():
            asking.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    # -- when

    def wait_s(self) -> float | None:
        """How long until one may be sent, 0 where one may be now; None where none is pending."""
        soonest: float | None = None
        for task in self._owned.running:
            timers = task.timers
            if timers is None or not timers.count:
                continue
            aside, due = timers.aside_until, timers.next_due_ms
            waits = [] if aside is None else [aside - self._clock.monotonic()]
            if due is not None:
                waits.append(due / 1000 - self._clock.time())
            for wait in waits:
                soonest = max(0.0, wait) if soonest is None else min(soonest, max(0.0, wait))
        return soonest

    # -- sending

    def send(self, most: int = AT_ONCE) -> None:
        """Those that are due, the first due first, as many as the epoch takes. StoreError; RecoveryError for what this version
        cannot read."""
        self._sealed = []
        now, now_ms = self._clock.monotonic(), int(self._clock.time() * 1000)
        heads: list[tuple[int, int, Task]] = []
        for task in self._owned.running:
            timers = task.timers
            if timers is not None and timers.count:
                timers.bring_back(now)
                if (due := timers.next_due_ms) is not None and due <= now_ms:
                    heads.append((due, task.partition, task))
        heapq.heapify(heads)
        epoch = self._epoch
        while heads and len(self._sealed) < most and epoch.bytes < epoch.limit_bytes:
            _, partition, task = heads[0]
            timers = task.timers
            assert timers is not None
            taken = timers.take(now_ms)
            if taken is None:
                heapq.heappop(heads)
                continue
            row, output = taken
            out = self._record(task, row, output, now, now_ms)
            if out is not None:
                timers.done(row, out.tp.topic if lineage.of(out.headers) is not None else "", output.name)
                epoch.add((out,), out.size + TIMER_BYTES)
                task.touched = True
                self._sealed.append((partition, row))
            due = timers.next_due_ms
            if due is None or due > now_ms:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (due, partition, task))

    def _record(self, task: Task, row: bytes, output: DelayedOutput, now: float, now_ms: int) -> ProducerRecord | None:
        """None where it cannot be sent now; then it is set aside."""
        place, timers = (task.partition, row), task.timers
        assert timers is not None
        if self._held:
            held = self._held.get(place)
            if held is not None and held.until > now:
                timers.set_aside(row, held.until)
                return None
        destination = self._destination(output.topic)
        if destination is None:
            timers.set_aside(row, self._ask_for(output.topic, place, now))
            return None
        try:
            out = destination.checked(
                output.key, output.value, output.headers, output.timestamp, task.partition, now_ms
            )
        except OutputRefused as exc:
            timers.set_aside(row, self._hold(place, str(exc), now))
            return None
        self._held.pop(place, None)
        return out

    def _hold(self, place: tuple[int, bytes], why: str, now: float) -> float:
        if place not in self._held:
            log.warning("a timer of %s[%d] stays pending, and is tried again every %d s: %s", self._plan.timers_topic, place[0],
                        HOLD_S, why)  # fmt: skip
        self._held[place] = Held(why, now + HOLD_S)
        return now + HOLD_S

    def _ask_for(self, topic: str, place: tuple[int, bytes], now: float) -> float:
        """A topic that no event has named since this worker started. When it is to be looked for again."""
        unopened = self._unopened.get(topic)
        if unopened is not None and unopened.until > now:
            return self._hold(place, unopened.why, now)
        if topic not in self._asking:
            self._asking[topic] = asyncio.create_task(self._open(topic))
        return now + _ASKED_S

    async def _open(self, name: str) -> None:
        try:
            await self._open_destination(UnnamedTopic(name, key=bytes, value=bytes))
            self._unopened.pop(name, None)
        except (SemelError, RpcError, RpcLost) as exc:
            self._unopened[name] = Held(str(exc), self._clock.monotonic() + HOLD_S)
        finally:
            del self._asking[name]
            self._changed.set()

    # -- what became of it

    def committed(self) -> None:
        """The epoch that was cut last is committed."""
        if self._sealed:
            now_ms = self._clock.time() * 1000
            for _, row in self._sealed:
                self.lateness.add(max(0.0, (now_ms - due_ms(row)) / 1000))
            self._sealed = []

    def not_committed(self, refused: str = "") -> None:
        """It is not. `refused`: why a broker refuses a record of it, where that can be no other's than this one's."""
        sealed, self._sealed = self._sealed, []
        if refused and len(sealed) == 1:
            self._hold(sealed[0], refused, self._clock.monotonic())

    @property
    def held_up(self) -> dict[int, str]:
        """By task, why one of its timers that are due is not sent."""
        now, reasons = self._clock.monotonic(), dict[int, str]()
        for place, held in [*self._held.items()]:
            if now - held.until > 2 * HOLD_S:
                # Whoever has its task now knows better.
                del self._held[place]
            elif place[0] in self._owned.tasks:
                reasons[place[0]] = held.why
        return reasons
