"""Everything that can be enumerated, one after the other, on small fixed workloads.

A crash at each passing of each failpoint, and in and after each request; a second crash at each step of the recovery from
the first; each error code of each RPC, with and without effect.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from semel.broker.answers import Answer, answer_of
from semel.memory.faults import Call, Fault, delay, refuse
from semel.port import RpcError
from tests.simulation.choices import Choices
from tests.simulation.codes import BROKER_SAYS
from tests.simulation.laws import Violation, judge
from tests.simulation.storm import ALL_CODES, Outcome
from tests.simulation.world import SimulatedWorld, seeded
from tests.unit.harness import Worker

WORKLOADS = ("steady", "pair", "restore", "orphan", "expiry", "notes")
APIS = tuple(BROKER_SAYS)
# The workload in which a request is made at all, where that is not the plain one.
ASKED_IN = {"LeaveGroup": "pair", "DeleteRecords": "expiry", "DescribeProducers": "orphan", "DescribeGroups": "orphan"}
# Asked for again and again: the first time is that of the start, the second that of the work.
OFTEN = (
    "Metadata",
    "Fetch",
    "AddPartitionsToTxn",
    "AddOffsetsToTxn",
    "Produce",
    "TxnOffsetCommit",
    "EndTxn",
    "Heartbeat",
)
TRANSACTION = ("AddPartitionsToTxn", "AddOffsetsToTxn", "Produce", "TxnOffsetCommit", "EndTxn")
NETWORK_S = 0.002
EXPIRY_S = 20.0


@dataclass(frozen=True)
class Kill:
    """`client` dies at a failpoint, or at its nth request: before it has left, or (`arrives`) when it has."""

    client: str
    point: str = ""
    nth: int = 1
    arrives: bool = False

    def __str__(self) -> str:
        return f"{self.client}@{self.point or ('sent' if self.arrives else 'lost')}:{self.nth}"


@dataclass(frozen=True)
class Answered:
    """The nth call of an API is answered with a code; `applied`: after it took effect."""

    api: str
    code: int
    applied: bool
    nth: int = 2

    def __str__(self) -> str:
        return f"{self.api}={self.code}{'!' if self.applied else ''}:{self.nth}"


@dataclass(frozen=True)
class Case:
    workload: str
    kills: tuple[Kill, ...] = ()
    answered: Answered | None = None

    def __str__(self) -> str:
        return "/".join([self.workload, *map(str, self.kills), *([str(self.answered)] if self.answered else [])])


@dataclass
class Ran:
    """`passed`: (client, failpoint) -> how often; `calls`: of each client."""

    outcome: Outcome
    passed: Counter[tuple[str, str]]
    calls: Counter[str]


class Run:
    def __init__(self, world: SimulatedWorld, case: Case) -> None:
        self.world = world
        self.case = case
        self.calls: Counter[str] = Counter()
        self.of_api: Counter[str] = Counter()
        self.hit = 0
        self.quiet = False
        self.losing = False
        self.names = {"w1"}
        self.orphaned = False
        world.on_start = self.arm
        world.on_death = self.again
        world.excused = case.answered is not None
        world.reminded = case.answered is None
        world.cluster.faults.script(self.network)

    def arm(self, worker: Worker) -> None:
        for kill in self.case.kills:
            if kill.client == worker.client and kill.point:
                self._arm(worker, kill)

    def _arm(self, worker: Worker, kill: Kill) -> None:
        left = kill.nth

        async def hook() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.hit += 1
                self.world.crash(worker, kill.point)
                await asyncio.Event().wait()

        worker.failpoints.hooks[kill.point] = hook

    def again(self, worker: Worker) -> None:
        if self.losing:
            self.losing = False
            self.world.lose_store(worker.name)
        if worker.name in self.names:
            self.world.loop.call_later(0.01, lambda: self._boot(worker.name), context=self.world.cluster.context)

    def _boot(self, name: str) -> None:
        if not self.world.closed and not any(w.name == name for w in self.world.workers.values()):
            # What an orphan leaves open outlives its session, so that whoever takes over has to end it.
            lasts_ms = 60_000 if self.case.workload == "orphan" else 6_000
            self.world.boot(name, transaction_timeout_ms=lasts_ms, session_timeout_ms=6_000)

    def _orphan(self, call: Call) -> None:
        """A worker that dies for good with its transaction open. Not one of the crashes looked at."""
        if self.orphaned:
            return
        self.orphaned = True
        self.names.discard("w2")
        self.world.loop.call_soon(self.world.workers[call.client].kill, context=self.world.cluster.context)

    def network(self, call: Call) -> Fault:
        way = delay(NETWORK_S, NETWORK_S)
        if self.quiet:
            return way
        self.calls[call.client] += 1
        self.of_api[call.api] += 1
        for kill in self.case.kills:
            if not kill.point and kill.client == call.client and kill.nth == self.calls[call.client]:
                self._die_of(call, kill)
        if self.case.workload == "orphan" and call.api == "TxnOffsetCommit" and call.client.startswith("w2#"):
            self._orphan(call)
        answered = self.case.answered
        if answered is not None and answered.api == call.api and answered.nth == self.of_api[call.api]:
            self.hit += 1
            self.world.watch.count("rpc", call.api, str(answered.code))
            if answer_of(RpcError(call.api, answered.code)) is Answer.RECORD:
                self.world.history.refusals = True
            return refuse(answered.code, applied=answered.applied)
        return way

    def _die_of(self, call: Call, kill: Kill) -> None:
        worker = self.world.workers[call.client]
        self.hit += 1
        where = f"{'after' if kill.arrives else 'in'} {call.api}"
        self.world.loop.call_soon(
            lambda: self.world.crash(worker, where, arrives=kill.arrives), context=self.world.cluster.context
        )

    def _note(self) -> None:
        for worker in self.world.alive():
            self.world.note(worker)

    async def run(self) -> None:
        world, pause = self.world, self.world.clock.sleep
        world.pay_many(12)
        self._boot("w1")
        match self.case.workload:
            case "steady":
                for _ in range(3):
                    await pause(0.25)
                    world.pay_many(4)
            case "pair":
                await pause(0.2)
                self.names.add("w2")
                self._boot("w2")
                for _ in range(3):
                    world.pay_many(4)
                    await pause(0.6)
                self.names.discard("w2")
                for worker in world.alive():
                    if worker.name == "w2":
                        worker.engine.settings.leave_on_stop = True
                        worker.engine.stop()
                world.pay_many(4)
                await pause(0.6)
            case "restore":
                await pause(0.4)
                # Not one of the crashes looked at: it only leaves something to restore.
                self.losing = True
                for worker in world.alive():
                    worker.kill()
                await pause(0.3)
                world.pay_many(4)
            case "orphan":
                await pause(0.2)
                self.names.add("w2")
                self._boot("w2")
                for _ in range(4):
                    world.pay_many(4)
                    await pause(0.5)
                # Its session, and the takeover.
                await pause(8)
                self.names.discard("w2")
                world.pay_many(4)
            case "notes":
                # Beside events, and alone.
                for _ in range(2):
                    world.pay_many(4)
                    self._note()
                    await pause(0.4)
                    self._note()
                    await pause(0.4)
            case "expiry":
                for i in range(3):
                    await pause(2.5 * EXPIRY_S)
                    world.pay_again_after_the_window(f"e{i}")
                    world.pay_many(8)
        await pause(0.8)
        self.quiet = True
        self.names = {"w1"}
        self._boot("w1")
        await world.rest()


async def run_case(path: Path, case: Case, *, real: bool = False) -> Ran:
    world = SimulatedWorld(
        path,
        seed=7,
        partitions=2 if case.workload in ("pair", "orphan") else 1,
        style="stream",
        window=timedelta(seconds=EXPIRY_S) if case.workload == "expiry" else timedelta(days=7),
        real=real,
    )
    world.rng = seeded("systematic", case.workload)
    run = Run(world, case)
    try:
        await run.run()
        violations = judge(world.judged())
        violations += [Violation("state_table", what, []) for what in world.watch.broken[:3]]
        violations += [Violation("no_unexpected_end", what, []) for what in world.findings[:3]]
        figures = Counter[str]({
            "crash points": world.crashes, "idle kills": world.idle_kills, "commits": world.recorder.commits,
            "aborts": world.recorder.aborts, "rebalances": world.recorder.generations, "starts": world.started,
            "records in": sum(world.recorder.source_ends.values()), "missed": len(case.kills) - run.hit if case.kills else 0,
            "fault: error by enumeration": int(case.answered is not None and run.hit > 0),
            "fault: crash by enumeration": world.crashes,
            "fences": world.watch.seen["member", "ASSIGNED", "FENCED"],
            "redeliveries": world.recorder.counted("duplicates", "conflicts"),
            "handled again": sum(n - 1 for n in Counter(world.work.handled).values()),
        })  # fmt: skip
        outcome = Outcome(
            -1, False, world.history, violations, Choices().taken, figures, world.watch.seen, world.loop.time()
        )
        return Ran(outcome, world.watch.passed, run.calls)
    finally:
        await world.close()


def first_crashes(workload: str, ran: Ran) -> Iterator[Case]:
    """A crash at each passing of each failpoint, in and after each request, of a workload that ran undisturbed."""
    for (client, point), times in sorted(ran.passed.items()):
        for nth in range(1, times + 1):
            yield Case(workload, (Kill(client, point, nth),))
    if workload == "expiry":
        return  # nearly all of its requests are those of a worker at rest
    for client, times in sorted(ran.calls.items()):
        for nth in range(1, times + 1):
            for arrives in (False, True):
                yield Case(workload, (Kill(client, "", nth, arrives),))


def second_crashes(case: Case, ran: Ran, *, most: int = 2) -> Iterator[Case]:
    """After the first one: a crash at each of the first passings of each failpoint by whoever was started since."""
    first = case.kills[0]
    born = int(first.client.rpartition("#")[2])
    for (client, point), times in sorted(ran.passed.items()):
        if int(client.rpartition("#")[2] or 0) > born:
            for nth in range(1, min(times, most) + 1):
                yield Case(case.workload, (first, Kill(client, point, nth)))


def answers() -> Iterator[Case]:
    """Each code on each RPC, with and without effect, once in the middle and once at the start.

    First what a broker says, then what none does.
    """
    for api in TRANSACTION:
        # Of outputs without an event: beside events in the second transaction, alone in the third.
        for nth in (2, 3):
            for code in sorted(BROKER_SAYS[api]):
                for applied in (False, True):
                    yield Case("notes", (), Answered(api, code, applied, nth))
    for real in (True, False):
        for api in APIS:
            for nth in (1, 2) if api in OFTEN else (1,):
                for code in ALL_CODES:
                    if (code in BROKER_SAYS[api]) is real:
                        for applied in (False, True):
                            yield Case(ASKED_IN.get(api, "steady"), (), Answered(api, code, applied, nth))


def parsed(text: str) -> Case:
    """What `str(case)` says. ValueError."""
    workload, *events = text.split("/")
    if workload not in WORKLOADS:
        raise ValueError(f"workloads are {', '.join(WORKLOADS)}, not {workload!r}")
    kills: list[Kill] = []
    answered = None
    for event in events:
        what, _, nth = event.partition(":")
        if "=" in what:
            api, _, code = what.partition("=")
            answered = Answered(api, int(code.removesuffix("!")), code.endswith("!"), int(nth))
        else:
            client, _, where = what.partition("@")
            point = "" if where in ("sent", "lost") else where
            kills.append(Kill(client, point, int(nth), where == "sent"))
    return Case(workload, tuple(kills), answered)
