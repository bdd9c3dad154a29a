"""What happens to the disk under a worker's state."""

from __future__ import annotations

import asyncio

from semel.chaos import disks
from semel.chaos.fault import Fault, Shape
from semel.chaos.fleet import Fleet
from semel.chaos.slow_disk import Stalling
from semel.chaos.timeline import Entry
from semel.chaos.workers import ChaosWorker

# How long a worker may take to come back with its store.
WRITTEN_S = 20.0


class DiskFull(Fault):
    kind = "disk-full"
    weight = 0.4
    seen = True
    variants = ("no space left for the state directory",)
    lasts_s = (2, 5)

    @classmethod
    def impossible(cls, shape: Shape) -> str:
        return "" if shape.mounts else "a small file system of its own can be mounted by root on Linux only"

    @classmethod
    def heal(cls, worker: ChaosWorker) -> None:
        if worker.state_dir.is_mount():
            disks.free(worker.state_dir)

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.struck(self.worker, entry) as worker:
            if not worker.state_dir.is_mount():
                entry.note = "its state directory is not on a file system of its own"
                return
            worker.expected_end = True
            try:
                await asyncio.to_thread(disks.fill, worker.state_dir)
                await asyncio.sleep(self.hold_s / 2)
                # What runs on has its files; what starts must write some.
                await on.restart(worker)
                worker.expected_end = True
                entry.bit = await worker.ended(self.hold_s / 2 + 3) is not None
            finally:
                await asyncio.to_thread(disks.free, worker.state_dir)
            await on.restart(worker)


class CorruptBlock(Fault):
    """Whatever reads the block first finds it: a handler, a commit, a view, RocksDB's own compaction, the next start."""

    kind = "corrupt-block"
    variants = ("bytes of the store flip", "bytes of the store flip while it is down")
    lasts_s = (0, 1)

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.struck(self.worker, entry) as worker:
            down = self.variant.endswith("while it is down")
            if not disks.table_files(worker.state_dir):
                # A store that is small is in its log; at the next start it is written to a table file.
                await on.restart(worker)
                await on.holding(worker, WRITTEN_S)
            if down:
                await on.kill9(worker)
            damaged = await asyncio.to_thread(disks.damage, worker.state_dir, self.number)
            entry.bit = damaged > 0
            entry.note = f"{damaged} table files" if damaged else "RocksDB has written no table file yet"
            await asyncio.sleep(self.hold_s)
            if down:
                on.start(worker)


class DiskSlow(Fault):
    kind = "disk-slow"
    seen = True
    variants = ("the state directory stalls", "the state directory stalls, also at a start")
    lasts_s = (2, 5)

    @classmethod
    def impossible(cls, shape: Shape) -> str:
        if shape.stalls:
            return ""
        return "a disk is slowed by freezing a file system of its own, which root on Linux may, with loop devices and mkfs.ext4"

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.struck(self.worker, entry) as worker:
            if not disks.can_stall(worker.state_dir):
                entry.note = "its state directory is not on a file system that can be frozen"
                return
            stalling = await asyncio.to_thread(Stalling, worker.state_dir)
            try:
                stalling.watch(worker.pid)
                await asyncio.sleep(self.hold_s / 2)
                if self.variant.endswith("at a start"):
                    await on.restart(worker)
                    stalling.watch(worker.pid)
                await asyncio.sleep(self.hold_s / 2)
            finally:
                seen = await asyncio.to_thread(stalling.end)
            entry.bit, entry.note = seen.met > 0, str(seen)
