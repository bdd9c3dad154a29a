"""Asks every worker of a run how it is, again and again: what they say, what is drawn of it, and who must be mended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from semel.chaos.fleet import Fleet
from semel.chaos.show import Display
from semel.chaos.timeline import Sample
from semel.chaos.workers import ChaosWorker

ASK_EVERY_S = 0.2
SAMPLE_EVERY_S = 0.5


async def watch(on: Fleet, display: Display, beside: Callable[[Coroutine[Any, Any, None]], object]) -> None:
    """Without end. Before the chaos a worker that ends is not started again, and no broker is.

    `beside` runs work that must not fail unseen.
    """
    asking: set[int] = set()
    next_sample = 0.0

    async def ask(worker: ChaosWorker) -> None:
        pid, asked = worker.pid, time.monotonic()
        asking.add(pid)
        try:
            document = await on.views.pipeline(worker.url)
        finally:
            asking.discard(pid)
        # An answer that was on its way when its worker was killed or frozen says what no longer holds.
        stale = worker not in on.everyone or worker.pid != pid or not worker.running or worker.frozen
        if document is not None and not stale:
            on.observed.heard(worker.name, document, asked)
            states = {task["state"] for task in document["tasks"]}
            on.timeline.turn(worker.name, on.now(), "running" if states == {"running"} else "starting")

    while True:
        for worker in on.everyone:
            if worker.running and not worker.frozen and worker.pid not in asking:
                beside(ask(worker))
            elif not worker.running and not worker.expected_end and on.stage != "starting":
                beside(on.supervise(worker))
        if on.now() >= next_sample:
            next_sample = on.now() + SAMPLE_EVERY_S
            on.timeline.samples.append(Sample(on.now(), on.load.published, on.observed.processed, on.behind))
            if on.stage != "starting":
                beside(on.mend_brokers())
            display.show(on)
        await asyncio.sleep(ASK_EVERY_S)
