"""A world that is simulated: the harness's, with disks and clocks of its own, workers that die and come back, a history."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import shutil
import zlib
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import orjson

from semel import Dedup, Pipeline, RateLimit, Retry, Topic
from semel.errors import PositionConflict, SemelError, ShapeChanged, TopicChanged
from semel.memory.batch import Batch, MemoryRecord
from semel.partitioner import partition_of
from semel.port import TP, RpcError, RpcLost
from semel.stages.sink.destination import ProducerRecord
from semel.state import lineage
from semel.state.store import Store, StoreError
from semel.state.task import Task, TaskState
from semel.testing.clock import VirtualClock, VirtualLoop
from semel.testing.worker import Killed, open_store
from tests.simulation.history import History, Recorder, Recovery, StoreSeen, TopicDeleted
from tests.simulation.laws import Violation, judge
from tests.simulation.store_model import Disk, ModelStore
from tests.simulation.watch import Watch, has_work, watching
from tests.unit.harness import APP, ATTEMPTS, Payment, Settlement, Work, Worker, World, payments_pipeline
from tests.unit.payments import reminder

# How long everything may take to run again once nothing goes wrong any more: a rebalance that waits for a member that is
# gone, a session, a transaction's timeout, and the restore after all of them.
REST_S = 120.0
# An output that nobody can fence is given up when a commit could have taken as long.
NOTE_S = 10.0
# Nobody moved offsets, changed a topic or a declaration: no made-up answer may make a worker say so.
NEVER = (PositionConflict, ShapeChanged, TopicChanged)
READS = ("get_marks", "meta")
NOTES = "notes"
RETRY = Retry(attempts=ATTEMPTS, first_delay=timedelta(milliseconds=20), max_delay=timedelta(milliseconds=100))
# When a share of the payments are reminded of; a reminder that is due so soon is waited for.
SOON_MS = 60_000
REMIND_MS = (0, 30, 300, 3000, 15_000)
TOPICS = ("balances-changelog", "journals-changelog", "dedup-changelog", "timers", "positions")


class SimulatedWorld(World):
    """`real`: stores are RocksDB. `fate(worker)` is called when a worker starts, `on_death(worker)` when it has ended."""

    def __init__(self, path: Path, *, seed: int, partitions: int, style: str, window: timedelta, real: bool,
                 stateful: bool = True, concurrency: int = 1, rate_limit: RateLimit | None = None, holds: bool = False,
                 timeout: timedelta | None = None, **settings: Any) -> None:  # fmt: skip
        self.watch: Watch = watching()
        self.recorder = Recorder(asyncio.get_running_loop().time, APP, "payments")
        dedup = Dedup("id", window=window)
        super().__init__(
            path,
            partitions=partitions,
            seed=seed,
            style=style,
            dedup=dedup,
            journal=self.recorder,
            interrupts=(KeyboardInterrupt,),
            **settings,
        )
        declared: dict[str, Any] = {"concurrency": concurrency, "rate_limit": rate_limit, "timeout": timeout}
        declared["retry"] = replace(RETRY, then="hold") if holds else RETRY
        if concurrency > 1 or rate_limit is not None or timeout is not None or holds:
            self.pipeline = payments_pipeline(self.work, style=style, dedup=dedup, **declared)
        if not stateful:
            self.pipeline = passing_on(self.work, **declared)
        self.loop = cast("VirtualLoop", asyncio.get_running_loop())
        self.loop.set_exception_handler(self._complain)
        self.real = real
        self.machine = ""
        self.disks: dict[str, Disk] = {}
        self.clocks: dict[str, VirtualClock] = {}
        [agent] = self.pipeline.plan().agents
        self.history = History(
            APP, agent.name, partitions, ATTEMPTS, dedup.window_ms, dedup.bucket_ms, stateful=stateful,
            reminds=not stateful or style not in ("coroutine", "function"), sink_sizes={partitions},
            hopeless_attempts=ATTEMPTS if style == "stubborn" else 1, holds=holds,
        )  # fmt: skip
        # Over how many partitions the producers of the source spread keys.
        self.spread = partitions
        # Where in the journal this life of the app begins, and the topic that is its source.
        self._life_from = self._source_from = 0
        # What else may end a worker: a topic was changed so that it must.
        self.changed: tuple[type[SemelError], ...] = ()
        self.machines: dict[str, str] = {}
        self.crashes = 0
        self.idle_kills = 0
        self.ends: list[str] = []
        self.findings: list[str] = []
        self.on_start: Callable[[Worker], None] = lambda worker: None
        self.on_death: Callable[[Worker], None] = lambda worker: None
        # Errors that may end a worker: those of answers that were made up.
        self.excused = False
        self._waiting: dict[int, list[Recovery]] = {}
        self._open_inputs = 0
        # Payments ask for reminders. Their topic is named by an event, which fails where an answer that was made up denies it.
        self.reminded = True
        self.sent: list[dict[str, Any]] = []
        self.closed = False
        self._written = 0
        # When the last event of each partition was, in ms.
        self.latest: dict[TP, int] = {}
        self.notes: dict[str, tuple[Worker, asyncio.Future[None]]] = {}
        # Of all lives: one may be committed in the life after its own.
        self._notes_sent = 0
        self.watch.on_task.append(self._task_runs)
        self.cluster.create_topic(NOTES, 1)
        # Whether the event of this id is to end every process that handles it.
        self.deadly: Callable[[str], bool] = lambda ident: False

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio would write on the log: something went wrong, and nobody looked at it."""
        task = context.get("task") or context.get("future")
        if isinstance(task, asyncio.Task) and not self.closed:
            self.findings.append(f"{task.get_name()}: {context['message']}: {context.get('exception')!r}")

    # -- machines

    def machine_of(self, name: str) -> str:
        return self.machine

    def keep_notes(self, worker: Worker) -> None:
        self.left[self.machines[worker.client]] = bytes(worker.notes.buffer)

    def open_store(self, name: str) -> Store:
        if self.real:
            return open_store(self.path / self.machine / "db", mb=1)
        return cast("Store", ModelStore(self.disks.setdefault(self.machine, Disk()), self.path / self.machine))

    def clock_of(self, name: str) -> VirtualClock:
        if self.machine not in self.clocks:
            self.clocks[self.machine] = VirtualClock(self.clock.time())
        return self.clocks[self.machine]

    def lose_store(self, name: str) -> None:
        self.disks.pop(name, None)
        self.left.pop(name, None)
        shutil.rmtree(self.path / name, ignore_errors=True)

    def fail_reads(self, worker: Worker, times: int) -> None:
        """Marks and positions cannot be read the next times, rows until the store is opened anew."""
        left = times

        def failing(read: Callable[..., Any]) -> Callable[..., Any]:
            def refuse_some(*args: Any) -> Any:
                nonlocal left
                if left:
                    left -= 1
                    raise StoreError("input/output error")
                return read(*args)

            return refuse_some

        for name in READS:
            setattr(worker.store, name, failing(getattr(worker.store, name)))
        # Opening sets it again. (Whoever holds what it was before keeps RocksDB's lock.)
        worker.store.get_row = _unreadable

    def mend_disk(self, worker: Worker) -> None:
        for name in ("write", *READS):
            worker.store.__dict__.pop(name, None)

    def processed_input(self, partition: int) -> int:
        """Up to where retention may take the source's log: what every position is past. Its start, where that is all."""
        log = self.cluster.log(TP("payments", partition))
        return min(max(self.recorder.committed_next(partition), log.log_start), log.end)

    # -- workers

    def boot(self, name: str, machine: str = "", **settings: Any) -> Worker:
        """Start a worker on a machine, by default the one of its name."""
        self.machine = machine or name
        worker = self.start(name, **settings)
        self.machines[worker.client] = self.machine
        self.watch.engines[worker.client] = worker.engine
        worker.running.add_done_callback(lambda _: self._over(worker), context=Context())
        self.on_start(worker)
        return worker

    def _over(self, worker: Worker) -> None:
        worker.store.close()
        self.workers.pop(worker.client, None)
        self.watch.engines.pop(worker.client, None)
        self.loop.thaw(worker.client)
        error = None if worker.running.cancelled() else worker.running.exception()
        self.ends.append(type(error).__name__)
        expected = (Killed, SemelError, RpcError, RpcLost) if self.excused else (Killed,)
        never = not isinstance(error, expected) or isinstance(error, NEVER)
        if error is not None and never and not isinstance(error, self.changed):
            self.findings.append(f"{worker.client} ended with {type(error).__name__}: {error}")
        self.on_death(worker)

    def alive(self) -> list[Worker]:
        return [w for w in self.workers.values() if not w.over and not w.killed]

    def amid_work(self, worker: Worker) -> bool:
        """Something is under way: an epoch, an event, a restore, a rebalance. A worker at rest proves nothing by dying."""
        engine = worker.engine
        if not engine.restored or engine.membership is None or engine.epoch.closed or engine._committer.committing:
            return True
        return has_work(engine) or any(runner.unit is not None or runner.queue.ready for runner in engine.runners)

    def crash(self, worker: Worker, *where: str, arrives: bool = False) -> None:
        """Kill it; it counts where it was amid work. `arrives`: what it has sent still reaches the cluster."""
        if worker.killed or worker.over:
            return
        if self.amid_work(worker):
            self.crashes += 1
            self.watch.count("crash", *where)
            self.watch.count("crashed in", worker.engine.group.state.name if worker.engine.group else "STARTING",
                             self.watch.epoch_of(worker.client))  # fmt: skip
        else:
            self.idle_kills += 1
        held = worker.engine.assignment.tasks if worker.engine.membership is not None else ()
        if held:
            recovery = Recovery(f"the recovery from the crash of {worker.client}", self.loop.time(), None, math.inf)
            self.history.recoveries.append(recovery)
            for partition in held:
                self._waiting.setdefault(partition, []).append(recovery)
        worker.kill(arrives=arrives)
        self.loop.thaw(worker.client)

    def _task_runs(self, client: str, partition: int) -> None:
        for recovery in self._waiting.pop(partition, ()):
            recovery.ended = self.loop.time()

    # -- outputs without an event

    def note(self, worker: Worker) -> None:
        """An output without an event; its sender is of this worker's process."""
        text = f"n{self._notes_sent}"
        self._notes_sent += 1
        with contextlib.suppress(SemelError):
            self.notes[text] = worker, worker.engine.outbox(ProducerRecord(TP(NOTES, 0), None, b"k", text.encode(), ()))

    def unanswered(self) -> list[Worker]:
        """Who waits for an answer to a note. A sender that died with its worker waits for nothing."""
        return [worker for worker, told in self.notes.values() if not told.done() and not worker.killed]

    # -- lives of the app's state

    def judged_life(self) -> list[Violation]:
        """What this life broke; what comes next is of another one."""
        found = judge(self.judged())
        self.notes.clear()
        self._waiting.clear()
        return found

    def begin_life(self, begins: Mapping[TP, int]) -> None:
        """A reset is complete: every partition of the source begins there, with empty state."""
        old, events = self.history, self.recorder.events
        self._life_from = len(events)
        gone = (i for i, e in enumerate(events) if isinstance(e, TopicDeleted) and e.topic == "payments")
        self._source_from = max((i + 1 for i in gone), default=self._source_from)
        self.partitions = self.spread = len(self.cluster.topics()["payments"].logs)
        self.history = History(
            old.app, old.agent, self.partitions, old.attempts, old.window_ms, old.bucket_ms, old.exact_time, old.refusals,
            stateful=old.stateful, reminds=old.reminds, hopeless_attempts=old.hopeless_attempts, holds=old.holds,
            begins={tp.partition: at for tp, at in begins.items()},
            sink_sizes={len(self.cluster.topics()["settlements"].logs)},
        )  # fmt: skip
        self.changed = ()

    # -- input

    def place(self, account: str) -> TP:
        return TP("payments", partition_of(account.encode(), self.spread))

    def write(self, value: bytes | dict[str, Any] | None, account: str, *, at_ms: int | None = None) -> tuple[TP, int]:
        """Every third record has headers, among them the lineage that somebody further up gave it."""
        key, tp = account.encode(), self.place(account)
        raw = orjson.dumps(value) if isinstance(value, dict) else value
        self._written += 1
        trace = str(self._written).encode()
        headers = [("trace", trace), (lineage.HEADER, b"upstream/orders/0/7/0/" + trace), ("empty", None)]
        stamp = self.cluster.now_ms() if at_ms is None else at_ms
        self.latest[tp] = max(stamp, self.latest.get(tp, 0))
        return tp, self.cluster.write(
            tp, [(key, raw)], timestamp=stamp, headers=headers if self._written % 3 == 0 else ()
        )

    def pay_again_after_the_window(self, name: str) -> None:
        """An id again when its window is over, written at once with what ended it: mostly both are of one epoch.

        Only after a pause, since events are stamped between the last one and now.
        """
        account = f"a{self.rng.randrange(8)}"
        begun, window = self.latest.get(self.place(account), 0) + 1, self.history.window_ms
        if begun + window + 1_000 >= self.cluster.now_ms():
            return
        event = {"id": f"{name}.again", "account": account, "amount": 3}
        self.write(event, account, at_ms=begun)
        for number, at_ms in enumerate((begun + window // 2, begun + window + 1_000)):
            self.write({**event, "id": f"{name}.between.{number}"}, account, at_ms=at_ms)
        self.write(event, account, at_ms=begun + window + 1_000)

    def pay_some(self, rng: random.Random, name: str, many: int) -> None:
        """Payments, with all that input can be: again, in conflict, unreadable, failing, filtered, slow, closing an account."""
        for number in range(many):
            draw, event = rng.random(), {"id": f"{name}.{number}", "account": f"a{rng.randrange(8)}", "amount": 0}
            if self.sent and draw < 0.16:
                event = rng.choice(self.sent[-40:])
                if draw < 0.03:
                    event = {**event, "amount": event["amount"] + 1000}
                self.write(event, event["account"])
                continue
            if draw < 0.2:
                self.write(b"not json", event["account"])
                continue
            if draw > 0.26:
                event["amount"] = rng.randrange(1, 100) if draw > 0.32 else -1
            if draw > 0.96:
                event["fails"] = rng.choice([1, 2, -1])
            elif draw > 0.9:
                event["sleep_ms"] = rng.choice([1, 20, 200, 3000])
            elif self.deadly(event["id"]):
                event["kills"] = True
            if self.reminded and (at := zlib.crc32(event["id"].encode()) % 20) < len(REMIND_MS):
                event["remind_ms"] = REMIND_MS[at]
                # Keys move where nothing is kept of them, and their names would not.
                event["named"] = self.history.stateful and len(event["id"]) % 2 == 0
            elif self.reminded and self.history.stateful and at < len(REMIND_MS) + 2:
                event["remind_ms"] = -2
            self.sent.append(event)
            self.write(event, event["account"])

    def begin_input(self, records: int) -> Callable[[bool], None]:
        """A producer of the source writes in a transaction; the returned call commits or aborts it."""
        self._open_inputs += 1
        producer = 500 + self._open_inputs
        touched: dict[Any, int] = {}
        ids: list[str] = []
        for _ in range(records):
            self.numbers += 1
            account = f"a{self.rng.randrange(8)}"
            ids.append(f"x{self.numbers}")
            raw = orjson.dumps({"id": ids[-1], "account": account, "amount": self.rng.randrange(1, 100)})
            tp = self.place(account)
            now = self.latest[tp] = self.cluster.now_ms()
            record = MemoryRecord(now, account.encode(), raw)
            sequence = touched.get(tp, 0)
            self.cluster.log(tp).append(Batch(producer, 0, sequence, 100 + len(raw), [record]), now)
            touched[tp] = sequence + 1

        def end(commit: bool) -> None:
            for tp in touched:
                self.cluster.log(tp).end_transaction(producer, 0, commit=commit, now_ms=self.cluster.now_ms())

        return end

    # -- the end

    def at_rest(self) -> bool:
        """Every record is behind its task's committed position, and everybody runs and has landed what it committed."""
        workers = self.alive()
        running = {p: t for w in workers for p, t in w.engine.tasks.items() if t.state is TaskState.RUNNING}
        if len(running) < self.partitions or not all(w.engine.restored and w.engine.membership for w in workers):
            return False
        for p, task in running.items():
            at = self.recorder.committed_next(p)
            if at < self.recorder.source_ends.get(p, 0) or task.committed.topics["payments"].next < at or task.touched:
                return False
            if task.committed.parked != task.parked_events or not waits_for_letters(task):
                return False
            if task.timers is not None and task.timers.count and self.history.exact_time:
                due_ms = task.timers.next_due_ms
                if due_ms is not None and due_ms < self.cluster.now_ms() + SOON_MS:
                    # Where a clock was turned back, it may be due in hours.
                    return False
        return not any(w.engine._committer.committing for w in workers)

    async def rest(self) -> None:
        """Wait for it, and note what the stores hold then."""
        if await self.until_at_rest("the way back to rest"):
            # What somebody else ran already when its last owner died had nothing to recover.
            self.history.recoveries = [r for r in self.history.recoveries if r.ended is not None]
            # Marks expire with the commit of later events: let everybody have some.
            for account in range(8):
                self.pay(f"a{account}")
            # A damaged block may show at this look only; the copy is made anew then.
            for what in ("the last events", "a store made anew"):
                if not await self.until_at_rest(what) or self._see_stores():
                    break
        # Late markers, late answers: what was lost for good is known by now.
        await asyncio.sleep(0.5)
        until = self.loop.time() + NOTE_S
        while self.unanswered() and self.loop.time() < until:
            await self.clock.sleep(0.5)

    async def until_at_rest(self, what: str) -> bool:
        recovery = Recovery(what, self.loop.time(), None, REST_S)
        self.history.recoveries.append(recovery)
        while not self.at_rest():
            if self.loop.time() - recovery.begun > REST_S:
                return False
            await self.clock.sleep(0.1)
        recovery.ended = self.loop.time()
        return True

    def _see_stores(self) -> bool:
        """False where one cannot be read; its worker has heard of it, and nothing is noted."""
        seen: list[StoreSeen] = []
        for worker in self.alive():
            try:
                for p, task in worker.engine.tasks.items():
                    rows = {name: dict(worker.store.scan_rows(r.prefix)) for name, r in task.tables.items()}
                    marks = [(int.from_bytes(k[:8], "big", signed=True), k[8:]) for k, _ in worker.store.scan_marks(p)]
                    seen.append(StoreSeen(worker.client, p, rows, marks))
            except StoreError as exc:
                worker.engine.store_failed(exc)
                return False
        self.history.stores += seen
        return True

    def judged(self) -> History:
        events = self.recorder.events
        self.history.events = events[self._life_from :]
        self.history.source = events[self._source_from :] if self.history.begins else None
        for text, (worker, told) in self.notes.items():
            # What is left of a worker that was killed goes on draining here, and may have been told.
            if told.done() or not worker.killed:
                self.history.notes[text] = told.exception() is None if told.done() else None
        return self.history

    async def close(self) -> None:
        self.on_death = lambda worker: None
        self.excused = True
        self.cluster.faults.clear()
        self.watch.on_task.clear()
        self.closed = True
        workers = list(self.workers.values())
        for worker in workers:
            worker.kill()
            self.loop.thaw(worker.client)
        await asyncio.gather(*(w.running for w in workers), return_exceptions=True)
        await asyncio.sleep(0)


def waits_for_letters(task: Task) -> bool:
    """Whatever is parked waits behind an event that holds its key."""
    return all(cursor.parked is None or cursor.parked.heads == 0 for cursor in task.cursors.values())


def passing_on(work: Work, **declared: Any) -> Pipeline:
    """Nothing that it keeps belongs to a key: neither tables nor a dedup rule."""

    async def pass_on(payments: Any) -> Any:
        async for payment in payments:
            await work.attempt(payment)
            work.maybe_fail(payment)
            if payment.remind_ms >= 0:
                yield reminder(payment)
            if payment.amount:
                yield Settlement(payment.id, payment.account, payment.amount)

    return Pipeline(
        APP,
        source=Topic("payments", key=str, value=Payment),
        agent=pass_on,
        sink=Topic("settlements", key=str, value=Settlement),
        **declared,
    )


def _unreadable(raw: bytes) -> bytes | None:
    raise StoreError("input/output error")


def seeded(*what: object) -> random.Random:
    """A stream of its own for each purpose, so that leaving one decision out does not change the others."""
    return random.Random("/".join(map(str, what)))
