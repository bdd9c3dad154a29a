"""What happens to a worker's process: it is killed, asked to end, or told another time."""

from __future__ import annotations

import asyncio
import signal

from semel.chaos.fault import STEPS, Chance, Drawn, Fault
from semel.chaos.fleet import TERM_S, Fleet
from semel.chaos.timeline import Entry
from semel.chaos.workers import ChaosWorker

# How long an armed worker may take to come to its failpoint: a start on a busy machine, a session, a rebalance.
ARMED_S = 25.0
KILLED = -9


class Kill(Fault):
    kind = "kill"
    weight = 4
    seen = True
    variants = (*("SIGKILL",) * 6, "SIGKILL to all")

    @classmethod
    def drawn(cls, chance: Chance, variant: str) -> Drawn:
        # Mostly back at once, under the same name; now and then so late that the others take over.
        soon = chance.rng.random() < 0.75
        return {
            "hold_s": chance.rng.uniform(0, 0.5) if soon else chance.past_session_s(2),
            "fresh_disk": chance.rng.random() < 0.15,
        }

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.claimed(self.worker, everyone=self.variant == "SIGKILL to all") as victims:
            on.begins(entry, ", ".join(w.name for w in victims))
            entry.bit = any(on.observed.holds(w.name) for w in victims)
            await on.kill9(*victims)
            await asyncio.sleep(self.hold_s)
            for worker in victims:
                if self.fresh_disk:
                    worker.lose_disk()
                on.start(worker)


class Failpoint(Fault):
    kind = "failpoint"
    weight = 6
    seen = True
    says = "kill -9 at {0.step}, time {0.nth}"

    @classmethod
    def drawn(cls, chance: Chance, variant: str) -> Drawn:
        step = chance.step()
        within_a_commit = step.startswith(("barrier.", "commit."))
        return {
            "step": step,
            "nth": chance.rng.randint(1, 8) if within_a_commit else 1,
            "fresh_disk": step == "restore.chunk" or chance.rng.random() < 0.1,
        }

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.struck(self.worker, entry) as worker:
            await on.restart(worker, failpoint=f"{self.step}:kill:{self.nth}", fresh_disk=self.fresh_disk)
            if self.step.startswith("revoke."):
                async with on.alone("group"):
                    await on.holding(worker, ARMED_S)
                    guest = on.invite(1)
                    code = await worker.ended(ARMED_S)
                    await on.dismiss([guest], kill=True)
            else:
                code = await worker.ended(ARMED_S)
            entry.bit = code == KILLED
            if code is None:
                entry.note = "it was not passed"
            elif code != KILLED:
                on.ended_unasked(worker, code)
            await on.restart(worker)


class Term(Fault):
    kind = "term"
    weight = 2
    seen = True
    variants = ("SIGTERM", "SIGTERM within a commit")

    @classmethod
    def drawn(cls, chance: Chance, variant: str) -> Drawn:
        if variant == "SIGTERM":
            return {}
        step = chance.rng.choice([name for name in STEPS if name.startswith("commit.")])
        return {"step": step, "nth": chance.rng.randint(1, 5)}

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.struck(self.worker, entry) as worker:
            if self.step:
                await on.restart(worker, failpoint=f"{self.step}:stop:{self.nth}")
                entry.bit = await worker.froze(ARMED_S)
                worker.expected_end = True
                worker.send(signal.SIGTERM)
                worker.thaw()
                # It is armed still, and may come to that step in its last commit.
                if not entry.bit and await worker.froze(TERM_S):
                    entry.bit = True
                    worker.thaw()
                entry.note = "" if entry.bit else f"{self.step} was not passed"
            else:
                entry.bit = on.observed.holds(worker.name)
            on.ended_asked(worker, await worker.term(TERM_S), f"fault {self.number}")
            await on.restart(worker)


class Clock(Fault):
    kind = "clock"
    seen = True
    says = "wall clock {0.variant} {0.offset_s:+d} s"
    variants = ("jumps by", "jumps by", "found off at a start by")
    lasts_s = (1, 4)

    @classmethod
    def drawn(cls, chance: Chance, variant: str) -> Drawn:
        return {"offset_s": chance.rng.choice((-1, 1)) * chance.rng.choice((2, 60, 600))}

    @classmethod
    def heal(cls, worker: ChaosWorker) -> None:
        worker.set_clock(0)

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.struck(self.worker, entry) as worker:
            entry.bit = on.observed.holds(worker.name)
            at_start = self.variant != "jumps by"
            try:
                worker.set_clock(1000 * self.offset_s)
                if at_start:
                    await on.restart(worker)
                    await on.holding(worker, ARMED_S)
                await asyncio.sleep(self.hold_s)
            finally:
                # Where it runs, it jumps back.
                worker.set_clock(0)
            if at_start:
                await on.restart(worker)
