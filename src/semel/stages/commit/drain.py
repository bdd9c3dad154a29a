"""Drain: before its partitions go, a worker lets running events end (rules 3 and 14). No other commit waits for an event."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from semel.port import Clock
from semel.stages.agent.runner import AgentRunner
from semel.stages.sink.open_epoch import OpenEpoch


async def drain(clock: Clock, runners: Sequence[AgentRunner], epoch: OpenEpoch, *, at_most_s: float) -> None:
    """Until no event is in hand, at most so long. The gate is to be closed, so that none begins meanwhile."""
    ends = clock.monotonic() + at_most_s
    while any(runner.context.holding for runner in runners) and (left := ends - clock.monotonic()) > 0:
        epoch.parked.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, 0.05)):
                await epoch.parked.wait()
