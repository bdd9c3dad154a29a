"""One random run: everything that can go wrong goes wrong, by a seed; then quiet; then the laws.

Each decision is drawn from a stream of its own (the seed and the decision's name), so that a run can be repeated with
some decisions left out: that is how a failure is shrunk.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import orjson

from semel import RateLimit
from semel.broker.answers import Answer, answer_of, needs_a_person
from semel.memory.faults import Call, Fault, delay, lose_answer, lose_request, refuse, unsent
from semel.partitioner import partition_of
from semel.port import TP, RpcError
from semel.runtime.failpoints import NAMES
from semel.stages.sink.dead_letters import split_headers
from semel.state.event_context import current_context
from semel.testing.clock import process
from tests.simulation.choices import Choices
from tests.simulation.history import History
from tests.simulation.laws import SOURCE, Violation, judge
from tests.simulation.lies import LIES, can_lie, lie
from tests.simulation.odd import OddCode
from tests.simulation.operators import Operators
from tests.simulation.topics import Others
from tests.simulation.watch import Key
from tests.simulation.world import NOTES, TOPICS, SimulatedWorld, seeded
from tests.unit.harness import APP, Payment, Worker

GROUP_APIS = frozenset({"JoinGroup", "SyncGroup", "Heartbeat", "LeaveGroup", "DescribeGroups"})
# Every code of the protocol's list, and some that are not in it.
ALL_CODES = [-1, *range(1, 136), 999, 32_767]
PASSING = [
    c for c in ALL_CODES if answer_of(RpcError("", c)) in (Answer.RETRY, Answer.WAIT, Answer.REJOIN, Answer.ABORT)
]
FENCES = [47, 90, 49, 59]
NTH = (1, 1, 1, 1, 2, 2, 3, 5, 8)
# The last ones are longer than a request, a commit and a transaction may take.
THROTTLES_S = (0.05, 0.5, 0.5, 3.0, 9.0)
# What hangs may take so long; what is slow takes less, also where nobody can cancel it.
TIMEOUT = timedelta(seconds=5)
# Events that end every process which handles them, at most. Each holds its partition up for half a minute.
DEADLY = 2
# How often something held is dropped at the end: what waited behind it may hold its key in its turn.
MOST_HOLDS = 60


@dataclass
class Outcome:
    """What one run did, and what it found. `bit`: the faults had an effect; a run in which they had none proves nothing."""

    seed: int
    real: bool
    history: History
    violations: list[Violation]
    taken: dict[str, tuple[float, str]]
    figures: Counter[str]
    seen: Counter[Key]
    virtual_s: float

    @property
    def bit(self) -> bool:
        n = self.figures
        return bool(n["crash points"] and n["aborts"] and n["rebalances"] and n["redeliveries"])


class Storm:
    def __init__(self, world: SimulatedWorld, seed: int, choices: Choices, *, crashes: int) -> None:
        self.world = world
        self.seed = seed
        self.choices = choices
        self.wanted = crashes
        rng = seeded(seed, "weather")
        self.quiet = False
        self.rate = rng.choice([0.0, 0.003, 0.01, 0.03])
        self.slow_s = rng.choice([0.0005, 0.003, 0.02])
        self.wild = rng.random() < 0.25
        self.fences = rng.random() < 0.15
        self.jumps = world.history.window_ms > 3_600_000 and rng.random() < 0.3
        self.note_taking = rng.random() < 0.4
        self.lies = rng.random() < 0.4
        self.names = ["w1", "w2", "w3"][: rng.choice([1, 2, 2, 2, 3])]
        self.figures: Counter[str] = Counter()
        self.inputs: list[Callable[[bool], None]] = []
        odd = seeded(seed, "odd code").choice([0.0, 0.0, 0.02, 0.1, 0.3])
        self.odd = OddCode(world, seed, odd, self.figures)
        self.throttling = seeded(seed, "quota").choice([0.0, 0.0, 0.0, 0.02, 0.1])
        self.troubled = seeded(seed, "troubles").choice([0.0, 0.0, 0.05, 0.15])
        self._throttles: dict[str, random.Random] = {}
        self.operators = Operators(self, seed)
        self.replaying = seeded(seed, "replays").choice([0.0, 0.0, 0.1, 0.3] if not world.history.holds else [0.1, 0.3])
        self.blocking = seeded(seed, "blocking").choice([0.0, 0.0, 0.01, 0.05])
        deadly, some = seeded(seed, "deadly code").choice([0.0, 0.0, 0.01, 0.05]), iter(range(DEADLY))
        world.deadly = lambda ident: seeded(seed, "deadly", ident).random() < deadly and next(some, None) is not None
        world.work.before = self.before
        if world.pipeline.timeout is not None:
            world.work.hangs = self.hangs
        self._calls: dict[str, tuple[random.Random, int]] = {}
        self._doomed: dict[str, dict[int, bool]] = {}
        self._full: set[str] = set()
        # Whose next commit of a note is not answered: whether it takes effect.
        self._doubted: dict[str, bool] = {}
        world.on_start = self.begin
        world.on_death = self.bury
        world.excused = self.wild or self.fences or self.rate > 0
        # What an event replaces by name says nothing of those that come before it by their letters.
        world.reminded = not self.wild and not world.history.holds
        world.cluster.faults.script(self.network)
        slow = rng.choice([0.0, 0.0, 0.05, 3.0])
        markers = seeded(seed, "markers")
        world.cluster.faults.marker_delay_s = lambda: 0.0 if self.quiet else markers.random() * slow
        behind = rng.choice([0.0, 0.0, 0.05, 1.0])
        self.others = Others(self, seed, behind_s=behind)
        if world.history.holds:
            # After a reset it is chance whether a replay of before finds its event held already, or about to be.
            self.others.share = 0.0
        metadata = seeded(seed, "metadata")
        world.cluster.faults.metadata_delay_s = lambda: 0.0 if self.quiet else metadata.random() * behind

    def may(self, name: str, words: str) -> bool:
        if not self.choices.allows(name, self.world.loop.time(), words):
            return False
        self.figures[f"fault: {words.split(':', maxsplit=1)[0]}"] += 1
        return True

    async def before(self, payment: Payment) -> None:
        """What a handler does beside its work."""
        if payment.kills:
            await self.take_along(payment)
        await self.block(payment)
        await self.odd.before(payment)

    # -- the network

    def network(self, call: Call) -> Fault:
        if call.client.startswith("dlq#"):
            return self.operators.network(call)
        if call.client.startswith("reset#"):
            return self.others.network(call) or delay(0.001, 0.001)
        if self.quiet:
            return delay(0.001, 0.001)
        found = self._calls.get(call.client)
        if found is None:
            found = seeded(self.seed, "calls", call.client), 0
        rng, n = found
        n += 1
        self._calls[call.client] = rng, n
        doomed = self._doomed.get(call.client)
        if doomed is not None and n in doomed:
            self._die_of(call, n, arrives=doomed.pop(n))
        slow = delay(rng.random() * self.slow_s, rng.random() * self.slow_s)
        if self.throttling and call.api not in GROUP_APIS:
            throttles = self._throttles.setdefault(call.client, seeded(self.seed, "throttles", call.client))
            if throttles.random() < self.throttling and self.may(
                f"{call.client}/{n}/throttle", f"throttle: {call.api} of {call.client}"
            ):
                slow = replace(slow, throttle_s=throttles.choice(THROTTLES_S))
                self.figures["throttled seconds"] += int(slow.throttle_s)
        if call.api == "EndTxn" and call.client in self._doubted and self._note_is_under_way(call.client):
            return lose_answer() if self._doubted.pop(call.client) else lose_request()
        if rng.random() >= self.rate:
            return slow
        fault, words = self._fault(call, rng)
        if fault is None or not self.may(f"{call.client}/{n}", f"{words} {call.api} of {call.client}"):
            return slow
        if fault.code:
            self.world.watch.count("rpc", call.api, str(fault.code))
            answer = answer_of(RpcError(call.api, fault.code))
            if answer is Answer.RECORD:
                self.world.history.refusals = True
            if answer in (Answer.RECORD, Answer.TOPIC) or needs_a_person(RpcError(call.api, fault.code)):
                self.world.excused = True
        return fault

    def _note_is_under_way(self, client: str) -> bool:
        worker = self.world.workers.get(client)
        mine = any(sender is worker for sender in self.world.unanswered())
        return mine and worker is not None and not worker.engine._committer.outbox

    def passing_fault(self, call: Call, rng: random.Random) -> tuple[Fault | None, str]:
        """One that is over when the request is made again."""
        code = rng.choice(PASSING)
        if rng.random() < 0.3:
            return refuse(code, applied=rng.random() < 0.3), f"error: {code}"
        return self._fault(call, rng, code)

    def _fault(self, call: Call, rng: random.Random, code: int | None = None) -> tuple[Fault | None, str]:
        match rng.randrange(6):
            case 0:
                return lose_request(after_s=rng.random() * 2), "a request is lost:"
            case 1:
                return lose_answer(after_s=rng.random() * 2), "an answer is lost:"
            case 2:
                return unsent(), "a connection is refused:"
            case 3:
                if call.api == "JoinGroup":
                    # A late JoinGroup of a static member is another member under its name: fatal by design.
                    return None, ""
                return delay(there_s=rng.random() * 4), "a request is late:"
            case 4:
                return delay(back_s=rng.random() * 4), "an answer is late:"
            case _:
                code = self._code(call, rng) if code is None else code
                return refuse(code, applied=rng.random() < 0.3), f"error: {code}"

    def _code(self, call: Call, rng: random.Random) -> int:
        if self.wild:
            return rng.choice(ALL_CODES)
        if self.fences and call.api not in GROUP_APIS and rng.random() < 0.3:
            return rng.choice(FENCES)
        return rng.choice(PASSING)

    def _die_of(self, call: Call, n: int, *, arrives: bool) -> None:
        worker = self.world.workers.get(call.client)
        words = f"crash at a request: {call.client} at its {call.api}, which {'arrives' if arrives else 'is lost'}"
        if worker is not None and self.may(f"{call.client}/dies/{n}", words):
            # When the request has left.
            self.world.loop.call_soon(
                lambda: self.world.crash(worker, f"{'after' if arrives else 'in'} {call.api}", arrives=arrives),
                context=self.world.cluster.context,
            )

    # -- life and death

    async def take_along(self, payment: Payment) -> None:
        """The process ends with its handler, also when everything else is quiet."""
        worker = self.world.workers.get(process.get())
        if worker is not None and not worker.killed:
            self.figures["deadly code: ends the process"] += 1
            self.world.crash(worker, "in user code")
        await asyncio.Event().wait()

    def hangs(self, payment: Payment) -> bool:
        """Half of those that fail do it by not ending; the pipeline's timeout makes a failed attempt of that, too.

        Not one whose key is of another partition now, which its first look at a table would say; none when all is to be quiet.
        """
        context, sources = current_context.get(), self.world.cluster.topics()[SOURCE].logs
        if self.quiet or context is None or context.unit is None:
            return False
        at_home = context.unit.cursor.tp.partition == partition_of(payment.account.encode(), len(sources))
        return at_home and seeded(self.seed, "hangs", payment.id).random() < 0.5

    async def block(self, payment: Payment) -> None:
        """A handler that holds the loop: nobody runs meanwhile, and the clock goes on."""
        run = len(self.world.work.handled)
        rng = seeded(self.seed, "blocks", payment.id, run)
        if self.quiet or rng.random() >= self.blocking:
            return
        held_s = rng.choice([0.1, 0.5, 0.5, 2.5, 5.0])
        if self.may(f"block {payment.id} {run}", f"block: for {held_s} s at {payment.id}"):
            self.world.loop.advance(held_s)
            self.figures["blocked seconds"] += int(held_s)

    def begin(self, worker: Worker) -> None:
        """What this incarnation will die of, if nothing else comes first."""
        if self.quiet:
            return
        rng = seeded(self.seed, "life", worker.client)
        draw = rng.random()
        if draw < 0.5:
            self._die_at(worker, rng.choice(NAMES), rng.choice(NTH))
        elif draw < 0.75:
            self._doomed[worker.client] = {rng.randrange(1, rng.choice([20, 60, 150])): rng.random() < 0.5}
        elif draw < 0.9:
            after = rng.random() * rng.choice([0.02, 0.2, 1.0])
            self.world.loop.call_later(after, lambda: self._die_now(worker), context=self.world.cluster.context)

    def _die_at(self, worker: Worker, point: str, nth: int) -> None:
        left = nth

        async def hook() -> None:
            nonlocal left
            left -= 1
            words = f"crash at a failpoint: {worker.client} at {point}, time {nth}"
            if left == 0 and not self.quiet and self.may(f"{worker.client}/dies", words):
                self.world.crash(worker, point)
                await asyncio.Event().wait()

        worker.failpoints.hooks[point] = hook

    def _die_now(self, worker: Worker) -> None:
        if (
            not self.quiet
            and not worker.over
            and self.may(f"{worker.client}/dies", f"crash in between: {worker.client}")
        ):
            self.world.crash(worker, "in between")

    def bury(self, worker: Worker) -> None:
        """It has ended: what becomes of its disk, and when it comes back."""
        world, machine = self.world, self.world.machines[worker.client]
        self.figures["fetches in vain"] += sum(worker.engine.troubles.counts.values())
        self.figures["stores made anew"] += int(worker.engine.stats["rebuilds"])
        self.figures["handlers timed out"] += int(worker.engine.stats["timed_out"])
        rng = seeded(self.seed, "death", worker.client)
        draw, pause = rng.random(), rng.choice([0.0, 0.0, 0.01, 0.1, 1.0, 11.0])
        if not self.quiet:
            if draw < 0.15 and self.may(f"{worker.client}/disk", f"lost store: of {machine}"):
                world.lose_store(machine)
            elif (
                draw < 0.3 and machine in world.disks and self.may(f"{worker.client}/disk", f"lost power: of {machine}")
            ):
                world.disks[machine].lose_power(rng.randrange(1, 6))
            elif self.lies and draw < 0.6 and machine in world.disks:
                self._lie(f"{worker.client}/disk", machine, rng)
        if machine != worker.name or self.others.ended(worker):
            return  # a twin does not come back
        world.loop.call_later(
            0.0 if self.quiet else pause, lambda: self._start(worker.name), context=world.cluster.context
        )

    def _lie(self, name: str, machine: str, rng: random.Random) -> None:
        """The store is of another life than its logs, in a way that the engine can tell (protocol rule 18)."""
        disk, partition, kind = self.world.disks[machine], rng.randrange(self.world.partitions), rng.choice(LIES)
        if can_lie(disk, self.world.cluster, APP, partition, kind) and self.may(
            name, f"lying store: of {machine}, {kind.value}, of [{partition}]"
        ):
            lie(disk, self.world.cluster, APP, partition, kind)

    def _start(self, name: str) -> None:
        if (
            self.world.closed
            or self.others.resetting
            or any(self.world.machines[w.client] == name for w in self.world.workers.values())
        ):
            return
        self.figures["starts"] += 1
        rng = seeded(self.seed, "settings", name, self.world.started)
        self.world.boot(name, **self.settings(rng))

    def settings(self, rng: random.Random) -> dict[str, int]:
        return {
            "session_timeout_ms": rng.choice([6_000, 10_000]),
            "transaction_timeout_ms": 6_000,
            "rebalance_timeout_ms": rng.choice([10_000, 60_000]),
            "commit_interval_ms": rng.choice([10, 100]),
            "handler_timeout_ms": rng.choice([50, 500, 5_000]),
            "rebuild_age_ms": rng.choice([43_200_000, 43_200_000, 1_000]),
            # A sixteenth is an epoch: some fifteen events, so that epochs are full, too.
            "memory_budget_bytes": rng.choice([256 << 20, 128 << 10]),
        }

    # -- what else happens

    async def step(self, i: int) -> None:
        rng, world, cluster = seeded(self.seed, "step", i), self.world, self.world.cluster
        alive = world.alive()
        worker = rng.choice(alive) if alive else None
        draw = rng.random()
        name = f"step {i}"
        if draw < 0.45:
            self._pay(name, rng)
        elif draw < 0.5:
            self._pay_in_a_transaction(name, rng)
        elif worker is None:
            pass
        elif draw < 0.55:
            if self.may(name, f"crash by chance: {worker.client}"):
                world.crash(worker, "by chance", arrives=rng.random() < 0.5)
        elif draw < 0.62:
            self._die_at(worker, rng.choice(NAMES), rng.choice(NTH))
        elif draw < 0.66:
            if self.may(name, f"orderly stop: {worker.client}"):
                worker.engine.settings.leave_on_stop = rng.random() < 0.5
                worker.engine.stop()
        elif draw < 0.72:
            self._freeze(name, worker, rng.choice([0.05, 0.5, 3.0, 7.0, 12.0, 30.0]))
        elif draw < 0.76:
            if self.may(name, f"connection cut: of {worker.client}"):
                cluster.faults.cut(worker.client, arrives=rng.random() < 0.5)
                after = rng.choice([0.0, 0.5, 3.0, 12.0])
                world.loop.call_later(after, lambda: self._mend(worker), context=cluster.context)
        elif draw < 0.79:
            kind = rng.choice(["group", "transaction"])
            behind_s = rng.choice([0.0, 0.2, 1.0, 3.0]) * (not self.others.positions_gone)
            if self.may(name, f"coordinator moved: {kind}, {behind_s:g} s behind"):
                coordinated = APP if kind == "group" else f"{APP}-{worker.name}"
                cluster.move_coordinator(kind, coordinated, behind_s=behind_s)
        elif draw < 0.82:
            topic = rng.choice(sorted(cluster.topics()))
            tp = TP(topic, rng.randrange(len(cluster.topics()[topic].logs)))
            if self.may(name, f"leader moved: {topic}[{tp.partition}]"):
                cluster.move_leader(tp, rng.randrange(3))
        elif draw < 0.86:
            self._compact(name, rng)
        elif draw < 0.89:
            self._fail_disk(name, worker, rng)
        elif draw < 0.92:
            if self.note_taking and self.may(name, f"note: from {worker.client}"):
                world.note(worker)
                applied = rng.random() < 0.5
                words = f"note in doubt: from {worker.client}, {'committed' if applied else 'not committed'}"
                if rng.random() < 0.7 and self.may(f"{name}/doubt", words):
                    # It has to live on: a note whose sender dies is owed nothing.
                    worker.failpoints.hooks.clear()
                    self._doomed.pop(worker.client, None)
                    self._doubted[worker.client] = applied
        elif draw < 0.94:
            self._jump(name, worker, rng)
        elif draw < 0.95:
            if self.may(name, f"twin: of {worker.name}"):
                world.excused = True
                world.boot(worker.name, f"{worker.name}-twin-{world.started}", **self.settings(rng))
        elif draw < 0.97:
            if self.may(name, "stall: everybody"):
                world.loop.advance(rng.random() * 2)
        elif self.may(name, f"rebalance: asked for by {worker.client}") and worker.engine.group is not None:
            worker.engine.group._rejoin.set()

    @property
    def _source_is_there(self) -> bool:
        return SOURCE in self.world.cluster.topics()

    def _pay(self, name: str, rng: random.Random) -> None:
        many = rng.randrange(1, 12)
        if self._source_is_there and self.choices.allows(name, self.world.loop.time(), f"input: {many} records"):
            self.world.pay_some(rng, name.removeprefix("step "), many)

    def _pay_in_a_transaction(self, name: str, rng: random.Random) -> None:
        commit, lasts = rng.random() < 0.4, rng.choice([0.0, 0.05, 2.0])
        words = f"{'committed' if commit else 'aborted'} transaction in the input: for {lasts:g} s"
        if self._source_is_there and self.may(name, words):
            end = self.world.begin_input(rng.randrange(1, 6))
            self.inputs.append(end)

            def over() -> None:
                if end in self.inputs:
                    self.inputs.remove(end)
                    end(commit)

            self.world.loop.call_later(lasts, over, context=self.world.cluster.context)

    def _freeze(self, name: str, worker: Worker, lasts_s: float) -> None:
        world = self.world
        if not world.loop.frozen(worker.client) and self.may(name, f"frozen: {worker.client} for {lasts_s:g} s"):
            world.loop.freeze(worker.client)
            world.loop.call_later(lasts_s, lambda: world.loop.thaw(worker.client), context=world.cluster.context)

    def _mend(self, worker: Worker) -> None:
        if not worker.killed:
            self.world.cluster.faults.mend(worker.client)

    def _compact(self, name: str, rng: random.Random) -> None:
        world = self.world
        # Outputs in doubt, and whoever wrote a store, are looked for among the positions; see rules 4 and 18, limits.
        topics = [
            t for t in TOPICS if t != "dedup-changelog" and (t != "positions" or not (self.note_taking or self.lies))
        ]
        topic, partition = f"{APP}-{rng.choice(topics)}", rng.randrange(world.partitions)
        if rng.random() < 0.2:
            # Only what was processed: a worker that still needs it says so and ends, by design.
            log = world.cluster.find(TP("payments", partition))
            if log is None:
                return
            before = world.processed_input(partition)
            if before > log.log_start and self.may(name, f"retention: of payments[{partition}] before {before}"):
                log.delete_before(before)
            return
        if world.cluster.find(TP(topic, partition)) is not None and self.may(
            name, f"compaction: of {topic}[{partition}]"
        ):
            world.cluster.compact(TP(topic, partition))

    def _fail_disk(self, name: str, worker: Worker, rng: random.Random) -> None:
        times, reads, damaged = rng.randrange(1, 4), rng.random() < 0.4, rng.random() < 0.3
        disk = self.world.disks.get(self.world.machines[worker.client])
        if damaged and disk is not None:
            # Found by whatever reads it first: a handler, a restore, the next process.
            if self.may(name, f"disk damaged: of {worker.client}"):
                self.figures["damaged keys"] += disk.rot(rng, rng.choice([1, 5, 50]))
            return
        if worker.client in self._full:
            return
        if reads and self.may(name, f"disk unreadable: of {worker.client}, {times} times"):
            self.world.fail_reads(worker, times)
        elif not reads and self.may(name, f"disk full: of {worker.client}, {times} times"):
            worker.fail_writes(times)
        self._full.add(worker.client)

    def _trouble(self, name: str) -> None:
        """Something cannot be read, or written, for a while: a damaged batch on a broker's disk, a right taken away."""
        rng, world, cluster = seeded(self.seed, name), self.world, self.world.cluster
        draw = rng.random()
        if draw > self.troubled:
            return
        topic = rng.choice([t for t in sorted(cluster.topics()) if t != NOTES])
        lasts = rng.choice([0.2, 2.0, 8.0])
        if draw < self.troubled / 2:
            log = cluster.log(TP(topic, rng.randrange(len(cluster.topics()[topic].logs))))
            offset = rng.randrange(log.log_start, log.end) if log.end > log.log_start else -1
            if offset >= 0 and self.may(name, f"damaged batch: {topic}@{offset} for {lasts:g} s"):
                log.damage(offset)
                world.loop.call_later(lasts, log.mend, context=cluster.context)
            return
        rights = rng.choice([("Read",), ("Write",), ("Read", "Write", "Describe")])
        # An event that names a topic fails where that is denied.
        if topic != "reminders" and self.may(name, f"rights taken: {', '.join(rights)} on {topic} for {lasts:g} s"):
            # What only a person can give back may end a worker, which comes back.
            world.excused = True
            cluster.faults.deny(topic, *rights)
            world.loop.call_later(lasts, lambda: cluster.faults.allow(topic), context=cluster.context)

    def _replay(self, name: str, share: float) -> None:
        """A dead letter comes back, as it was or mended, once or twice, or under a revision that somebody made up."""
        rng, world = seeded(self.seed, name), self.world
        if rng.random() >= share or not self._source_is_there:
            return
        topic = world.cluster.topics().get(f"{APP}.dlq")
        letters = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log] if topic is not None else []
        # The source may have been made anew with fewer.
        partitions = min(world.partitions, len(world.cluster.topics()[SOURCE].logs))
        letters = [r for r in letters if int(dict(r.headers)["semel.partition"] or b"-1") < partitions]
        if not letters:
            return
        failed = [r for r in letters if dict(r.headers)["semel.reason"] == b"failed"]
        letter = rng.choice(failed if failed and rng.random() < 0.6 else letters)
        value, mended = letter.value or b"", None
        try:
            event = orjson.loads(value)
        except ValueError:
            event = {"id": f"{name}.mended", "account": (letter.key or b"").decode(), "amount": 7}
        if event.get("kills") or rng.random() < 0.6:
            mended = orjson.dumps({**event, "fails": 0, "kills": False, "amount": event["amount"] + rng.choice([0, 1])})
        made_up = rng.choice([1, 2, 63, 127]) if rng.random() < 0.15 else None
        words = f"replay: of {value[:40]!r}{', mended' if mended else ''}{f', as {made_up}' if made_up else ''}"
        if world.history.holds and rng.random() < 0.25:
            if self.may(name, f"skip: of {value[:40]!r}"):
                world.skip(letter)
        elif self.may(name, words):
            for _ in range(rng.choice([1, 1, 1, 2])):
                world.replay(letter, value=mended, revision=made_up)

    async def _replay_in_rounds(self) -> None:
        """In the storm few events come to the end of their attempts. Now they do; what comes of a round is replayed in the next,
        and workers die amid it."""
        for nth in range(3):
            if not await self.world.until_at_rest("the way to the dead letters"):
                return
            for n in range(8):
                self._replay(f"replay {nth}.{n}", 1.0)
            operating = None
            if self.others.share == 0.0 and seeded(self.seed, "operator", nth).random() < 0.9:
                operating = asyncio.create_task(self.operators.replay_all(nth))
            rng = seeded(self.seed, "rounds", nth)
            await self.world.clock.sleep(rng.choice([0.001, 0.02, 0.1, 0.3]))
            worker = rng.choice(self.world.alive()) if self.world.alive() else None
            if worker is not None and self.may(f"replay {nth}/dies", f"crash amid replays: {worker.client}"):
                self.world.crash(worker, "amid replays", arrives=rng.random() < 0.5)
            if operating is not None:
                await operating

    async def _end_holds(self) -> None:
        """Whatever still holds its key is dropped, until none does."""
        world = self.world
        for nth in range(MOST_HOLDS):
            if not await world.until_at_rest("the way to what is held"):
                return
            held = {name for w in world.alive() for t in w.engine.tasks.values() for c in t.cursors.values()
                    if c.parked is not None for name in c.parked.held}  # fmt: skip
            self.figures["keys held at the end"] += len(held) if not nth else 0
            if not held:
                return
            if nth % 2:
                letters = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log]
                for letter in letters:
                    if split_headers(letter.headers)[1].get("semel.hold") in held:
                        world.skip(letter)
            else:
                await self.operators.drop_all(nth)
        self.operators.broken.append(Violation("a_hold_ends", f"keys are held after {MOST_HOLDS} rounds", []))

    def _jump(self, name: str, worker: Worker, rng: random.Random) -> None:
        # Within what topics take: past it every output is refused, and every event dead-lettered (docs/simulation.md).
        off = rng.choice([-3_000, -600, -5, 5, 600, 3_000])
        if self.jumps and self.may(name, f"clock jump: of {worker.client}, which is {off} s off now"):
            self.world.history.exact_time = False
            worker.clock.jump(self.world.clock.time() + off - worker.clock.time())

    # -- the run

    async def run(self) -> None:
        world = self.world
        self.start_all()
        pauses = seeded(self.seed, "pauses")
        for i in range(self.wanted * 4):
            if world.crashes >= self.wanted:
                break
            await self.step(i)
            self._trouble(f"trouble {i}")
            self._replay(f"replay {i}", self.replaying)
            self.others.step(f"topics {i}")
            if self.others.due:
                await self.others.way_out()
            await world.clock.sleep(pauses.choice([0.0, 0.001, 0.005, 0.02, 0.1, 0.5]))
            if world.history.window_ms < 60_000 and pauses.random() < 0.03:
                await world.clock.sleep(pauses.random() * 3 * world.history.window_ms / 1000)
                if self._source_is_there and self.may(f"step {i}/again", "redelivery: after the window"):
                    world.pay_again_after_the_window(f"{i}")
        if self.others.stopping:
            await self.others.way_out()
        await self.calm()

    async def calm(self) -> None:
        self.settle()
        if self.replaying:
            await self._replay_in_rounds()
        if self.world.history.holds:
            await self._end_holds()
        if self.others.share and await self.world.until_at_rest("the way back to rest"):
            await self.others.look_at_what_is_said()
        await self.world.rest()

    def end_inputs(self) -> None:
        for end in self.inputs:
            end(False)
        self.inputs.clear()

    def settle(self) -> None:
        """Nothing goes wrong any more, and everybody runs."""
        world = self.world
        self.quiet = self.odd.quiet = True
        for topic in world.cluster.topics():
            world.cluster.faults.allow(topic)
            for log in world.cluster.topics()[topic].logs:
                log.mend()
        self.end_inputs()
        self.others.mend()
        for worker in list(world.workers.values()):
            worker.failpoints.hooks.clear()
            world.loop.thaw(worker.client)
            if world.machines[worker.client] != worker.name:
                worker.kill()
            elif not worker.killed:
                world.cluster.faults.mend(worker.client)
                world.mend_disk(worker)
        for name in self.names:
            if not any(w.name == name for w in world.workers.values()):
                self._start(name)

    def start_all(self) -> None:
        for name in self.names:
            self._start(name)

    def count_life(self) -> None:
        """What the positions of a life say, before a reset makes them anew."""
        self.figures["redeliveries"] += self.world.recorder.counted("duplicates", "conflicts")

    def outcome(self) -> Outcome:
        world = self.world
        history = world.judged()
        # What may be the cause comes first: of an app whose workers end again and again, all that they leave undone is missed.
        violations = [Violation("no_unexpected_end", what, []) for what in world.findings[:3]]
        violations += [Violation("state_table", what, []) for what in world.watch.broken[:3]]
        violations += [*self.others.broken, *self.operators.judged(), *judge(history)]
        n = self.figures
        n["crash points"] = world.crashes
        n["idle kills"] = world.idle_kills
        n["commits"] = world.recorder.commits
        n["aborts"] = world.recorder.aborts
        n["rebalances"] = world.recorder.generations
        n["redeliveries"] += world.recorder.counted("duplicates", "conflicts")
        n["handled again"] = sum(times - 1 for times in Counter(world.work.handled).values())
        n["records in"] = sum(world.recorder.source_ends.values())
        n["fetches in vain"] += sum(sum(w.engine.troubles.counts.values()) for w in world.workers.values())
        n["stores made anew"] += sum(int(w.engine.stats["rebuilds"]) for w in world.workers.values())
        n["handlers timed out"] += sum(int(w.engine.stats["timed_out"]) for w in world.workers.values())
        n["resets"] = self.others.lives - 1
        dead = world.cluster.topics().get(f"{APP}.dlq")
        letters = [r for log in world.cluster.committed(f"{APP}.dlq") for r in log] if dead is not None else []
        n["keys held"] = sum("semel.hold" in split_headers(letter.headers)[1] for letter in letters)
        n["fences"] = world.watch.seen["member", "ASSIGNED", "FENCED"]
        return Outcome(self.seed, world.real, history, violations, self.choices.taken, n, world.watch.seen,
                       world.loop.time())  # fmt: skip


def brewed(path: Path, seed: int, *, crashes: int = 40, real_share: float = 0.0, only: Choices | None = None) -> Storm:
    """A storm that has not begun; whoever runs it closes its world."""
    rng = seeded(seed, "world")
    world = SimulatedWorld(
        path,
        seed=seed,
        partitions=rng.choice([1, 2, 2, 3]),
        style=(style := rng.choice(["stream", "stubborn", "coroutine", "batches", "returning"])),
        window=timedelta(seconds=rng.choice([604_800, 604_800, 20])),
        real=rng.random() < real_share,
        stateful=seeded(seed, "stateful").random() < 0.8,
        holds=seeded(seed, "holds").random() < 0.25,
        concurrency=1 if style == "batches" else seeded(seed, "concurrency").choice([1, 2, 8]),
        rate_limit=seeded(seed, "rate limit").choice([None, None, None, RateLimit(300), RateLimit(100, burst=30)]),
        timeout=seeded(seed, "timeout").choice([None, TIMEOUT]),
    )
    turns = seeded(seed, "turns")
    world.loop.disturb(turns, turn_s=turns.choice([0.0, 1e-5, 1e-4]), shuffled=turns.choice([0.0, 0.0, 0.3]))
    return Storm(world, seed, only or Choices(), crashes=crashes)


async def storm(
    path: Path, seed: int, *, crashes: int = 40, real_share: float = 0.0, only: Choices | None = None
) -> Outcome:
    run = brewed(path, seed, crashes=crashes, real_share=real_share, only=only)
    try:
        await run.run()
        return run.outcome()
    finally:
        await run.world.close()
