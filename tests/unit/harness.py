"""Engines on one in-memory cluster, an oracle that knows nothing of them, and a checker that compares the two.

The oracle reads the source topic and says, offset by offset, what must have come of each record. The checker holds that
against the topics the workers wrote: every output once and in order, every row, every mark, and at each committed
position the counts and the stream time that belong to it.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson

from semel import Dedup, Pipeline, Reject, Retry, Table, Topic
from semel.errors import SemelError
from semel.memory.batch import MemoryRecord
from semel.memory.journal import Journal
from semel.plan import Plan
from semel.port import TP
from semel.runtime.failpoints import Failpoints
from semel.runtime.settings import EngineSettings
from semel.stages.agent.deaths import suspected
from semel.state import crash_notes, positions
from semel.state.crash_notes import CrashNotes
from semel.state.dedup_marks import DEAD, unpack
from semel.state.positions import COUNTS
from semel.state.store import Store, StoreError
from semel.state.task import TaskState
from semel.testing.broker import Call, ClusterSettings, Fault, MemoryBroker, MemoryCluster, delay
from semel.testing.clock import VirtualClock, process
from semel.worker.engine import Engine

WINDOW = timedelta(days=7)
ATTEMPTS = 3
APP = "payments"


@dataclass
class Payment:
    id: str
    account: str
    amount: int
    # How often handling it fails before it succeeds; -1: always.
    fails: int = 0
    sleep_ms: int = 0
    # Handling it ends the process, each time.
    kills: bool = False


@dataclass
class Settlement:
    id: str
    account: str
    balance: int


class Killed(SemelError):
    """What a worker ends with that was killed; it cannot do anything more."""


class Work:
    """What the agents do, and what they went through. Shared by all workers of a test, as the outside world is."""

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        self.handled: list[str] = []
        self.before: Callable[[Payment], Awaitable[None]] | None = None
        # What a failing event fails with.
        self.error: Callable[[str], BaseException] = RuntimeError

    async def attempt(self, payment: Payment) -> None:
        self.handled.append(payment.id)
        if self.before is not None:
            await self.before(payment)
        if payment.sleep_ms:
            await asyncio.sleep(payment.sleep_ms / 1000)

    def maybe_fail(self, payment: Payment) -> None:
        if payment.fails:
            seen = self.failures[payment.id] = self.failures.get(payment.id, 0) + 1
            if payment.fails < 0 or seen <= payment.fails:
                raise self.error(f"attempt {seen} at {payment.id}")


def payments_pipeline(
    work: Work,
    *,
    style: str = "stream",
    dedup: Dedup | None = None,
    make: Callable[[tuple[Table, Table]], Any] | None = None,
    **declared: Any,
) -> Pipeline:
    """Balances by account (a value that cannot change in place), journals by account (one that can), settlements.

    A negative amount closes the account.

    `make(tables)`: another agent than the usual one.
    """
    balances = Table("balances", key=str, value=int, default=int)
    journals = Table("journals", key=str, value=list, default=list)

    def book(payment: Payment) -> Settlement | None:
        balances[payment.account] += payment.amount
        journals[payment.account].append(payment.id)
        if len(journals[payment.account]) > 20:
            del journals[payment.account][0]
        work.maybe_fail(payment)
        if payment.amount == 0:
            return None
        if payment.amount < 0:
            del balances[payment.account], journals[payment.account]
            return Settlement(payment.id, payment.account, 0)
        return Settlement(payment.id, payment.account, balances[payment.account])

    async def settle(payments: Any) -> Any:
        async for payment in payments:
            await work.attempt(payment)
            settled = book(payment)
            if settled is not None:
                yield settled

    async def settle_one(payment: Payment) -> Settlement | None:
        await work.attempt(payment)
        return book(payment)

    def settle_at_once(payment: Payment) -> Settlement | None:
        work.handled.append(payment.id)
        return book(payment)

    async def settle_batches(payments: Any) -> Any:
        async for batch in payments.batches():
            for payment in batch:
                await work.attempt(payment)
                settled = book(payment)
                if settled is not None:
                    yield settled

    async def settle_and_return(payments: Any) -> Any:
        """Now and then it is done with its loop, and with the event in hand."""
        done = 0
        async for payment in payments:
            await work.attempt(payment)
            settled = book(payment)
            if settled is not None:
                yield settled
            done += 1
            if done % 7 == 0:
                return

    async def settle_stubbornly(payments: Any) -> Any:
        """It takes every error, its own cancellation included, for a reason to go on."""
        while True:
            try:
                async for payment in payments:
                    await work.attempt(payment)
                    settled = book(payment)
                    if settled is not None:
                        yield settled
            except (GeneratorExit, KeyboardInterrupt):
                raise
            except BaseException:
                pass

    agents = {"stream": settle, "coroutine": settle_one, "batches": settle_batches, "function": settle_at_once,
              "returning": settle_and_return, "stubborn": settle_stubbornly}  # fmt: skip
    agent = agents[style]
    if make is not None:
        agent = make((balances, journals))
    return Pipeline(
        APP,
        source=Topic("payments", key=str, value=Payment),
        dedup=dedup or Dedup("id", window=WINDOW),
        agent=agent,
        tables=[balances, journals],
        sink=Topic("settlements", key=str, value=Settlement),
        retry=Retry(attempts=ATTEMPTS, first_delay=timedelta(milliseconds=20), max_delay=timedelta(milliseconds=100)),
        **declared,
    )


class Worker:
    """One engine with its own client, store and failpoints."""

    def __init__(self, world: World, name: str, number: int, **settings: Any) -> None:
        self.world = world
        self.name = name
        self.client = f"{name}#{number}"
        self.path = world.path / name
        self.store = world.open_store(name)
        self.clock = world.clock_of(name)
        self.failpoints = Failpoints()
        plan = world.plan()
        self.notes = world.notes_of(name, plan)
        self.engine = Engine(
            plan,
            EngineSettings(**{"web_url": f"http://{name}.{number}", **world.settings, **settings}),
            MemoryBroker(world.cluster, self.client),
            self.store,
            self.clock,
            random.Random(number),
            instance=name,
            failpoints=self.failpoints,
            notes=self.notes,
        )
        # All that comes of this task is this worker's: the loop can freeze it, and nothing else.
        own = copy_context()
        own.run(process.set, self.client)
        self.running = asyncio.get_running_loop().create_task(self.engine.run(), name=self.client, context=own)
        self.killed = False

    @property
    def over(self) -> bool:
        return self.running.done()

    def kill(self, *, arrives: bool = False) -> None:
        """As SIGKILL: from here on nothing it does has an effect on the cluster or on its store.

        `arrives`: but for the requests that it has sent.
        """
        if not self.killed and not self.over:
            self.notes.alive(self.clock.monotonic())
            self.world.keep_notes(self)
        self.killed = True
        self.world.cluster.faults.cut(self.client, arrives=arrives)
        self.store.write = lambda batch: None
        self.engine.fail(Killed())

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
        """Wait for its end; the error it ended with. Its store is closed."""
        await asyncio.wait({self.running})
        self.store.close()
        self.world.workers.pop(self.client, None)
        if not self.killed:
            self.notes.ended()
            self.world.keep_notes(self)
        return self.running.exception()

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
        return TP("payments", _partition_of(account.encode(), self.partitions))

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
        return Store(self.path / name / "db", cache_mb=2, buffer_mb=2)

    def machine_of(self, name: str) -> str:
        return name

    def notes_of(self, name: str, plan: Plan) -> CrashNotes:
        left = crash_notes.read(self.left.get(self.machine_of(name), b""))
        suspects = suspected(left, "") if left is not None else []
        return CrashNotes([agent.name for agent in plan.agents], list(plan.sources), suspects)

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

    def lose_store(self, name: str) -> None:
        shutil.rmtree(self.path / name, ignore_errors=True)
        self.left.pop(name, None)

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
                if at is None or at.topics["payments"].next <= records[-1].offset:
                    return False
        # The answer to EndTxn takes its way: what is committed must have landed, too.
        return all(
            t.state is not TaskState.RUNNING or p not in committed or t.committed.topics == committed[p].topics
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


# ---------------------------------------------------------------------- the oracle


@dataclass
class Truth:
    """What must have come of one partition of the source."""

    outputs: list[dict[str, Any]] = field(default_factory=list)
    dead: list[tuple[int, str]] = field(default_factory=list)
    balances: dict[str, int] = field(default_factory=dict)
    journals: dict[str, list[str]] = field(default_factory=dict)
    marks: dict[str, tuple[int, bool]] = field(default_factory=dict)
    # offset -> (counts, stream time) once everything below it is done
    below: dict[int, tuple[dict[str, int], int | None]] = field(default_factory=dict)


def oracle(records: Sequence[MemoryRecord], *, end: int) -> Truth:
    """For input within the dedup window, never ahead of the clock: what each record does, one after the other."""
    truth = Truth()
    counts = dict.fromkeys(COUNTS, 0)
    payloads: dict[str, bytes] = {}
    stream: int | None = None
    last = 0
    for record in records:
        for offset in range(last, record.offset + 1):
            truth.below[offset] = (dict(counts), stream)
        last = record.offset + 1
        counts["in"] += 1
        try:
            payment = Payment(**orjson.loads(record.value or b""))
        except (ValueError, TypeError):
            counts["dead"] += 1
            truth.dead.append((record.offset, "undecodable"))
            continue
        stream = record.timestamp if stream is None else max(stream, record.timestamp)
        if payment.id in payloads:
            if payloads[payment.id] != record.value:
                counts["conflicts"] += 1
                counts["dead"] += 1
                truth.dead.append((record.offset, "conflict"))
            elif truth.marks[payment.id][1]:
                counts["dead"] += 1
                truth.dead.append((record.offset, "duplicate"))
            else:
                counts["duplicates"] += 1
            continue
        payloads[payment.id] = record.value or b""
        failed = payment.fails < 0 or payment.fails >= ATTEMPTS
        truth.marks[payment.id] = (record.offset, failed)
        if failed:
            counts["dead"] += 1
            truth.dead.append((record.offset, "failed"))
            continue
        balance = truth.balances[payment.account] = truth.balances.get(payment.account, 0) + payment.amount
        journal = truth.journals.setdefault(payment.account, [])
        journal.append(payment.id)
        del journal[:-20]
        if payment.amount == 0:
            counts["filtered"] += 1
        else:
            counts["out"] += 1
            truth.outputs.append({"id": payment.id, "account": payment.account, "balance": balance})
    for offset in range(last, end + 1):
        truth.below[offset] = (dict(counts), stream)
    return truth


# ---------------------------------------------------------------------- the checker


def _partition_of(key: bytes, partitions: int) -> int:
    from semel.partitioner import partition_of

    return partition_of(key, partitions)


def committed_values(cluster: MemoryCluster, topic: str, partition: int) -> list[MemoryRecord]:
    return cluster.committed(topic)[partition] if topic in cluster.topics() else []


def folded(records: Sequence[MemoryRecord]) -> dict[bytes, bytes]:
    """A changelog's last word on each key."""
    rows: dict[bytes, bytes] = {}
    for record in records:
        assert record.key is not None
        if record.value is None:
            rows.pop(record.key, None)
        else:
            rows[record.key] = record.value
    return rows


def dead_letters(records: Sequence[MemoryRecord]) -> list[tuple[int, str]]:
    said = [{name: value or b"" for name, value in r.headers} for r in records]
    return [(int(h["semel.offset"]), h["semel.reason"].decode()) for h in said]


def given_up(world: World) -> list[tuple[str, str, int]]:
    """Reason, error and attempts of each dead letter."""
    found: list[tuple[str, str, int]] = []
    for log in world.cluster.committed(f"{APP}.dlq"):
        for record in log:
            headers = {name: (value or b"").decode() for name, value in record.headers}
            found.append((headers["semel.reason"], headers["semel.error"], int(headers["semel.attempts"])))
    return found


def truth_of(world: World, partition: int) -> Truth:
    end = world.cluster.log(TP("payments", partition)).end
    return oracle(world.cluster.committed("payments")[partition], end=end)


def check_partition(world: World, p: int) -> None:
    cluster = world.cluster
    truth = truth_of(world, p)
    history = world.position_history()[p] if world.position_history() else []
    # Nothing is lost, doubled or out of order.
    outputs = [orjson.loads(r.value or b"null") for r in committed_values(cluster, "settlements", p)]
    assert outputs == truth.outputs, difference(f"settlements[{p}]", outputs, truth.outputs)
    dead = dead_letters(committed_values(cluster, f"{APP}.dlq", p))
    assert dead == truth.dead, difference(f"dlq[{p}]", dead, truth.dead)
    # State is the fold of what took effect.
    balances = folded(committed_values(cluster, f"{APP}-balances-changelog", p))
    assert {k.decode(): orjson.loads(v) for k, v in balances.items()} == truth.balances, f"balances[{p}]"
    journals = folded(committed_values(cluster, f"{APP}-journals-changelog", p))
    assert {k.decode(): orjson.loads(v) for k, v in journals.items()} == truth.journals, f"journals[{p}]"
    marks = {k.decode(): unpack(v) for k, v in folded(committed_values(cluster, f"{APP}-dedup-changelog", p)).items()}
    assert {k: (m.offset, m.outcome == DEAD) for k, m in marks.items()} == truth.marks, f"marks[{p}]"
    # Positions never go back, and each says what had come of everything below it.
    before = -1
    for position in history:
        at = position.topics["payments"].next
        assert at >= before, f"positions[{p}] went from {before} back to {at}"
        before = at
        counts, stream = truth.below[at]
        assert position.counts == counts, f"positions[{p}] at {at} counts {position.counts}, not {counts}"
        assert position.stream_time.ms == stream, f"positions[{p}] at {at}: {position.stream_time}, not {stream}"
    if history:
        group = cluster.groups.stable_offsets(APP, [TP("payments", p)])[TP("payments", p)]
        assert group == before, f"the group is at {group}, the position at {before}"


def difference(what: str, found: list[Any], wanted: list[Any]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
    return f"{what} has {len(found)}, not {len(wanted)}; at {at}: {found[at : at + 3]}, not {wanted[at : at + 3]}"


def check_store(world: World, worker: Worker) -> None:
    for p, task in worker.engine.tasks.items():
        if task.state is not TaskState.RUNNING:
            continue
        truth = truth_of(world, p)
        rows = {k.decode(): orjson.loads(v) for k, v in task.tables["balances"].scan()}
        assert rows == truth.balances, f"{worker.name}'s store, balances[{p}]"
        journals = {k.decode(): orjson.loads(v) for k, v in task.tables["journals"].scan()}
        assert journals == truth.journals, f"{worker.name}'s store, journals[{p}]"
        marks = {k[8:].decode(): unpack(v).offset for k, v in worker.store.scan_marks(p)}
        assert marks == {k: offset for k, (offset, _) in truth.marks.items()}, f"{worker.name}'s store, marks[{p}]"


__all__ = ["Reject", "Worker", "World"]
