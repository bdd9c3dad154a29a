"""What happens to the disk under a worker's state."""

from __future__ import annotations

import asyncio

from semel.chaos import disks
from semel.chaos.plan import Fault
from semel.chaos.stalls import Stalling
from semel.chaos.timeline import Entry
from semel.chaos.torture import Torture

# How long a worker may take to come back with its store.
WRITTEN_S = 20.0


async def disk_full(on: Torture, fault: Fault, entry: Entry) -> None:
    async with on.claimed(fault.worker) as worker:
        on.begins(entry, worker.name)
        if not worker.state_dir.is_mount():
            entry.note = "its state directory is not on a file system of its own"
            return
        worker.expected_end = True
        try:
            await asyncio.to_thread(disks.fill, worker.state_dir)
            await asyncio.sleep(fault.hold_s / 2)
            # What runs on has its files; what starts must write some.
            await on.kill9([worker])
            on.start(worker)
            worker.expected_end = True
            code = await worker.ended(fault.hold_s / 2 + 3)
            entry.bit = code is not None
        finally:
            await asyncio.to_thread(disks.free, worker.state_dir)
        await on.kill9([worker])
        on.start(worker)


async def corrupt_block(on: Torture, fault: Fault, entry: Entry) -> None:
    """Whatever reads the block first finds it: a handler, a commit, a view, RocksDB's own compaction, the next start."""
    async with on.claimed(fault.worker) as worker:
        on.begins(entry, worker.name)
        down = fault.variant.endswith("while it is down")
        if not disks.table_files(worker.state_dir):
            # A store that is small is in its log; at the next start it is written to a table file.
            await on.kill9([worker])
            on.start(worker)
            await on.holding(worker, WRITTEN_S)
        if down:
            await on.kill9([worker])
        damaged = await asyncio.to_thread(disks.damage, worker.state_dir, fault.number)
        entry.bit = damaged > 0
        entry.note = f"{damaged} table files" if damaged else "RocksDB has written no table file yet"
        await asyncio.sleep(fault.hold_s)
        if down:
            on.start(worker)


async def disk_slow(on: Torture, fault: Fault, entry: Entry) -> None:
    async with on.claimed(fault.worker) as worker:
        on.begins(entry, worker.name)
        if not disks.can_be_slow(worker.state_dir):
            entry.note = "its state directory is not on a file system that can be frozen"
            return
        stalling = await asyncio.to_thread(Stalling, worker.state_dir)
        try:
            stalling.watch(worker.pid)
            await asyncio.sleep(fault.hold_s / 2)
            if fault.variant.endswith("at a start"):
                await on.kill9([worker])
                on.start(worker)
                stalling.watch(worker.pid)
            await asyncio.sleep(fault.hold_s / 2)
        finally:
            seen = await asyncio.to_thread(stalling.end)
        entry.bit, entry.note = seen.met > 0, str(seen)
