"""A world: an in-memory cluster, payments on it, and workers that can be killed, held and asked."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from semel import Dedup, Pipeline
from semel.errors import SemelError
from semel.memory.batch import MemoryRecord
from semel.memory.broker import MemoryBroker
from semel.memory.cluster import ClusterSettings, MemoryCluster
from semel.memory.faults import Call, Fault, delay
from semel.memory.journal import Journal
from semel.partitioner import partition_of
from semel.plan import Plan
from semel.port import TP
from semel.runtime.settings import EngineSettings
from semel.stages.agent.crash_suspects import suspected
from semel.stages.sink.dead_letters import split_headers
from semel.state import crash_notes, positions, replay
from semel.state.crash_notes import CrashNotes
from semel.state.store import Store, StoreError
from semel.state.task import TaskState
from semel.testing.clock import VirtualClock
from semel.testing.worker import MemoryWorker, open_store
from semel.worker.reset import Target, reset
from tests.unit.oracle import (
    check_partition,
    check_store,
    committed_values,
    dead_letters,
    folded,
    given_up,
    truth_of,
)
from tests.unit.payments import APP, ATTEMPTS, WINDOW, Payment, Settlement, Work, payments_pipeline

# With what it runs and is judged by, so that a test of the engine has all of it from here.
__all__ = [
    "APP",
    "ATTEMPTS",
    "WINDOW",
    "Payment",
    "Settlement",
    "Work",
    "Worker",
    "World",
    "check_store",
    "committed_values",
    "dead_letters",
    "folded",
    "given_up",
    "payments_pipeline",
    "truth_of",
]


class Worker(MemoryWorker):
    """A worker of a world, that tells the next process on its machine what it had in hand."""

    def __init__(self, world: World, name: str, number: int, **settings: Any) -> None:
        self.world = world
        self.clock = world.clock_of(name)
        plan = world.plan()
        self.notes = world.notes_of(name, plan)
        super().__init__(
            name,
            plan,
            MemoryBroker(world.cluster, f"{name}#{number}"),
            world.open_store(name),
            self.clock,
            random.Random(number),
            EngineSettings(**{"web_url": f"http://{name}.{number}", "halt_after": 0, **world.settings, **settings}),
            notes=self.notes,
        )

    def kill(self, *, arrives: bool = False) -> None:
        if not self.killed and not self.over:
            self.notes.alive(self.clock.monotonic())
            self.world.keep_notes(self)
        super().kill(arrives=arrives)

    def kill_at(self, point: str, nth: int = 1, then: Callable[[], None] | None = None) -> asyncio.Event:
        """Kill it when it passes a failpoint the nth time; the event says that it happened."""
        reached, left = asyncio.Event(), nth

        async def hook() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.kill()
                if then is not None:
                    then()
                reached.set()
                await asyncio.Event().wait()

        self.failpoints.hooks[point] = hook
        return reached

    def hold_at(self, point: str, nth: int = 1) -> tuple[asyncio.Event, asyncio.Event]:
        """Stop there the nth time until the second event is set; the first one says that it stands there."""
        reached, go, left = asyncio.Event(), asyncio.Event(), nth

        async def hook() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                reached.set()
                await go.wait()

        self.failpoints.hooks[point] = hook
        return reached, go

    def fail_writes(self, times: int) -> None:
        """The disk refuses the next writes of the store."""
        write, left = self.store.write, times

        def refuse_some(batch: Any) -> None:
            nonlocal left
            if left:
                left -= 1
                raise StoreError("no space left on device")
            write(batch)

        self.store.write = refuse_some

    async def gone(self) -> BaseException | None:
        error = await super().gone()
        self.world.workers.pop(self.client, None)
        if not self.killed:
            self.notes.ended()
            self.world.keep_notes(self)
        return error

    async def stop(self) -> None:
        self.engine.stop()
        error = await self.gone()
        if error is not None:
            raise error


class World:
    """A cluster, its workers, and what is known about the input."""

    def __init__(
        self,
        path: Path,
        *,
        partitions: int = 2,
        seed: int = 0,
        style: str = "stream",
        dedup: Dedup | None = None,
        journal: Journal | None = None,
        **settings: Any,
    ) -> None:
        self.path = path
        self.rng = random.Random(seed)
        self.clock = VirtualClock()
        self.cluster = MemoryCluster(
            self.clock, rng=random.Random(seed), settings=ClusterSettings(brokers=3), journal=journal
        )
        self.partitions = partitions
        self.cluster.create_topic("payments", partitions)
        self.work = Work()
        self.settings: dict[str, Any] = settings
        self.pipeline = payments_pipeline(self.work, style=style, dedup=dedup)
        self.workers: dict[str, Worker] = {}
        self.others: list[asyncio.Task[None]] = []
        # What the last process on each machine had in hand when it ended.
        self.left: dict[str, bytes] = {}
        self.started = 0
        self.numbers = 0

    def plan(self) -> Plan:
        return self.pipeline.plan()

    # -- input

    def place(self, account: str) -> TP:
        return TP("payments", partition_of(account.encode(), self.partitions))

    def write(self, value: bytes | dict[str, Any] | None, account: str, *, at_ms: int | None = None) -> tuple[TP, int]:
        key, tp = account.encode(), self.place(account)
        raw = orjson.dumps(value) if isinstance(value, dict) else value
        return tp, self.cluster.write(tp, [(key, raw)], timestamp=at_ms)

    def pay(self, account: str | None = None, amount: int = 1, *, id: str | None = None, at_ms: int | None = None,
            **more: Any) -> dict[str, Any]:  # fmt: skip
        """One new payment."""
        self.numbers += 1
        account = account or f"a{self.rng.randrange(8)}"
        event = {"id": id or f"p{self.numbers}", "account": account, "amount": amount, **more}
        self.write(event, account, at_ms=at_ms)
        return event

    def replay(
        self, letter: MemoryRecord, *, value: bytes | None = None, revision: int | None = None
    ) -> tuple[TP, int]:
        """A dead letter back to where it came from, once more than it came before; `value`: another one than it had."""
        headers, own = split_headers(letter.headers)
        tp = TP((own["semel.topic"]).decode(), int(own["semel.partition"]))
        said: list[tuple[str, bytes | None]] = [
            *replay.without(headers),
            (replay.REVISION, b"%d" % (replay.revision_of(headers) + 1 if revision is None else revision)),
            (replay.LETTER, b"by hand"),
        ]
        said += [(replay.HOLD, own[replay.HOLD])] if replay.HOLD in own else []
        if value is not None:
            said.append((replay.EDITED, b"-"))
        content = letter.value if value is None else value
        stamp = int(own["semel.timestamp"])
        return tp, self.cluster.write(tp, [(letter.key, content)], timestamp=stamp, headers=said)

    def skip(self, letter: MemoryRecord) -> None:
        """The key that a dead letter holds goes on without its event."""
        _, own = split_headers(letter.headers)
        tp = TP((own["semel.topic"]).decode(), int(own["semel.partition"]))
        said: list[tuple[str, bytes | None]] = [(replay.SKIP, own.get(replay.HOLD, b"-")), (replay.LETTER, b"by hand")]
        self.cluster.write(tp, [(letter.key, letter.value or b"")], timestamp=int(own["semel.timestamp"]), headers=said)

    def pay_many(self, count: int, *, trouble: bool = True) -> list[dict[str, Any]]:
        """Payments with a tenth of redeliveries, and (`trouble`) conflicts, failing, undecodable and filtered ones."""
        sent: list[dict[str, Any]] = []
        for _ in range(count):
            draw = self.rng.random()
            if sent and draw < 0.1:
                again = self.rng.choice(sent)
                self.write(again, again["account"])
            elif sent and trouble and draw < 0.13:
                again = self.rng.choice(sent)
                self.write({**again, "amount": again["amount"] + 1}, again["account"])
            elif trouble and draw < 0.15:
                self.write(b"not json", f"a{self.rng.randrange(8)}")
            elif trouble and draw < 0.17:
                sent.append(self.pay(fails=self.rng.choice([1, 2, -1])))
            elif trouble and draw < 0.20:
                sent.append(self.pay(amount=0))
            else:
                sent.append(self.pay(amount=self.rng.randrange(1, 100)))
        return sent

    # -- workers

    def open_store(self, name: str) -> Store:
        return open_store(self.path / name / "db")

    def machine_of(self, name: str) -> str:
        return name

    def notes_of(self, name: str, plan: Plan) -> CrashNotes:
        left = crash_notes.read(self.left.get(self.machine_of(name), b""))
        suspects = suspected(left, "") if left is not None else []
        return CrashNotes(plan.slots, list(plan.sources), suspects)

    def keep_notes(self, worker: Worker) -> None:
        self.left[self.machine_of(worker.name)] = bytes(worker.notes.buffer)

    def clock_of(self, name: str) -> VirtualClock:
        """The wall clock of the machine that workers of this name run on."""
        return self.clock

    def start(self, name: str = "w1", **settings: Any) -> Worker:
        self.started += 1
        worker = Worker(self, name, self.started, **settings)
        self.workers[worker.client] = worker
        return worker

    def move_group(self, offsets: dict[TP, int]) -> None:
        """Somebody sets the group's offsets while nobody is in it."""
        self.cluster.timers.run_due()
        self.cluster.groups.set_offsets(APP, offsets)

    async def caught_up(self) -> Worker:
        """A new worker that has done everything."""
        worker = self.start()
        await self.until_running(worker)
        await self.drained()
        return worker

    async def settled(self, count: int = 100) -> None:
        """One worker has done some input and is gone; its store stays."""
        self.pay_many(count)
        await (await self.caught_up()).stop()

    async def fate(self, worker: Worker, within_s: float = 30.0) -> SemelError:
        """The error that the worker ends with."""
        async with asyncio.timeout(within_s):
            error = await worker.gone()
        assert isinstance(error, SemelError), repr(error)
        return error

    async def ran(self, declared: Pipeline) -> None:
        """A worker of this pipeline has begun, and has stopped."""
        self.pipeline = declared
        worker = self.start(f"w-{declared.name}")
        await self.until_running(worker)
        await self.clock.sleep(1)
        await worker.stop()

    def lose_store(self, name: str) -> None:
        shutil.rmtree(self.path / name, ignore_errors=True)
        self.left.pop(name, None)

    # -- others

    async def connected(self, name: str) -> MemoryBroker:
        """A client that is no worker's."""
        broker = MemoryBroker(self.cluster, name)
        await broker.start()
        return broker

    async def reset(
        self,
        to: Target = "earliest",
        *,
        by: MemoryBroker | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> dict[TP, int]:
        """As `semel reset` does it. `by`: the client that does."""
        by = by or await self.connected("reset")
        return await reset(self.plan(), EngineSettings(), by, self.clock, to, say=say)

    async def close(self) -> None:
        self.cluster.faults.clear()
        for other in self.others:
            other.cancel()
        for worker in list(self.workers.values()):
            worker.kill()
            await worker.gone()

    def slow_network(self, most_s: float = 0.01, seed: int = 1) -> None:
        """Every call takes a while, a different one each."""
        rng = random.Random(seed)

        def script(call: Call) -> Fault:
            return delay(rng.random() * most_s, rng.random() * most_s)

        self.cluster.faults.script(script)

    # -- waiting

    async def until(self, holds: Callable[[], bool], *, within_s: float = 60.0, what: str = "") -> None:
        deadline = self.clock.monotonic() + within_s
        while not holds():
            for worker in self.workers.values():
                if worker.over and not worker.killed:
                    error = worker.running.exception()
                    raise error if error is not None else AssertionError(f"{worker.client} stopped")
            if self.clock.monotonic() > deadline:
                raise AssertionError(f"{what or 'it'} did not happen within {within_s} s: {self.state()}")
            await self.clock.sleep(0.01)

    async def until_running(self, *workers: Worker, within_s: float = 60.0) -> None:
        def running() -> bool:
            return all(
                w.engine.tasks and all(t.state is TaskState.RUNNING for t in w.engine.tasks.values()) for w in workers
            )

        await self.until(running, within_s=within_s, what="running")

    async def drained(self, *, within_s: float = 60.0) -> None:
        """Until every record of the source is below its task's committed position."""
        await self.until(self.is_drained, within_s=within_s, what="drained")

    def is_drained(self) -> bool:
        committed = self.committed_positions()
        for p, records in enumerate(self.cluster.committed("payments")):
            if records:
                at = committed.get(p)
                if at is None or at.topics["payments"].next <= records[-1].offset or at.parked:
                    return False
        # The answer to EndTxn takes its way: what is committed must have landed, too.
        return all(
            t.state is not TaskState.RUNNING
            or p not in committed
            or (t.committed.topics == committed[p].topics and t.committed.parked == committed[p].parked)
            for w in self.workers.values()
            if not w.over
            for p, t in w.engine.tasks.items()
        )

    def committed_positions(self) -> dict[int, positions.Position]:
        return {p: found[-1] for p, found in enumerate(self.position_history()) if found}

    def position_history(self) -> list[list[positions.Position]]:
        if f"{APP}-positions" not in self.cluster.topics():
            return []
        return [
            [positions.decode(r.value, "") for r in records if r.key == positions.KEY and r.value is not None]
            for records in self.cluster.committed(f"{APP}-positions")
        ]

    def state(self) -> dict[str, Any]:
        return {
            w.client: {
                "waiting_for": w.engine.waiting_for,
                "paused_by": w.engine.paused_by,
                "stats": {k: v for k, v in w.engine.stats.items() if v},
                "tasks": {
                    p: (
                        t.state.value,
                        {name: c.position for (name, _), c in t.cursors.items()},
                        t.restored,
                        t.to_restore,
                    )
                    for p, t in w.engine.tasks.items()
                },
            }
            for w in self.workers.values()
        } | {"committed": {p: at.topics for p, at in self.committed_positions().items()}}

    # -- checking

    def check(self, *, restored: bool = True) -> None:
        """Everything the workers left on the cluster and in their stores is what the oracle says. AssertionError."""
        for p in range(self.partitions):
            check_partition(self, p)
        if restored:
            for worker in self.workers.values():
                if not worker.over:
                    check_store(self, worker)
