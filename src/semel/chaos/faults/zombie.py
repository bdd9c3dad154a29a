"""A worker is frozen and woken, past its session or replaced under its name meanwhile: of two of one name one may go on."""

from __future__ import annotations

import asyncio
import re
import time

from semel.chaos import disks
from semel.chaos.fault import Chance, Drawn, Fault
from semel.chaos.fleet import AGAIN_S, TERM_S, Fleet
from semel.chaos.timeline import Entry
from semel.chaos.workers import ChaosWorker

# How long a worker may take to have partitions: a start on a busy machine, a session, a rebalance.
PLACED_S = 25.0
TAKEN = 4

# What a worker logs when the group has no member of its name, and when it has a place in the group again.
FORGOTTEN = re.compile(r"error 25\b|has no member as instance")
_PLACED = re.compile(r"generation \d+: tasks")


class Zombie(Fault):
    kind = "zombie"
    weight = 1.5
    seen = True
    variants = (*("SIGSTOP past its session",) * 5, *("SIGSTOP",) * 2, *("replaced while frozen",) * 3)

    @classmethod
    def drawn(cls, chance: Chance, variant: str) -> Drawn:
        return {"hold_s": chance.rng.uniform(0.3, 3) if variant == "SIGSTOP" else chance.past_session_s(3)}

    @classmethod
    def heal(cls, worker: ChaosWorker) -> None:
        if worker.frozen:
            worker.thaw()

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.claimed(self.worker) as [worker]:
            replaced = self.variant == "replaced while frozen"
            if replaced:
                # Frozen before it joined it would nearly always wake as the later of the two.
                await on.holding(worker, PLACED_S)
            on.begins(entry, worker.name)
            entry.bit = on.observed.holds(worker.name)
            on.freeze(worker)
            if replaced:
                await self._replaced(on, worker, entry)
            else:
                await asyncio.sleep(self.hold_s)
                on.thaw(worker)

    async def _replaced(self, on: Fleet, worker: ChaosWorker, entry: Entry) -> None:
        """One of the two has to find out by itself that it is not wanted any more."""
        asleep, before = worker.log_bytes, _PLACED.split(worker.log_from(0))[-1]
        twin = worker.twin()
        on.replace(worker, twin)
        await asyncio.to_thread(disks.mount_like, worker.state_dir, twin.state_dir)
        try:
            on.start(twin)
            _, taken = await asyncio.gather(asyncio.sleep(self.hold_s), self._in_place(on, twin))
        finally:
            worker.thaw()
        if not taken:
            # Nobody has taken its name, which it may go by.
            entry.note = "its replacement did not come to run"
            await worker.kill9()
            return
        goes_on = await self._goes_on(on, worker, twin)
        if goes_on is worker:
            on.replace(twin, worker)
            entry.note = "the frozen one went on"
            if FORGOTTEN.search(before + worker.log_from(asleep)):
                entry.note += ", as the group had forgotten both"
            elif on.cluster.forgetful:
                on.mended.append(f"{self._both(worker)}, and went on: a broker had coordinated from a part of its log")
            else:
                on.report(
                    f"{self._both(worker)}, and took its name back from a replacement that the group knew; {worker.log_end()}"
                )
        if not goes_on.running:
            await asyncio.sleep(AGAIN_S)
            on.start(goes_on)

    async def _goes_on(self, on: Fleet, worker: ChaosWorker, twin: ChaosWorker) -> ChaosWorker:
        """The one whose name it is when the other has ended for that; whatever else they come to is a finding.

        Who joined the group last has the name. That is the replacement, unless the group forgot both and the woken one was
        the last to join anew.
        """
        while True:
            if not await on.comes(lambda: not (worker.running and twin.running), TERM_S, beside=self.number):
                on.report(f"a fenced worker writes nothing: {self._both(worker)}, and after {TERM_S:g} s both go on")
                await worker.kill9()
                return twin
            for process in (worker, twin):
                if process.exit_code not in (None, TAKEN):
                    on.ended_unasked(process, process.exit_code)
            if worker.exit_code == twin.exit_code == TAKEN:
                if on.cluster.forgetful:
                    on.ended_unasked(twin, TAKEN)
                else:
                    on.report(f"{self._both(worker)}, and both ended with exit code {TAKEN}")
                return twin
            if twin.exit_code == TAKEN:
                return worker
            if worker.exit_code is not None:
                return twin
            # It ended for another reason, and joins as the last of the two when it comes back.
            await asyncio.sleep(AGAIN_S)
            on.start(twin)

    def _both(self, worker: ChaosWorker) -> str:
        return f"{worker.name} was frozen, replaced under its name and woken (fault {self.number})"

    async def _in_place(self, on: Fleet, twin: ChaosWorker) -> bool:
        """Whether the replacement has partitions; it is started again where it ends for want of a right that a fault took."""
        deadline = time.monotonic() + PLACED_S
        while not await on.holding(twin, deadline - time.monotonic()):
            code = twin.exit_code
            if code is None or time.monotonic() >= deadline:
                return False
            on.ended_unasked(twin, code)
            await asyncio.sleep(AGAIN_S)
            on.start(twin)
        return True
