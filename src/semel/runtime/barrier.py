"""The barrier: running events end, or are left out of the epoch; nobody begins another one meanwhile (rules 3 and 7)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from semel.hand import Hand
from semel.port import Clock
from semel.stages.agent import Lane
from semel.stages.epoch import OpenEpoch

log = logging.getLogger("semel.engine")


class Barrier:
    def __init__(self, clock: Clock, lanes: Sequence[Lane], epoch: OpenEpoch, *, handler_timeout_ms: int) -> None:
        self._clock = clock
        self._lanes = lanes
        self._epoch = epoch
        self._timeout_ms = handler_timeout_ms
        # Events that have been waited for once: the next epoch does not wait for them again.
        self._left_out: dict[Lane, tuple[Hand, int]] = {}
        self.left_out = 0

    async def quiesce(self) -> None:
        """Wait for running events, at most the handler timeout. What is not over then is in a later epoch."""
        ends = self._clock.monotonic() + self._timeout_ms / 1000
        while True:
            busy = [lane for lane in self._lanes if lane.hand.holding]
            awaited = [lane for lane in busy if self._left_out.get(lane) != (lane.hand, lane.hand.event)]
            left = ends - self._clock.monotonic()
            if not awaited or left <= 0:
                break
            self._epoch.parked.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, 0.05)):
                    await self._epoch.parked.wait()
        self._left_out = {lane: (lane.hand, lane.hand.event) for lane in busy}
        for lane in awaited:
            self.left_out += 1
            s = lane.slice
            where = f"{s.cursor.tp.topic}[{s.cursor.tp.partition}]@{s.record.offset}" if s is not None else "?"
            log.warning(
                "agent %s has been handling %s for over %d ms; it is left out of the epochs until it is done",
                lane.plan.name, where, self._timeout_ms,
            )  # fmt: skip
