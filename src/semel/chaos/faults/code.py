"""What happens in the pipeline's own code: it ends oddly, or what it depends on is down; and who replays what that cost."""

from __future__ import annotations

import asyncio
from operator import sub
from typing import ClassVar

from semel.chaos import letters
from semel.chaos.fault import Fault
from semel.chaos.fleet import Fleet
from semel.chaos.timeline import Entry
from semel.chaos.workers import ChaosWorker
from semel.stages.agent import handler_faults
from semel.stages.agent.handler_faults import Done, Mode

# How long an operator may take for what is in the dead letters, while brokers are troubled.
REPLAY_S = 60.0


class _Code(Fault):
    """Ordered of the workers by a file. `share`: how many attempts, events or keys; one fault at a time has the code in hand."""

    hits_all = 0.3
    # The workers count what they did by it.
    seen = True

    @property
    def order(self) -> tuple[float, Mode]:
        raise NotImplementedError

    @classmethod
    def heal(cls, worker: ChaosWorker) -> None:
        handler_faults.order(worker.odd_code, 0.0)

    def met(self, done: Done) -> str:
        """What was done, for people; empty where nothing was."""
        raise NotImplementedError

    async def apply(self, on: Fleet, entry: Entry) -> None:
        workers = on.aimed(self.worker)
        files = [worker.odd_code for worker in workers]
        share, mode = self.order

        def done() -> Done:
            return Done(*map(sum, zip(*map(handler_faults.done, files), strict=True)))

        async with on.alone("code"):
            on.begins(entry, ", ".join(worker.name for worker in workers))
            before = done()
            try:
                for file in files:
                    handler_faults.order(file, share, self.number, mode)
                await asyncio.sleep(self.hold_s)
            finally:
                for file in files:
                    handler_faults.order(file, 0.0)
            entry.note = self.met(Done(*map(sub, done(), before)))
        entry.bit = bool(entry.note)


class OddCode(_Code):
    kind = "odd-code"
    weight = 1.5
    says = "one event in {0.nth} ends oddly"
    times = (20, 50, 200)
    lasts_s = (2, 6)

    @property
    def order(self) -> tuple[float, Mode]:
        return 1 / self.nth, "odd"

    def met(self, done: Done) -> str:
        if not any(done):
            return ""
        return (
            f"{done.ended} attempts ended, {done.held} held the loop, {done.outlived} tasks outlived their event, "
            f"{done.swallowed} errors were swallowed"
        )


class Down(_Code):
    """Events fail for as long as it lasts: longer than most retry policies last, so that some are given up."""

    kind = "down"
    weight = 1.5
    variants = ("for one event in 20", "for one event in 20", "for the events of one key in 8", "for every event")
    lasts_s = (2, 8)
    says = "what the code depends on is down {0.variant}"
    orders: ClassVar[dict[str, tuple[float, Mode]]] = {
        "for one event in 20": (1 / 20, "events"),
        "for the events of one key in 8": (1 / 8, "keys"),
        "for every event": (1.0, "events"),
    }

    @property
    def order(self) -> tuple[float, Mode]:
        return self.orders[self.variant]

    def met(self, done: Done) -> str:
        return f"{done.down} attempts failed" if done.down else ""


class Replay(Fault):
    """An operator replays what was given up so far because of `Down`."""

    kind = "replay"
    weight = 1.5
    seen = True
    variants = ("as they are", "edited")
    says = "dead letters are replayed {0.variant}"

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.alone("letters"):
            on.begins(entry, on.plan.dead_letter_topic)
            replayed = await letters.replay(on, edited=self.variant == "edited", within_s=REPLAY_S)
        entry.bit = bool(replayed)
        entry.note = "there were none" if replayed == 0 else "" if replayed is None else f"{replayed} replayed"
        if replayed is None:
            entry.note = f"brokers did not take them within {REPLAY_S:g} s"
