"""One random run: two or three workers, input all along, everything that can go wrong going wrong, then quiet.

All of it comes from one seed, in virtual time. `python -m tests.unit.runtime.chaos FROM TO` runs seeds by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
import tempfile
import traceback
from pathlib import Path

from semel.errors import CommitError, InstanceTaken
from semel.port import TP, RpcError
from semel.runtime.failpoints import NAMES
from semel.stages.answers import Answer, answer_of
from semel.stages.sink import Out
from semel.testing.broker import Call, Fault, delay, lose_answer, lose_request, refuse, unsent
from semel.testing.clock import run_virtual
from tests.unit.runtime.harness import APP, Killed, Worker, World

# Errors a sound cluster can answer in passing. Those about one record or one topic are not made up here.
CODES = [
    c
    for c in (*range(1, 101), 120)
    if answer_of(RpcError("", c)) in (Answer.RETRY, Answer.WAIT, Answer.REJOIN, Answer.ABORT)
]
FENCES = [47, 90, 49, 59]
GROUP_APIS = {"JoinGroup", "SyncGroup", "Heartbeat", "LeaveGroup", "DescribeGroups"}


class Chaos:
    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.quiet = False
        self.faults = 0
        self.kills = 0
        self.rate = rng.choice([0.0, 0.005, 0.02, 0.08])
        self.slow_s = rng.choice([0.0005, 0.005, 0.05])
        self.notes: dict[str, asyncio.Future[None]] = {}
        # Fences that nothing explains make workers give their names up: rarely, or nothing would ever get done.
        self.codes = CODES + (FENCES if rng.random() < 0.2 else [])
        self.names = ["w1", "w2", "w3"][: rng.choice([2, 3])]
        self.down: set[str] = set()
        self.paused: list[Worker] = []
        world.cluster.faults.script(self.script)
        slow_markers = rng.random() < 0.3
        world.cluster.faults.marker_delay_s = lambda: rng.random() * 0.05 if slow_markers and not self.quiet else 0.0

    def script(self, call: Call) -> Fault | None:
        rng = self.rng
        if self.quiet:
            return delay(0.001, 0.001)
        if rng.random() < self.rate:
            self.faults += 1
            kind = rng.randrange(6)
            if kind == 0:
                return lose_request(after_s=rng.random() * 2)
            if kind == 1:
                return lose_answer(after_s=rng.random() * 2)
            if kind == 2:
                return unsent()
            if kind == 3 and call.api != "JoinGroup":
                # A late JoinGroup of a static member is another member under its name: fatal by design.
                return delay(there_s=rng.random() * 4)
            if kind == 4:
                return delay(back_s=rng.random() * 4)
            code = rng.choice(self.codes)
            if code in FENCES and call.api in GROUP_APIS:
                return None
            return refuse(code, applied=rng.random() < 0.3)
        return delay(rng.random() * self.slow_s, rng.random() * self.slow_s)

    def note(self, worker: Worker) -> None:
        """An output without an event."""
        text = f"n{len(self.notes)}"
        with contextlib.suppress(CommitError):
            self.notes[text] = worker.engine.carry(Out(TP("notes", 0), None, b"k", text.encode(), ()))

    def check_notes(self) -> None:
        """Those that are said to be committed are there once, the others at most once."""
        found = [(r.value or b"").decode() for r in self.world.cluster.committed("notes")[0]]
        assert len(found) == len(set(found)), f"notes are doubled: {found}"
        for text, done in self.notes.items():
            assert done.done(), f"nobody ever heard of {text}"
            if done.exception() is None:
                assert text in found, f"{text} is lost"

    def start(self, name: str) -> None:
        rng = self.rng
        worker = self.world.start(
            name,
            session_timeout_ms=rng.choice([6_000, 10_000]),
            transaction_timeout_ms=6_000,
            commit_interval_ms=rng.choice([10, 100]),
            handler_timeout_ms=rng.choice([50, 500, 5_000]),
        )
        self.down.discard(name)
        if rng.random() < 0.4:
            worker.kill_at(rng.choice(NAMES), rng.choice([1, 1, 2, 5, 20]))

    async def before(self, payment: object) -> None:
        draw = self.rng.random()
        if self.quiet or draw > 0.05:
            return
        await asyncio.sleep(self.rng.random() * (0.02 if draw > 0.002 else 3))

    async def reap(self) -> None:
        for worker in list(self.world.workers.values()):
            if worker.over:
                error = await worker.gone()
                self.kills += worker.killed
                self.down.add(worker.name)
                if error is not None and not isinstance(error, (Killed, InstanceTaken)):
                    raise error
                if self.rng.random() < 0.2:
                    self.world.lose_store(worker.name)

    async def step(self) -> None:
        rng, world = self.rng, self.world
        cluster = world.cluster
        alive = [w for w in world.workers.values() if not w.over]
        draw = rng.random()
        worker = rng.choice(alive) if alive else None
        if draw < 0.5:
            world.pay_many(rng.randrange(1, 30))
        elif draw < 0.53 and worker is not None:
            self.note(worker)
        elif draw < 0.57 and worker is not None:
            worker.kill()
        elif draw < 0.60 and worker is not None:
            worker.engine.stop()
        elif draw < 0.72:
            for name in sorted(self.down):
                self.start(name)
        elif draw < 0.76 and worker is not None and worker not in self.paused:
            cluster.faults.pause(worker.client)
            self.paused.append(worker)
        elif draw < 0.82 and self.paused:
            cluster.faults.resume(self.paused.pop(rng.randrange(len(self.paused))).client)
        elif draw < 0.86 and worker is not None:
            cluster.faults.cut(worker.client)
            await world.clock.sleep(rng.random() * 3)
            if not worker.killed:
                cluster.faults.mend(worker.client)
        elif draw < 0.88:
            cluster.move_coordinator(rng.choice(["group", "transaction"]), rng.choice([APP, f"{APP}-w1", f"{APP}-w2"]))
        elif draw < 0.90:
            cluster.move_leader(TP(rng.choice(sorted(cluster.topics())), 0), rng.randrange(3))
        elif draw < 0.94:
            for topic in ("balances-changelog", "journals-changelog"):
                if f"{APP}-{topic}" in cluster.topics():
                    cluster.compact(TP(f"{APP}-{topic}", rng.randrange(world.partitions)))
        await world.clock.sleep(rng.choice([0.001, 0.02, 0.2, 1.0]))
        if rng.random() < 0.02:
            await world.clock.sleep(12)

    async def run(self) -> None:
        world = self.world
        world.work.before = self.before
        world.cluster.create_topic("notes", 1)
        for name in self.names:
            self.start(name)
        for _ in range(self.rng.choice([30, 80, 150])):
            await self.step()
            await self.reap()
        # One blow at least, amid work: a run in which nothing went wrong would prove nothing.
        world.pay_many(20)
        await world.clock.sleep(self.rng.random() * 0.05)
        for worker in world.workers.values():
            if not worker.over:
                worker.kill()
                break
        # -- quiet
        self.quiet = True
        while self.paused:
            world.cluster.faults.resume(self.paused.pop().client)
        for worker in world.workers.values():
            worker.failpoints.hooks.clear()
            if not worker.killed:
                world.cluster.faults.mend(worker.client)
        deadline = world.clock.monotonic() + 240
        while True:
            await world.clock.sleep(0.5)
            await self.reap()
            for name in sorted(self.down):
                self.start(name)
                for worker in world.workers.values():
                    worker.failpoints.hooks.clear()
            running = all(w.engine.restored and w.engine.membership for w in world.workers.values())
            if running and world.is_drained() and all(done.done() for done in self.notes.values()):
                break
            assert world.clock.monotonic() < deadline, f"it does not come to rest: {world.state()}"


async def chaos(path: Path, seed: int) -> Chaos:
    """AssertionError where a law is broken; the seed is in it."""
    rng = random.Random(seed)
    style = rng.choice(["stream", "stream", "coroutine", "batches"])
    world = World(path, partitions=rng.choice([2, 3, 4]), seed=seed, style=style)
    run = Chaos(world, rng)
    try:
        await run.run()
        world.check()
        run.check_notes()
    except BaseException as exc:
        exc.add_note(f"seed {seed}")
        raise
    finally:
        await world.close()
    return run


def main() -> None:
    first, last = int(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        logging.basicConfig(level=sys.argv[3], format="%(name)s %(message)s")
    else:
        logging.disable()
    bad = 0
    for seed in range(first, last):
        with tempfile.TemporaryDirectory() as folder:
            try:
                run_virtual(chaos(Path(folder), seed))
            except Exception as exc:
                bad += 1
                said = traceback.format_exception_only(exc)
                print(f"seed {seed}: {''.join(said)[:600]}", flush=True)  # noqa: T201
        if seed % 100 == 99:
            print(f"seed {seed} is done", flush=True)  # noqa: T201
    print(f"{last - first} seeds, {bad} bad")  # noqa: T201


if __name__ == "__main__":
    main()
