"""The barrier: running events end, or are left out of the epoch; nobody begins another one meanwhile (rules 3 and 7)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from semel.port import Clock
from semel.stages.agent.runner import AgentRunner
from semel.stages.sink.open_epoch import OpenEpoch
from semel.state.event_context import EventContext

log = logging.getLogger("semel.engine")


class Barrier:
    def __init__(
        self, clock: Clock, runners: Sequence[AgentRunner], epoch: OpenEpoch, *, handler_timeout_ms: int
    ) -> None:
        self._clock = clock
        self._runners = runners
        self._epoch = epoch
        self._timeout_ms = handler_timeout_ms
        # Events that have been waited for once: the next epoch does not wait for them again.
        self._left_out: dict[AgentRunner, tuple[EventContext, int]] = {}
        self.left_out = 0

    async def quiesce(self) -> None:
        """Wait for running events, at most the handler timeout. What is not over then is in a later epoch."""
        ends = self._clock.monotonic() + self._timeout_ms / 1000
        while True:
            busy = [runner for runner in self._runners if runner.context.holding]
            awaited = [
                runner for runner in busy if self._left_out.get(runner) != (runner.context, runner.context.event)
            ]
            left = ends - self._clock.monotonic()
            if not awaited or left <= 0:
                break
            self._epoch.parked.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, 0.05)):
                    await self._epoch.parked.wait()
        self._left_out = {runner: (runner.context, runner.context.event) for runner in busy}
        for runner in awaited:
            self.left_out += 1
            s = runner.unit
            where = f"{s.cursor.tp.topic}[{s.cursor.tp.partition}]@{s.record.offset}" if s is not None else "?"
            log.warning(
                "agent %s has been handling %s for over %d ms; it is left out of the epochs until it is done",
                runner.plan.name, where, self._timeout_ms,
            )  # fmt: skip
