"""What happens to a worker's process: it is killed, frozen, asked to end, told another time, or ended oddly by its code."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from operator import sub

from semel.chaos import disks
from semel.chaos.fault import STEPS, Chance, Drawn, Fault
from semel.chaos.fleet import TERM_S, Fleet
from semel.chaos.timeline import Entry
from semel.chaos.workers import ChaosWorker
from semel.stages.agent import odd_code
from semel.stages.agent.odd_code import Done

# How long an armed worker may take to come to its failpoint: a start on a busy machine, a session, a rebalance.
ARMED_S = 25.0
TAKEN = 4
KILLED = -9
# SIGTERM before a worker has come to listen to it.
TERMINATED = -15


class Kill(Fault):
    kind = "kill"
    weight = 4
    seen = True

    @classmethod
    def drawn(cls, chance: Chance) -> Drawn:
        rng = chance.rng
        return {
            "variant": rng.choices(("SIGKILL", "SIGKILL to all"), (6, 1))[0],
            # Mostly back at once, under the same name; now and then so late that the others take over.
            "hold_s": rng.uniform(0, 0.5) if rng.random() < 0.75 else chance.past_session_s(2),
            "fresh_disk": rng.random() < 0.15,
        }

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.claimed(self.worker, everyone=self.variant == "SIGKILL to all") as victims:
            on.begins(entry, ", ".join(w.name for w in victims))
            entry.bit = any(on.observed.holds(w.name) for w in victims)
            await on.kill9(victims)
            await asyncio.sleep(self.hold_s)
            for worker in victims:
                if self.fresh_disk:
                    worker.lose_disk()
                on.start(worker)


class Failpoint(Fault):
    kind = "failpoint"
    weight = 6
    seen = True

    @classmethod
    def drawn(cls, chance: Chance) -> Drawn:
        step = chance.step()
        within_a_commit = step.partition(".")[0] in ("barrier", "commit")
        return {
            "step": step,
            "nth": chance.rng.randint(1, 8) if within_a_commit else 1,
            "fresh_disk": step == "restore.chunk" or chance.rng.random() < 0.1,
        }

    @property
    def what(self) -> str:
        return f"kill -9 at {self.step}, time {self.nth}"

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.struck(self.worker, entry) as worker:
            await on.kill9([worker])
            if self.fresh_disk:
                worker.lose_disk()
            on.start(worker, failpoint=f"{self.step}:kill:{self.nth}")
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
                await on.kill9([worker])
            elif code != KILLED:
                on.ended_by_itself(worker, code)
            on.gone(worker)
            on.start(worker)


class Zombie(Fault):
    kind = "zombie"
    weight = 1.5
    seen = True

    @classmethod
    def drawn(cls, chance: Chance) -> Drawn:
        variants = ("SIGSTOP past its session", "SIGSTOP", "replaced while frozen")
        variant = chance.rng.choices(variants, (5, 2, 3))[0]
        hold_s = chance.rng.uniform(0.3, 3) if variant == "SIGSTOP" else chance.past_session_s(3)
        return {"variant": variant, "hold_s": hold_s}

    @classmethod
    def heal(cls, worker: ChaosWorker) -> None:
        if worker.frozen:
            worker.thaw()

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.claimed(self.worker) as [worker]:
            if self.variant == "replaced while frozen":
                # Frozen before it joined it would wake as the later of the two, and rightly take the name.
                await on.holding(worker, ARMED_S)
            on.begins(entry, worker.name)
            entry.bit = on.observed.holds(worker.name)
            on.freeze(worker)
            if self.variant != "replaced while frozen":
                await asyncio.sleep(self.hold_s)
                on.thaw(worker)
                return
            # It has to find out by itself that it is not wanted any more.
            worker.expected_end = True
            twin = worker.twin()
            on.workers[on.workers.index(worker)] = twin
            await asyncio.to_thread(disks.mount_like, worker.state_dir, twin.state_dir)
            try:
                on.start(twin)
                await asyncio.gather(asyncio.sleep(self.hold_s), on.holding(twin, ARMED_S))
            finally:
                worker.thaw()
            code = await worker.ended(TERM_S)
            if code is None:
                on.findings.append(
                    f"a fenced worker writes nothing: {worker.name} was frozen, replaced under its name and woken, and "
                    f"went on for {TERM_S:g} s beside its replacement (fault {self.number})"
                )
                await worker.kill9()
            elif code != TAKEN:
                entry.note = f"the frozen one ended with exit code {code}"


class Term(Fault):
    kind = "term"
    weight = 2
    seen = True

    @classmethod
    def drawn(cls, chance: Chance) -> Drawn:
        if chance.rng.random() < 0.5:
            return {"variant": "SIGTERM"}
        step = chance.rng.choice([name for name in STEPS if name.startswith("commit.")])
        return {"variant": "SIGTERM within a commit", "step": step, "nth": chance.rng.randint(1, 5)}

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.struck(self.worker, entry) as worker:
            if self.step:
                await on.kill9([worker])
                on.start(worker, failpoint=f"{self.step}:stop:{self.nth}")
                entry.bit = await worker.froze(ARMED_S)
                entry.note = "" if entry.bit else f"{self.step} was not passed"
                worker.expected_end = True
                worker.send(signal.SIGTERM)
                worker.thaw()
            else:
                entry.bit = on.observed.holds(worker.name)
            code = await worker.term(TERM_S)
            if code is None:
                on.findings.append(f"{worker.name} did not end within {TERM_S:g} s of SIGTERM (fault {self.number})")
                await worker.kill9()
            elif code not in (0, KILLED, TERMINATED):
                on.ended_by_itself(worker, code)
            on.gone(worker)
            on.start(worker)


class Clock(Fault):
    kind = "clock"
    seen = True

    @classmethod
    def drawn(cls, chance: Chance) -> Drawn:
        rng = chance.rng
        return {
            "variant": rng.choice(("jumps by", "jumps by", "found off at a start by")),
            "offset_ms": rng.choice((-1, 1)) * rng.choice((2_000, 60_000, 600_000)),
            "hold_s": rng.uniform(1, 4),
        }

    @property
    def what(self) -> str:
        return f"wall clock {self.variant} {self.offset_ms / 1000:+,.0f} s"

    @classmethod
    def heal(cls, worker: ChaosWorker) -> None:
        worker.set_clock(0)

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.struck(self.worker, entry) as worker:
            entry.bit = on.observed.holds(worker.name)
            restarts = not self.variant.startswith("jumps")
            try:
                if restarts:
                    await on.kill9([worker])
                worker.set_clock(self.offset_ms)
                if restarts:
                    on.start(worker)
                    await on.holding(worker, ARMED_S)
                await asyncio.sleep(self.hold_s)
                if restarts:
                    await on.kill9([worker])
            finally:
                # Where it only jumped, it jumps back.
                worker.set_clock(0)
            if restarts:
                on.start(worker)


class OddCode(Fault):
    kind = "odd-code"
    weight = 1.5

    @classmethod
    def drawn(cls, chance: Chance) -> Drawn:
        whom = chance.all_workers(0.3)
        return {**whom, "nth": chance.rng.choice((20, 50, 200)), "hold_s": chance.rng.uniform(2, 6)}

    @property
    def what(self) -> str:
        return f"one event in {self.nth} ends oddly"

    @classmethod
    def heal(cls, worker: ChaosWorker) -> None:
        odd_code.order(worker.odd_code, 0.0)

    async def apply(self, on: Fleet, entry: Entry) -> None:
        workers = on.aimed(self.worker)
        files = [worker.odd_code for worker in workers]
        async with on.alone("code"):
            on.begins(entry, ", ".join(worker.name for worker in workers))
            before = [odd_code.done(file) for file in files]
            try:
                for file in files:
                    odd_code.order(file, 1 / self.nth, self.number)
                await asyncio.sleep(self.hold_s)
            finally:
                for file in files:
                    odd_code.order(file, 0.0)
            met = Counter[str]()
            for file, then in zip(files, before, strict=True):
                met.update(dict(zip(Done._fields, map(sub, odd_code.done(file), then), strict=True)))
        entry.bit = met.total() > 0
        entry.note = (
            f"{met['ended']} attempts ended, {met['held']} held the loop, {met['outlived']} tasks outlived their event, "
            f"{met['swallowed']} errors were swallowed"
        ) * entry.bit
