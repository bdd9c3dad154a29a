"""What happens to a worker's process: it is killed, frozen, asked to end, told another time, or ended oddly by its code."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from operator import sub

from semel.chaos import disks
from semel.chaos.plan import Fault
from semel.chaos.timeline import Entry
from semel.chaos.torture import TERM_S, Torture
from semel.runtime import oddcode
from semel.runtime.oddcode import Done

# How long an armed worker may take to come to its failpoint: a start on a busy machine, a session, a rebalance.
ARMED_S = 25.0
TAKEN = 4
KILLED = -9
# SIGTERM before a worker has come to listen to it.
TERMINATED = -15


async def kill(on: Torture, fault: Fault, entry: Entry) -> None:
    async with on.victims(fault.worker, everyone=fault.variant == "SIGKILL to all") as victims:
        on.begins(entry, ", ".join(w.name for w in victims))
        entry.bit = any(on.sight.holds(w.name) for w in victims)
        await on.kill9(victims)
        await asyncio.sleep(fault.hold_s)
        for worker in victims:
            if fault.fresh_disk:
                worker.lose_disk()
            on.start(worker)


async def failpoint(on: Torture, fault: Fault, entry: Entry) -> None:
    async with on.claimed(fault.worker) as worker:
        on.begins(entry, worker.name)
        await on.kill9([worker])
        if fault.fresh_disk:
            worker.lose_disk()
        on.start(worker, failpoint=f"{fault.step}:kill:{fault.nth}")
        if fault.step.startswith("revoke."):
            async with on.at_group:
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


async def zombie(on: Torture, fault: Fault, entry: Entry) -> None:
    async with on.claimed(fault.worker) as worker:
        if fault.variant == "replaced while frozen":
            # Frozen before it joined it would wake as the later of the two, and rightly take the name.
            await on.holding(worker, ARMED_S)
        on.begins(entry, worker.name)
        entry.bit = bool(on.sight.holds(worker.name))
        on.freeze(worker)
        if fault.variant != "replaced while frozen":
            await asyncio.sleep(fault.hold_s)
            on.thaw(worker)
            return
        # It has to find out by itself that it is not wanted any more.
        worker.expected_end = True
        twin = worker.twin()
        on.workers[on.workers.index(worker)] = twin
        await asyncio.to_thread(disks.mount_like, worker.state_dir, twin.state_dir)
        try:
            on.start(twin)
            await asyncio.gather(asyncio.sleep(fault.hold_s), on.holding(twin, ARMED_S))
        finally:
            worker.thaw()
        code = await worker.ended(TERM_S)
        if code is None:
            on.findings.append(
                f"a fenced worker writes nothing: {worker.name} was frozen, replaced under its name and woken, and "
                f"went on for {TERM_S:g} s beside its replacement (fault {fault.number})"
            )
            await worker.kill9()
        elif code != TAKEN:
            entry.note = f"the frozen one ended with exit code {code}"


async def term(on: Torture, fault: Fault, entry: Entry) -> None:
    async with on.claimed(fault.worker) as worker:
        on.begins(entry, worker.name)
        if fault.step:
            await on.kill9([worker])
            on.start(worker, failpoint=f"{fault.step}:stop:{fault.nth}")
            entry.bit = await worker.froze(ARMED_S)
            entry.note = "" if entry.bit else f"{fault.step} was not passed"
            worker.expected_end = True
            worker.send(signal.SIGTERM)
            worker.thaw()
        else:
            entry.bit = bool(on.sight.holds(worker.name))
        code = await worker.term(TERM_S)
        if code is None:
            on.findings.append(f"{worker.name} did not end within {TERM_S:g} s of SIGTERM (fault {fault.number})")
            await worker.kill9()
        elif code not in (0, KILLED, TERMINATED):
            on.ended_by_itself(worker, code)
        on.gone(worker)
        on.start(worker)


async def clock(on: Torture, fault: Fault, entry: Entry) -> None:
    async with on.claimed(fault.worker) as worker:
        on.begins(entry, worker.name)
        entry.bit = bool(on.sight.holds(worker.name))
        restarts = not fault.variant.startswith("jumps")
        try:
            if restarts:
                await on.kill9([worker])
            worker.set_clock(fault.offset_ms)
            if restarts:
                on.start(worker)
                await on.holding(worker, ARMED_S)
            await asyncio.sleep(fault.hold_s)
            if restarts:
                await on.kill9([worker])
        finally:
            # Where it only jumped, it jumps back.
            worker.set_clock(0)
        if restarts:
            on.start(worker)


async def odd_code(on: Torture, fault: Fault, entry: Entry) -> None:
    workers = on.workers if fault.worker < 0 else on.in_turn(fault.worker)[:1]
    files = [worker.odd_code for worker in workers]
    async with on.at_code:
        on.begins(entry, ", ".join(worker.name for worker in workers))
        before = [oddcode.done(file) for file in files]
        try:
            for file in files:
                oddcode.order(file, 1 / fault.nth, fault.number)
            await asyncio.sleep(fault.hold_s)
        finally:
            for file in files:
                oddcode.order(file, 0.0)
        met = Counter[str]()
        for file, then in zip(files, before, strict=True):
            met.update(dict(zip(Done._fields, map(sub, oddcode.done(file), then), strict=True)))
    entry.bit = met.total() > 0
    entry.note = (
        f"{met['ended']} attempts ended, {met['held']} held the loop, {met['outlived']} tasks outlived their event, "
        f"{met['swallowed']} errors were swallowed"
    ) * entry.bit
