"""Deployment: the workers of one pipeline on one in-memory cluster in virtual time; crashes, rebalances, waiting.

Everything here runs inside the tester's own event loop, which stands still between two calls of a test.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NoReturn

from semel.memory.broker import MemoryBroker
from semel.memory.cluster import MemoryCluster
from semel.pipeline import Pipeline
from semel.plan import Plan
from semel.port import TP
from semel.runtime.failpoints import NAMES
from semel.runtime.settings import EngineSettings
from semel.state.task import Task, TaskState
from semel.testing import stuck
from semel.testing.clock import VirtualClock, VirtualLoop, process
from semel.testing.crash import Crash
from semel.testing.errors import Died, NotSettled, PipelineTesterError, interrupts
from semel.testing.worker import Killed, MemoryWorker, open_store

# Virtual time in which something must become of what is waited for: as long as a group may take to rebalance.
PATIENCE_S = 60.0
# By so many offsets the pipeline's own results may lengthen its source while a test waits: a loop without end takes no time.
OWN_OFFSETS = 5_000
# No poll comes back empty within an hour: time that passes in a test costs four fetches a second otherwise.
POLL_MS = 3_600_000
# A test whose every event fails is to come to its end: an agent does not halt.
HALT_AFTER = 0


class Deployment:
    """`on_committed`: what to call when an epoch has landed."""

    def __init__(
        self,
        pipeline: Pipeline,
        loop: VirtualLoop,
        folder: Path,
        *,
        partitions: int,
        seed: int,
        start_s: float,
    ) -> None:
        self._pipeline = pipeline
        self._loop = loop
        self._thread = 0
        self._folder = folder
        self._seed = seed
        self.on_committed: list[Callable[[], None]] = []
        self.clock = VirtualClock(start_s, loop)
        self.cluster = MemoryCluster(self.clock, rng=random.Random(seed))
        self._source = pipeline.source.name
        self.cluster.create_topic(self._source, partitions)
        self.partitions = partitions
        self.workers: dict[str, MemoryWorker] = {}
        self.plans: list[Plan] = []
        # Kept to the end: tasks that a killed engine left waiting must not be collected while they wait.
        self._former: list[MemoryWorker] = []
        self.crashes: list[Crash] = []
        # Whoever was killed and has lost its store.
        self._without_state: set[str] = set()
        self._changed = asyncio.Event()
        self._started = 0

    # -- workers

    def start(self, name: str) -> None:
        self._started += 1
        self._thread = threading.get_ident()
        plan = self._pipeline.plan()
        self.plans.append(plan)
        worker = MemoryWorker(
            name,
            plan,
            MemoryBroker(self.cluster, f"{name}#{self._started}", source_wait_ms=POLL_MS),
            open_store(self._folder / name / "db"),
            self.clock,
            random.Random(f"{self._seed} {self._started}"),
            # One address for all incarnations, as a worker has that comes back on its machine.
            EngineSettings(web_url=f"http://{name}", interrupts=interrupts(), halt_after=HALT_AFTER),
        )
        for point in NAMES:
            worker.failpoints.hooks[point] = self._failpoint(worker, point)
        worker.engine.on_committed.append(self._landed)
        worker.running.add_done_callback(lambda _: self._changed.set())
        self.workers[name] = worker

    def _failpoint(self, worker: MemoryWorker, point: str) -> Callable[[], Awaitable[None]]:
        async def passed() -> None:
            for crash in self.crashes:
                if crash.strikes(point, worker.name):
                    self._kill(worker, crash)
                    await asyncio.Event().wait()

        return passed

    def _landed(self) -> None:
        for told in self.on_committed:
            told()
        self._changed.set()

    async def scale(self, workers: int) -> None:
        """So many workers: new ones join, or the last ones leave. With as many as there are, the last leaves and returns."""
        names = [f"w{n}" for n in range(1, workers + 1)]
        for name in [name for name in self.workers if name not in names] or list(self.workers)[-1:]:
            if len(self.workers) < workers:
                break
            leaving = self.workers.pop(name)
            leaving.leave()
            await self._gone(leaving)
        for name in names:
            if name not in self.workers:
                self.start(name)

    def kill(self, crash: Crash) -> None:
        """Now. Whoever was killed starts again as soon as anything is waited for."""
        for worker in self.workers.values():
            if crash.worker in (None, worker.name):
                self._kill(worker, crash)
        crash.happened = True

    def die(self) -> NoReturn:
        """The worker whose code calls this, from its loop or from a thread of its own."""
        caller = process.get(None)
        if caller is None:
            raise PipelineTesterError(
                "die() is for what an agent calls while it handles an event; crash() kills from outside"
            )
        for worker in self.workers.values():
            if worker.client == caller and not worker.killed:
                if threading.get_ident() == self._thread:
                    worker.kill()
                else:
                    # The thread's result comes after it.
                    self._loop.call_soon_threadsafe(worker.kill)
        raise Died(f"{caller} was killed")

    def caller_is_dead(self) -> bool:
        caller = process.get(None)
        return any(worker.killed for worker in [*self.workers.values(), *self._former] if worker.client == caller)

    def _kill(self, worker: MemoryWorker, crash: Crash) -> None:
        worker.kill()
        if crash.lose_state:
            self._without_state.add(worker.name)

    async def _gone(self, worker: MemoryWorker) -> None:
        """Wait for its end; raises what it failed with."""
        self._former.append(worker)
        error = await worker.gone()
        if worker.name in self._without_state:
            self._without_state.remove(worker.name)
            shutil.rmtree(self._folder / worker.name)
        if error is not None and not isinstance(error, Killed):
            raise error

    async def _revive(self) -> None:
        """Start again whoever was killed, or stopped; raises what it stopped with."""
        for worker in [w for w in self.workers.values() if w.over or w.killed]:
            try:
                await self._gone(worker)
            finally:
                self.start(worker.name)

    async def begin(self, workers: int) -> None:
        """The first workers. The test's time begins when they run."""
        began = self.clock.time()
        await self.scale(workers)
        await self.settle(undone=True)
        while any(worker.engine.uncommitted for worker in self.workers.values() if not worker.killed):
            # Where they begin is committed first: nothing that a test counts.
            await self._change(0.01)
        self.clock.jump(began - self.clock.time())

    async def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()
            await worker.gone()
        self.workers.clear()

    # -- what is

    def tasks(self) -> Iterator[Task]:
        """Those that run."""
        for worker in self.workers.values():
            if not worker.killed:
                for task in worker.engine.tasks.values():
                    if task.state is TaskState.RUNNING:
                        yield task

    def is_running(self) -> bool:
        """Every worker is in the group's present generation, and every partition runs on one of them."""
        generations: set[int] = set()
        for worker in self.workers.values():
            membership = worker.engine.membership
            if worker.killed or membership is None or not worker.engine.restored:
                return False
            generations.add(membership.generation)
        return len(generations) == 1 and len([*self.tasks()]) == self.partitions

    def undone(self) -> dict[TP, tuple[int, int]]:
        """Source partitions with records that are not committed: the next one to be done, and the log's end."""
        running = {task.partition: task for task in self.tasks()}
        undone: dict[TP, tuple[int, int]] = {}
        for partition in range(self.partitions):
            tp = TP(self._source, partition)
            end = self.cluster.log(tp).end
            at = running[partition].committed.topics.get(tp.topic) if partition in running else None
            done = at.next if at is not None else 0
            if done < end:
                undone[tp] = done, end
        return undone

    def all_done(self) -> bool:
        return not self.undone() and not self.retrying() and not self.uncommitted() and self.timer_in_s() != 0

    def timer_in_s(self) -> float | None:
        """How long until an output is due that waits for its time; None where none does. One that is held back is not waited
        for."""
        now = self.clock.time()
        dues = [
            due / 1000
            for task in self.tasks()
            if task.timers is not None and task.timers.count and (due := task.timers.next_due_ms) is not None
        ]
        return max(0.0, min(dues) - now) if dues else None

    def retrying(self) -> bool:
        """Parked events have attempts left. One that has none and is tried on is not waited for."""
        return any(
            task.committed.parked and cursor.parked is not None and cursor.parked.retrying
            for task in self.tasks()
            for cursor in task.cursors.values()
        )

    def uncommitted(self) -> bool:
        """Something is done, or sent, and the commit of it is still to come, or on its way."""
        return any(worker.engine.uncommitted for worker in self.workers.values() if not worker.killed)

    # -- waiting

    async def settle(self, *, undone: bool = False) -> None:
        """Until every partition runs and (unless `undone` is true) every record is done and committed. NotSettled."""

        def settled() -> bool:
            return self.is_running() and (undone or self.all_done())

        seen: object = None
        give_up_at = 0.0
        pause = 0.01
        began_at = self._offsets()
        while True:
            await self._revive()
            if settled():
                return
            await self._check_loop(began_at)
            now = self.clock.monotonic()
            moved = stuck.progress(self.workers.values())
            if moved != seen:
                seen, pause = moved, 0.01
                give_up_at = max([now, *stuck.retries_due(self.workers.values())]) + PATIENCE_S
            elif now >= give_up_at:
                await self._give_up()
            await self._change(pause)
            pause = min(pause * 1.5, 1.0)

    async def _change(self, at_most_s: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(at_most_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def pass_time(self, seconds: float) -> None:
        """Let so much time pass. What waits for its time is done when that comes; what waits for none is not waited for."""
        ends = self.clock.time() + seconds
        second, began_at = self.clock.monotonic(), self._offsets()
        while (left := ends - self.clock.time()) > 1e-6:
            await self._revive()
            if self.clock.monotonic() - second >= 1.0:
                # What waits between two of its results comes to its end with the time.
                second, began_at = self.clock.monotonic(), self._offsets()
            await self._check_loop(began_at)
            timer_s = self.timer_in_s()
            under_way = self.undone() or self._parked() or self.uncommitted()
            if self.is_running() and not under_way and timer_s != 0:
                # Nothing is under way: the wall clock moves alone, and no heartbeat need be sent for a week.
                self.clock.jump(left if timer_s is None else min(left, timer_s))
                for worker in self.workers.values():
                    worker.engine.clock_was_set()
            else:
                await self._change(left)
        while self.timer_in_s() == 0:
            # What is due at the very end.
            await self._revive()
            await self._change(0.01)

    def _parked(self) -> bool:
        """Something is parked that time alone brings on: what is held waits for somebody who acts."""
        return any(c.parked is not None and c.parked.heads for task in self.tasks() for c in task.cursors.values())

    def _offsets(self) -> int:
        """How many offsets of the source are taken; while a test waits, nobody but the pipeline writes to it."""
        return sum(self.cluster.log(TP(self._source, partition)).end for partition in range(self.partitions))

    async def _check_loop(self, began_at: int) -> None:
        """NotSettled where the pipeline is its own source, and does not come to an end."""
        more = self._offsets() - began_at
        if more > OWN_OFFSETS:
            [agent] = self._pipeline.plan().agents
            await self._give_up(
                f"agent {agent.name!r} sends to the pipeline's own source {self._source!r}, where every result is an event "
                f"again: {more:,} more offsets while the test waited. Let it end, or send to another topic"
            )

    async def _give_up(self, *why: str) -> None:
        """NotSettled. Workers that hang in a handler are killed: nothing else ends them."""
        lines = [*why]
        lines += stuck.described(self.workers.values(), self.undone(), self.clock)
        handlers = stuck.handlers()
        for worker in self.workers.values():
            worker.kill()
        for worker in self.workers.values():
            await worker.gone()
        lines += stuck.places(handlers)
        raise NotSettled("\n".join(lines))
