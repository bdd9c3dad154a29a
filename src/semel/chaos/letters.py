"""The operator of a run: who replays the dead letters of events that failed because their dependency was down on purpose."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from semel.dead_letters import decisions
from semel.dead_letters.decisions import Selection
from semel.dead_letters.operator import Done, Operator, Why
from semel.dead_letters.reading import NoLetters
from semel.errors import SemelError
from semel.port import LATEST, TP, RpcError, RpcLost
from semel.runtime.clock import SystemClock
from semel.runtime.settings import EngineSettings
from semel.stages.agent.handler_faults import DOWN_ON_PURPOSE

if TYPE_CHECKING:
    from semel.chaos.fleet import Fleet
    from semel.dead_letters.letter import Letter
    from semel.stages.sink.destination import ProducerRecord

AGAIN_S = 0.5
WHY = Why("semel chaos", "its dependency is up again")


async def replay(on: Fleet, *, edited: bool = False, within_s: float) -> int | None:
    """How many were replayed; None where brokers did not take them in that time. Each stands in the audit.

    `edited`: as JSON with a blank behind it, where the source reads that as the same value.
    """
    until, replayed = time.monotonic() + within_s, 0
    while True:
        try:
            done = await _replayed(on, edited=edited)
        except NoLetters:
            return replayed
        except (SemelError, RpcError, RpcLost):
            # What was committed is in the audit, and is not done again.
            if time.monotonic() > until:
                return None
            await asyncio.sleep(AGAIN_S)
            continue
        await _seen_by_the_load(on)
        for why, (count, example) in done.skipped.items():
            on.report(f"{count} dead letters cannot be replayed, {example} for one: {why}")
        return replayed + done.letters


async def _replayed(on: Fleet, *, edited: bool) -> Done:
    operator = Operator(on.broker, SystemClock(), on.plan, EngineSettings())
    await operator.open()

    def make(letter: Letter, value: bytes | None) -> ProducerRecord | None:
        if DOWN_ON_PURPOSE not in letter.text("error"):
            return None
        topic = on.plan.sources[letter.text("topic")]
        if edited and value is not None and topic.value.decode(value + b" ") == topic.value.decode(value):
            return decisions.replayed(letter, value + b" ", edited=True)
        return decisions.replayed(letter, value)

    return await operator.write_all("edit" if edited else "replay", Selection(), WHY, make)


async def _seen_by_the_load(on: Fleet) -> None:
    """What is on the topic by now is to be processed, too."""
    topic = on.observed.topic
    tps = [TP(topic, partition) for partition in on.load.ends]
    while True:
        try:
            ends = await on.broker.list_offsets(tps, LATEST, committed=True)
        except (RpcError, RpcLost):
            await asyncio.sleep(AGAIN_S)
            continue
        for tp, end in ends.items():
            on.load.ends[tp.partition] = max(on.load.ends[tp.partition], end)
        return
