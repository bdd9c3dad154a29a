"""What others do to the topics of an app: they grow, are deleted, are made anew; and what the app's operator does about it.

What the app must live with goes on beside the storm. What it must stop at ends a life of its state: every worker has to end
and say why, and a reset, itself amid trouble, begins the next one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextvars import copy_context
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

from semel.errors import PositionConflict, SemelError, TopicChanged
from semel.memory.broker import MemoryBroker
from semel.memory.faults import Call, Fault
from semel.port import TP, RpcError, RpcLost
from semel.runtime.settings import EngineSettings
from semel.state.positions import KEY
from semel.task.topic_watch import CONFIRM_S, SAY_MISSING_S
from semel.testing.clock import process
from semel.worker.reset import Target, reset
from tests.simulation.history import Recovery
from tests.simulation.laws import SINK, SOURCE, Violation
from tests.simulation.world import REST_S, TOPICS, seeded
from tests.unit.harness import APP, Worker

if TYPE_CHECKING:
    from tests.simulation.storm import Storm

LETTERS = f"{APP}.dlq"
# Whoever makes one anew by hand gives it the settings that it had.
AS_BEFORE = {LETTERS: {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}}
# More partitions than any of them would only make runs slow.
MOST = 8
# A life ends at most so often in a run.
LIVES = 3
# Until every worker has asked again, and its question is answered.
SAID_S = SAY_MISSING_S + 3.0
# What a worker has asked before all is quiet is answered by then, and it has waited for as long as it was told to.
HEARD_S = 10.0


class Change(Enum):
    SINK_GROWS = "the sink grows"
    LETTERS_GROW = "the dead-letter topic grows"
    SINK_ANEW = "the sink is deleted"
    LETTERS_ANEW = "the dead-letter topic is deleted"
    SOURCE_GROWS = "the source grows"
    SOURCE_ANEW = "the source is deleted"
    LOG_ANEW = "a log of the state is deleted"


class Others:
    """`share`: at how many of the steps they do something. `behind_s`: how old what brokers say of topics may be."""

    def __init__(self, storm: Storm, seed: int, *, behind_s: float) -> None:
        rng = seeded(seed, "topics")
        self._storm = storm
        self._world = storm.world
        self._seed = seed
        self._behind_s = behind_s
        self.share = rng.choice([0.0, 0.0, 0.02, 0.06])
        self.reset_rate = rng.choice([0.0, 0.02, 0.1])
        self.lives = 1
        self.broken: list[Violation] = []
        # Why every worker must stop now, and until when the storm goes on all the same.
        self.stopping: Change | None = None
        self._until = 0.0
        # What is written from then on is written by whoever knows of the change.
        self._safe_from = datetime.fromtimestamp(0, UTC)
        # Who has stopped since all is quiet.
        self.stopped: set[str] = set()
        # Nothing but the group's offsets says how far the app has come.
        self.positions_gone = False
        self.resetting = False
        self._reset: asyncio.Task[dict[TP, int]] | None = None
        self._as_before = dict(AS_BEFORE)
        self._doom = (0, False)
        self._calls = 0

    # -- what they do

    def step(self, name: str) -> None:
        rng = seeded(self._seed, name)
        if rng.random() < self.share:
            self.do(name, rng.choice([*Change]), rng)

    def do(self, name: str, change: Change, rng: random.Random) -> None:
        world = self._world
        match change:
            case Change.SINK_GROWS | Change.LETTERS_GROW:
                self._grow(name, change, SINK if change is Change.SINK_GROWS else LETTERS, rng)
            case Change.SINK_ANEW | Change.LETTERS_ANEW:
                self._make_anew(name, change, SINK if change is Change.SINK_ANEW else LETTERS, rng)
            case Change.SOURCE_GROWS if not world.history.stateful:
                if self.stopping is None and self._grow(name, change, SOURCE, rng):
                    world.partitions = world.spread = world.history.partitions = self._size(SOURCE)
                    world.history.sink_sizes.add(world.partitions)
            case _:
                if self.stopping is None and self.lives < LIVES and world.recorder.has_committed(world.partitions):
                    self._stop_by(name, change, rng)

    def _size(self, topic: str) -> int:
        return len(self._world.cluster.topics()[topic].logs)

    def _grow(self, name: str, change: Change, topic: str, rng: random.Random) -> bool:
        world = self._world
        if topic not in world.cluster.topics() or self._size(topic) >= MOST:
            return False
        size = self._size(topic) + rng.randrange(1, 4)
        if not self._storm.may(name, f"topics: {change.value}, to {size} partitions"):
            return False
        if topic == SINK:
            world.history.sink_sizes.add(size)
        world.cluster.add_partitions(topic, size)
        return True

    def _make_anew(self, name: str, change: Change, topic: str, rng: random.Random) -> bool:
        world, cluster = self._world, self._world.cluster
        if topic not in cluster.topics():
            return False
        size = rng.choice([self._size(topic), 1, world.partitions + 1])
        missing_s = rng.choice([0.0, 0.3, 3.0, 12.0])
        words = f"topics: {change.value}, {topic}, and made anew after {missing_s:g} s, with {size} partitions"
        if not self._storm.may(name, words):
            return False
        if topic.startswith(f"{APP}-"):
            self._as_before[topic] = dict(cluster.topics()[topic].configs)
        cluster.delete_topics([topic])
        if topic == SINK:
            # A worker that is first makes it as the source is.
            world.history.sink_sizes |= {size, world.partitions}
        if topic.startswith(f"{APP}-"):
            size = world.partitions
        self._later(missing_s, lambda: self._create(topic, size))
        return True

    def _create(self, topic: str, size: int) -> None:
        """By hand, unless a worker was first."""
        if topic not in self._world.cluster.topics():
            self._world.cluster.create_topic(topic, size, self._as_before.get(topic))
        if topic == SOURCE:
            self._world.spread = self._size(SOURCE)

    def _later(self, after_s: float, do: Callable[[], None]) -> None:
        if after_s:
            self._world.loop.call_later(after_s, do, context=self._world.cluster.context)
        else:
            do()

    def _stop_by(self, name: str, change: Change, rng: random.Random) -> None:
        world, now = self._world, self._world.loop.time()
        unsafe_from = now + self._behind_s + CONFIRM_S + 0.01
        logs = [f"{APP}-{t}" for t in TOPICS] if world.history.stateful else [f"{APP}-positions"]
        log = rng.choice(logs)
        match change:
            case Change.SOURCE_GROWS:
                if not self._grow(name, change, SOURCE, rng):
                    return
                world.history.unsafe_from = unsafe_from
                size = self._size(SOURCE)
                # What was written until then may still have been taken for the old topic's; see the limit of rule 17.
                self._later(unsafe_from - now, lambda: setattr(world, "spread", size))
            case Change.SOURCE_ANEW:
                self._storm.end_inputs()
                if not self._make_anew(name, change, SOURCE, rng):
                    return
            case _:
                if not self._make_anew(name, change, log, rng):
                    return
        # Where no position is left, the group's offsets are somebody else's.
        lost = change is Change.LOG_ANEW and log.endswith("-positions")
        world.changed = (TopicChanged, PositionConflict) if lost else (TopicChanged,)
        if lost:
            # That the coordinator has not loaded the group's offsets either, too, nobody could tell from a first start.
            world.cluster.groups.answer_former_offsets(APP, 0.0)
        self.positions_gone = lost
        world.history.stopped = True
        self.stopping = change
        self._safe_from = datetime.fromtimestamp(world.clock.time() + unsafe_from - now, UTC)
        self._until = now + rng.choice([0.0, 1.0, 5.0, 20.0])

    # -- what the operator does

    @property
    def due(self) -> bool:
        return self.stopping is not None and self._world.loop.time() >= self._until

    def ended(self, worker: Worker) -> bool:
        """A worker has; whether it stopped for good."""
        if self.stopping is None or not self._storm.quiet or worker.running.cancelled():
            return False
        if isinstance(worker.running.exception(), self._world.changed):
            self.stopped.add(worker.name)
        return worker.name in self.stopped

    def mend(self) -> None:
        """Everything that was deleted is there."""
        world = self._world
        for topic in (SOURCE, SINK, LETTERS):
            if topic not in world.cluster.topics() and world.recorder.commits:
                world.history.sink_sizes.add(world.partitions)
                self._create(topic, world.partitions)

    async def way_out(self) -> None:
        """Every worker has stopped; a reset begins a new life, and everybody starts again."""
        storm, world, change = self._storm, self._world, self.stopping
        assert change is not None
        self.stopped.clear()
        storm.settle()
        stop = Recovery(f"every worker's stop, as {change.value},", world.loop.time(), None, REST_S)
        while (
            not self.stopped >= set(storm.names)
            and not self._positions_are_back()
            and world.loop.time() - stop.begun < REST_S
        ):
            await world.clock.sleep(0.1)
        if self.stopped >= set(storm.names) or self._positions_are_back():
            stop.ended = stop.begun
        # Nobody starts while the operator is at it.
        self.resetting = True
        for worker in world.alive():
            worker.kill()
        world.history.recoveries = [stop, *(r for r in world.history.recoveries if r.ended is not None)]
        await self._until_nothing_is_open()
        storm.count_life()
        self.broken += world.judged_life()
        to = seeded(self._seed, "life", self.lives).choice(["earliest", self._safe_from])
        begins = await self._reset_amid_trouble(to)
        self.resetting = False
        logs = {TP(SOURCE, p): log for p, log in enumerate(world.cluster.topics()[SOURCE].logs)}
        if isinstance(to, str):
            wanted = {tp: log.log_start for tp, log in logs.items()}
        else:
            at_ms = int(to.timestamp() * 1000)
            wanted = {
                tp: log.end if (at := log.offset_at(at_ms, committed=False)) < 0 else at for tp, log in logs.items()
            }
        if begins != wanted:
            self.broken.append(Violation("a_reset_begins_where_it_says", f"{begins}, not {wanted}", []))
        world.begin_life(begins)
        self.stopping, self.positions_gone = None, False
        self.lives += 1
        storm.quiet = storm.odd.quiet = False
        storm.start_all()

    def _positions_are_back(self) -> bool:
        """The last epoch before anybody saw it has reached the new topic of positions: it says how far the app has come."""
        name = f"{APP}-positions"
        if not self.positions_gone or name not in self._world.cluster.topics():
            return False
        return any(record.key == KEY for log in self._world.cluster.committed(name) for record in log)

    async def _until_nothing_is_open(self) -> None:
        """Transactions of workers that are no more are ended by their timeouts, and late answers are there.

        The cluster does what is due at the next request. While every worker is stopped, nobody makes one.
        """
        world, until = self._world, self._world.loop.time() + 60
        await world.clock.sleep(5)
        found = [world.cluster.transactions.get(world.plan().transactional_id(name)) for name in self._storm.names]
        assert any(found)
        world.cluster.timers.run_due()
        while any(t is not None and (t.state == "Ongoing" or t.ending) for t in found) and world.loop.time() < until:
            await world.clock.sleep(0.5)
            world.cluster.timers.run_due()

    async def _reset_amid_trouble(self, to: Target) -> dict[TP, int]:
        """Repeated until one is complete: broken off at some request, or by what a request is answered with."""
        world, why = self._world, ""
        for attempt in range(12):
            client = f"reset#{self.lives}.{attempt}"
            rng = seeded(self._seed, client)
            self._calls = 0
            self._doom = (rng.randrange(1, 60) if attempt < 6 and rng.random() < 0.5 else 0, rng.random() < 0.5)
            broker = MemoryBroker(world.cluster, client)
            settings = EngineSettings(session_timeout_ms=10_000, transaction_timeout_ms=6_000)
            context = copy_context()
            context.run(process.set, client)
            self._reset = asyncio.get_running_loop().create_task(self._one_reset(broker, settings, to), context=context)
            try:
                return await self._reset
            except (RpcError, RpcLost, SemelError, asyncio.CancelledError) as exc:
                self._storm.figures["resets broken off"] += 1
                if attempt > 8:
                    # Nothing goes wrong any more by now.
                    self.broken.append(Violation("a_reset_can_be_repeated", f"{type(exc).__name__}: {exc}", []))
                    why = str(exc)
            finally:
                self._reset = None
                await broker.close()
            await world.clock.sleep(rng.choice([0.0, 1.0, 15.0]))
        raise AssertionError(f"no reset came to its end: {why}")

    async def _one_reset(self, broker: MemoryBroker, settings: EngineSettings, to: Target) -> dict[TP, int]:
        world = self._world
        await broker.start()
        return await reset(world.plan(), settings, broker, world.clock, to, say=lambda text: None)

    def network(self, call: Call) -> Fault | None:
        """What the reset's requests meet, for a while."""
        storm, resetting = self._storm, self._reset
        self._calls += 1
        nth, arrives = self._doom
        name = f"{call.client}/{self._calls}"
        if self._calls == nth and resetting is not None and storm.may(name, f"reset broken off: at its {call.api}"):

            def die() -> None:
                self._world.cluster.faults.cut(call.client, arrives=arrives)
                resetting.cancel()

            self._world.loop.call_soon(die, context=self._world.cluster.context)
            return None
        rng = seeded(self._seed, name)
        if call.client.endswith((".0", ".1", ".2", ".3")) and rng.random() < self.reset_rate:
            fault, words = storm.passing_fault(call, rng)
            if fault is not None and storm.may(name, f"{words} {call.api} of the reset"):
                return fault
        return None

    # -- what is said

    async def look_at_what_is_said(self) -> None:
        """With all at rest: a topic that is missing, and one that outputs do not use all of, is named by every worker.

        Of those that may ask: whom a broker has told to wait knows of nothing until then.
        """
        world, cluster = self._world, self._world.cluster
        await world.clock.sleep(HEARD_S)
        for worker in world.alive():
            destination = worker.engine.topics.destinations.get(SINK)
            unused = destination is not None and destination.partitions < self._size(SINK)
            if unused and not any(what[:2] == ("grown", SINK) for what in worker.engine.topics._warned):
                self._silent(worker, f"{SINK} grew")
        topic = seeded(self._seed, "taken away").choice([SINK, LETTERS])
        if not self._storm.may("taken away", f"topics: {topic} is taken away for a while when all is quiet"):
            return
        size = self._size(topic)
        cluster.delete_topics([topic])
        if topic == SINK:
            # A worker that starts meanwhile makes it as the source is.
            world.history.sink_sizes.add(world.partitions)
        await world.clock.sleep(SAID_S)
        for worker in world.alive():
            if topic not in cluster.topics() and not any(repr(topic) in text for text in worker.engine.gone()):
                self._silent(worker, f"{topic} is gone")
        self._create(topic, size)
        self._storm.figures["topics taken away"] += 1

    def _silent(self, worker: Worker, what: str) -> None:
        self.broken.append(Violation("what_is_so_is_said", f"{worker.client}: {what}, and it says nothing", []))
