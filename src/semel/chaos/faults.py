"""Faults, carried out: each does its harm to brokers, connections or worker processes, and ends it again."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field

from semel.chaos import disks
from semel.chaos.cluster import Cluster
from semel.chaos.compaction import Compaction
from semel.chaos.load import Load
from semel.chaos.plan import Fault
from semel.chaos.proxy import APIS, END_TXN, Lose, Rule, Side, Trouble
from semel.chaos.sight import Sight
from semel.chaos.stalls import Stalling
from semel.chaos.timeline import Entry, Timeline
from semel.chaos.workers import WorkerProcess
from semel.errors import SemelError
from semel.port import RpcError, RpcLost
from semel.proof.logs import Unreadable

# How long an armed worker may take to come to its failpoint: a start on a busy machine, a session, a rebalance.
ARMED_S = 25.0
# A request of the kind that is to be lost comes with every commit.
EXCHANGE_S = 8.0
TERM_S = 40.0
GUEST_S = 20.0
# With nothing going wrong any more; a session, a transaction and a restore on a busy machine are far below it.
RECOVERY_S = 90.0
LOOK_S = 0.05
TAKEN = 4
KILLED = -9
# SIGTERM before a worker has come to listen to it.
TERMINATED = -15


@dataclass
class Torture:
    """What there is to be hurt, and what was seen of it.

    `guest` makes a worker process more; `active`: numbers of faults that are not healed. `findings`: what no fault
    excuses, as sentences; `mended`: what the brokers did of their own accord, and was put right.
    """

    app: str
    cluster: Cluster
    workers: list[WorkerProcess]
    guest: Callable[[int], WorkerProcess]
    sight: Sight
    load: Load
    compaction: Compaction
    timeline: Timeline
    now: Callable[[], float]
    say: Callable[[str], None]
    session_s: float
    findings: list[str] = field(default_factory=list[str])
    mended: list[str] = field(default_factory=list[str])
    active: set[int] = field(default_factory=set[int])
    guests: list[WorkerProcess] = field(default_factory=list[WorkerProcess])
    _busy: set[str] = field(default_factory=set[str])
    _broker: asyncio.Lock = field(default_factory=asyncio.Lock)
    _rebalancing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _compacting: asyncio.Lock = field(default_factory=asyncio.Lock)

    # -- one fault, from its beginning to the recovery

    async def inflict(self, fault: Fault) -> None:
        entry = Entry(fault.number, fault.kind, str(fault), "", self.now())
        methods = {
            "kill": self._kill,
            "failpoint": self._failpoint,
            "zombie": self._zombie,
            "term": self._term,
            "broker-kill": self._broker_away,
            "leader": self._broker_away,
            "net": self._net,
            "rebalance": self._rebalance,
            "disk-full": self._disk_full,
            "disk-slow": self._disk_slow,
            "clock": self._clock,
            "compact": self._compact,
        }
        self.active.add(fault.number)
        try:
            await methods[fault.kind](fault, entry)
        finally:
            self.active.discard(fault.number)
        entry.healed_s = self.now()
        await self._recovered(entry)

    def _begins(self, entry: Entry, whom: str) -> None:
        """It was waited for until here: whom it is to hit was busy with another fault."""
        entry.at_s, entry.whom = self.now(), whom
        self.timeline.entries.append(entry)
        self.say(f"{entry.at_s:7.1f} s  #{entry.number} {entry.what} → {whom}")

    async def _recovered(self, entry: Entry) -> None:
        """Until every partition runs and commits go on; a finding where it does not, with nothing else going wrong."""
        healed = time.monotonic()
        processed = self.sight.processed
        quiet_s, looked = 0.0, healed
        while True:
            if self.sight.whole_since(healed) and (
                self.sight.processed > processed or self.sight.behind(self.load.ends) == 0
            ):
                entry.recovered_s = self.now()
                took = entry.recovery_s or 0.0
                self.say(f"{self.now():7.1f} s  #{entry.number} recovered {took:.1f} s after its end{_so(entry)}")
                return
            await asyncio.sleep(LOOK_S)
            before, looked = looked, time.monotonic()
            quiet_s = 0.0 if self.active else quiet_s + looked - before
            if quiet_s > RECOVERY_S:
                entry.note = entry.note or "never recovered"
                self.findings.append(
                    f"recovery ends: {RECOVERY_S:g} s after fault {entry.number} ({entry.what}, {entry.whom}) not all "
                    "partitions run and commit: " + "; ".join(self.sight.trouble()[:8])
                )
                return

    # -- whom

    @asynccontextmanager
    async def _claimed(self, index: int) -> AsyncGenerator[WorkerProcess]:
        """The worker of that number, or the next that no other fault has in hand; waits while all are."""
        while True:
            idle = [w for w in self._from(index) if w.name not in self._busy]
            if idle:
                break
            await asyncio.sleep(LOOK_S)
        chosen = idle[0]
        self._busy.add(chosen.name)
        try:
            yield chosen
        finally:
            self._busy.discard(chosen.name)

    @asynccontextmanager
    async def _victims(self, index: int, *, everyone: bool) -> AsyncGenerator[list[WorkerProcess]]:
        """The worker that is claimed by that number; `everyone`: and all others that no fault has in hand."""
        async with self._claimed(index) as first:
            others = [worker for worker in self.workers if everyone and self.idle(worker)]
            self._busy.update(worker.name for worker in others)
            try:
                yield [first, *others]
            finally:
                self._busy.difference_update(worker.name for worker in others)

    def _from(self, index: int) -> list[WorkerProcess]:
        index %= len(self.workers)
        return [*self.workers[index:], *self.workers[:index]]

    def idle(self, worker: WorkerProcess) -> bool:
        return worker.name not in self._busy

    # -- processes

    def start(self, worker: WorkerProcess, *, failpoint: str = "") -> None:
        worker.start(failpoint=failpoint)
        self.sight.meet(worker.name, worker.url, worker.pid)
        self.timeline.turn(worker.name, self.now(), "starting")

    def gone(self, worker: WorkerProcess) -> None:
        self.sight.gone(worker.name)
        self.timeline.turn(worker.name, self.now(), "dead")

    async def _kill9(self, workers: Iterable[WorkerProcess]) -> None:
        for worker in workers:
            worker.expected_end = True
            worker.send(signal.SIGKILL)
        for worker in workers:
            await worker.kill9()
            self.gone(worker)

    def _freeze(self, worker: WorkerProcess) -> None:
        worker.freeze()
        self.sight.gone(worker.name)
        self.timeline.turn(worker.name, self.now(), "frozen")

    def _thaw(self, worker: WorkerProcess) -> None:
        worker.thaw()
        self.sight.meet(worker.name, worker.url, worker.pid)
        self.timeline.turn(worker.name, self.now(), "starting")

    async def _kill(self, fault: Fault, entry: Entry) -> None:
        async with self._victims(fault.worker, everyone=fault.variant == "SIGKILL to all") as victims:
            self._begins(entry, ", ".join(w.name for w in victims))
            entry.bit = any(self.sight.holds(w.name) for w in victims)
            await self._kill9(victims)
            await asyncio.sleep(fault.hold_s)
            for worker in victims:
                if fault.fresh_disk:
                    worker.lose_disk()
                self.start(worker)

    async def _failpoint(self, fault: Fault, entry: Entry) -> None:
        async with self._claimed(fault.worker) as worker:
            self._begins(entry, worker.name)
            await self._kill9([worker])
            if fault.fresh_disk:
                worker.lose_disk()
            self.start(worker, failpoint=f"{fault.step}:kill:{fault.nth}")
            if fault.step.startswith("revoke."):
                async with self._rebalancing:
                    await self._holding(worker, ARMED_S)
                    guest = self._invite(1)
                    code = await worker.ended(ARMED_S)
                    await self._dismiss([guest], kill=True)
            else:
                code = await worker.ended(ARMED_S)
            entry.bit = code == KILLED
            if code is None:
                entry.note = "it was not passed"
                await self._kill9([worker])
            elif code != KILLED:
                self._ended_by_itself(worker, code)
            self.gone(worker)
            self.start(worker)

    async def _zombie(self, fault: Fault, entry: Entry) -> None:
        async with self._claimed(fault.worker) as worker:
            if fault.variant == "replaced while frozen":
                # Frozen before it joined it would wake as the later of the two, and rightly take the name.
                await self._holding(worker, ARMED_S)
            self._begins(entry, worker.name)
            entry.bit = bool(self.sight.holds(worker.name))
            self._freeze(worker)
            if fault.variant != "replaced while frozen":
                await asyncio.sleep(fault.hold_s)
                self._thaw(worker)
                return
            # It has to find out by itself that it is not wanted any more.
            worker.expected_end = True
            twin = worker.twin()
            self.workers[self.workers.index(worker)] = twin
            await asyncio.to_thread(disks.mount_like, worker.state_dir, twin.state_dir)
            try:
                self.start(twin)
                await asyncio.gather(asyncio.sleep(fault.hold_s), self._holding(twin, ARMED_S))
            finally:
                worker.thaw()
            code = await worker.ended(TERM_S)
            if code is None:
                self.findings.append(
                    f"a fenced worker writes nothing: {worker.name} was frozen, replaced under its name and woken, and "
                    f"went on for {TERM_S:g} s beside its replacement (fault {fault.number})"
                )
                await worker.kill9()
            elif code != TAKEN:
                entry.note = f"the frozen one ended with exit code {code}"

    async def _term(self, fault: Fault, entry: Entry) -> None:
        async with self._claimed(fault.worker) as worker:
            self._begins(entry, worker.name)
            if fault.step:
                await self._kill9([worker])
                self.start(worker, failpoint=f"{fault.step}:stop:{fault.nth}")
                entry.bit = await worker.stopped(ARMED_S)
                entry.note = "" if entry.bit else f"{fault.step} was not passed"
                worker.expected_end = True
                worker.send(signal.SIGTERM)
                worker.thaw()
            else:
                entry.bit = bool(self.sight.holds(worker.name))
            code = await worker.term(TERM_S)
            if code is None:
                self.findings.append(f"{worker.name} did not end within {TERM_S:g} s of SIGTERM (fault {fault.number})")
                await worker.kill9()
            elif code not in (0, KILLED, TERMINATED):
                self._ended_by_itself(worker, code)
            self.gone(worker)
            self.start(worker)

    async def _clock(self, fault: Fault, entry: Entry) -> None:
        async with self._claimed(fault.worker) as worker:
            self._begins(entry, worker.name)
            entry.bit = bool(self.sight.holds(worker.name))
            restarts = not fault.variant.startswith("jumps")
            try:
                if restarts:
                    await self._kill9([worker])
                worker.set_clock(fault.offset_ms)
                if restarts:
                    self.start(worker)
                    await self._holding(worker, ARMED_S)
                await asyncio.sleep(fault.hold_s)
                if restarts:
                    await self._kill9([worker])
            finally:
                # Where it only jumped, it jumps back.
                worker.set_clock(0)
            if restarts:
                self.start(worker)

    async def _disk_full(self, fault: Fault, entry: Entry) -> None:
        async with self._claimed(fault.worker) as worker:
            self._begins(entry, worker.name)
            if not worker.state_dir.is_mount():
                entry.note = "its state directory is not on a file system of its own"
                return
            worker.expected_end = True
            try:
                await asyncio.to_thread(disks.fill, worker.state_dir)
                await asyncio.sleep(fault.hold_s / 2)
                # What runs on has its files; what starts must write some.
                await self._kill9([worker])
                self.start(worker)
                worker.expected_end = True
                code = await worker.ended(fault.hold_s / 2 + 3)
                entry.bit = code is not None
            finally:
                await asyncio.to_thread(disks.free, worker.state_dir)
            await self._kill9([worker])
            self.start(worker)

    async def _disk_slow(self, fault: Fault, entry: Entry) -> None:
        async with self._claimed(fault.worker) as worker:
            self._begins(entry, worker.name)
            if not disks.can_be_slow(worker.state_dir):
                entry.note = "its state directory is not on a file system that can be frozen"
                return
            stalling = await asyncio.to_thread(Stalling, worker.state_dir)
            try:
                stalling.watch(worker.pid)
                await asyncio.sleep(fault.hold_s / 2)
                if fault.variant.endswith("at a start"):
                    await self._kill9([worker])
                    self.start(worker)
                    stalling.watch(worker.pid)
                await asyncio.sleep(fault.hold_s / 2)
            finally:
                seen = await asyncio.to_thread(stalling.end)
            entry.bit, entry.note = seen.met > 0, str(seen)

    async def _holding(self, worker: WorkerProcess, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and worker.running:
            if self.sight.holds(worker.name):
                return True
            await asyncio.sleep(LOOK_S)
        return False

    def _ended_by_itself(self, worker: WorkerProcess, code: int) -> None:
        self.findings.append(f"{worker.name} ended by itself with exit code {code}; its log ends:\n{worker.log_end()}")

    # -- the group

    def _invite(self, number: int) -> WorkerProcess:
        guest = self.guest(number)
        self.guests.append(guest)
        self.start(guest)
        return guest

    async def _dismiss(self, guests: list[WorkerProcess], *, kill: bool) -> None:
        for guest in guests:
            if kill or await guest.term(TERM_S) is None:
                await guest.kill9()
            self.sight.forget(guest.name)
            self.timeline.turn(guest.name, self.now(), "away")
            self.guests.remove(guest)

    async def _rebalance(self, fault: Fault, entry: Entry) -> None:
        async with self._rebalancing:
            self._begins(entry, "the group")
            guests: list[WorkerProcess] = []
            try:
                for number in range(1, fault.nth + 1):
                    guests.append(self._invite(number))
                    await asyncio.sleep(fault.hold_s / 4)
                await self._holding(guests[0], GUEST_S)
                await asyncio.sleep(fault.hold_s)
                entry.bit = any(self.sight.holds(guest.name) for guest in guests)
            finally:
                await self._dismiss(guests, kill=fault.number % 2 == 0)

    # -- brokers and connections

    async def _broker_away(self, fault: Fault, entry: Entry) -> None:
        node = self.cluster.nodes[fault.broker]
        async with self._broker:
            self._begins(entry, f"broker {node}")
            processed = self.sight.processed
            entry.bit = processed > 0
            if fault.kind == "leader":
                await self.cluster.leave(node)
            else:
                await self.cluster.kill(node)
            await asyncio.sleep(fault.hold_s)
            await self.cluster.back(node)

    async def mend_brokers(self) -> None:
        """Start a broker again that cannot coordinate, as an operator would: it does not come to by itself.

        Seen of Kafka 4.1.1 after a SIGKILL: a coordinator that had loaded a part of its log only, then failed to reload it.
        """
        if self._broker.locked():
            return
        async with self._broker:
            for node, why in self.cluster.stuck().items():
                self.mended.append(f"broker {node} did not load what it coordinates and was started again ({why})")
                self.say(f"{self.now():7.1f} s  {self.mended[-1]}")
                self.active.add(-node)
                try:
                    await self.cluster.leave(node)
                    await self.cluster.back(node)
                finally:
                    self.active.discard(-node)

    async def _net(self, fault: Fault, entry: Entry) -> None:
        worker = None if fault.worker < 0 else self._from(fault.worker)[0]
        client = f"{self.app}-{worker.name}" if worker else ""
        self._begins(entry, worker.name if worker else "all workers")
        proxies = self.cluster.proxies
        match fault.variant:
            case "cut":
                entry.bit = sum(proxy.cut(client) for proxy in proxies) > 0
            case "half-close":
                side = Side.ANSWERS if fault.number % 2 else Side.REQUESTS
                entry.bit = sum(proxy.half_close(client, side) for proxy in proxies) > 0
            case "lose request" | "lose answer":
                lose = Lose.REQUEST if fault.variant == "lose request" else Lose.ANSWER
                nth, ends = fault.nth, list[Rule]()
                if fault.step == "InitProducerId":
                    # A writer is taken only where one was lost.
                    nth, ends = 1, [proxy.lose(END_TXN, Lose.REQUEST, client=client) for proxy in proxies]
                rules = [proxy.lose(APIS[fault.step], lose, nth=nth, client=client) for proxy in proxies]
                entry.bit = await _any_done(rules, EXCHANGE_S)
                for proxy in proxies:
                    for rule in (*rules, *ends):
                        proxy.forget(rule)
                entry.note = "" if entry.bit else "there was no such exchange"
            case _:
                with ExitStack() as lasting:
                    troubles = [lasting.enter_context(proxy.trouble(_trouble(fault, client))) for proxy in proxies]
                    await asyncio.sleep(fault.hold_s)
                entry.bit = any(trouble.touched for trouble in troubles)

    # -- the input

    async def _compact(self, fault: Fault, entry: Entry) -> None:
        """Compaction takes events behind the workers; where they are frozen or down, also such as nobody has read."""
        async with self._compacting, AsyncExitStack() as claims:
            kept_off: list[WorkerProcess] = []
            if fault.hold_s:
                kept_off = await claims.enter_async_context(self._victims(fault.worker, everyone=True))
            self._begins(entry, ", ".join(w.name for w in kept_off) or "the input")
            if self.load.keyless:
                entry.note = "the input has records without a key, which a compacted topic does not hold"
                return
            frozen = fault.variant == "while they are frozen"
            if frozen:
                for worker in kept_off:
                    self._freeze(worker)
            else:
                await self._kill9(kept_off)
            try:
                await asyncio.sleep(fault.hold_s)
                async with self._broker:
                    await self.compaction.prepare()
                taken = await self.compaction.strike()
                entry.bit, entry.note = taken.gone > 0, str(taken)
            except (RpcError, RpcLost, Unreadable) as error:
                entry.note = f"the input could not be kept for the proof, and so was not compacted: {error}"
            finally:
                for worker in kept_off:
                    (self._thaw if frozen else self.start)(worker)

    # -- the end

    def heal(self) -> None:
        """Whatever a fault that was interrupted left behind."""
        for worker in (*self.workers, *self.guests):
            if worker.frozen:
                worker.thaw()
            if worker.state_dir.is_mount():
                disks.free(worker.state_dir)
            worker.set_clock(0)

    async def supervise(self, worker: WorkerProcess) -> None:
        """A worker that ended with nobody's leave is started again, as a supervisor would; it is a finding, too.

        One that says it cannot reach its broker (exit code 3) while brokers or connections are troubled is right.
        """
        code = worker.exit_code
        if worker.running or worker.expected_end or not self.idle(worker) or code is None:
            return
        worker.expected_end = True
        if code == 4 and self.cluster.forgetful:
            self.mended.append(
                f"{worker.name} gave its name up (exit code 4): a broker had coordinated from a part of its log"
            )
        elif not (code == 3 and (self.active or self.cluster.away)):
            self._ended_by_itself(worker, code)
        self.gone(worker)
        await asyncio.sleep(0.5)
        if not worker.running and self.idle(worker):
            self.start(worker)


def _trouble(fault: Fault, client: str) -> Trouble:
    match fault.variant:
        case "delay":
            return Trouble(client, delay_s=fault.offset_ms / 1000)
        case "silent requests":
            return Trouble(client, silent=Side.REQUESTS)
        case "silent answers":
            return Trouble(client, silent=Side.ANSWERS)
        case "refuse":
            return Trouble(client, refuses=True)
        case other:
            raise SemelError(f"there is no fault of connections called {other!r}")


async def _any_done(rules: list[Rule], within_s: float) -> bool:
    waiting = [asyncio.ensure_future(rule.done.wait()) for rule in rules]
    done, pending = await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return bool(done)


def _so(entry: Entry) -> str:
    said = [] if entry.bit else ["it met nothing at work"]
    said += [entry.note] if entry.note else []
    return f" ({'; '.join(said)})" if said else ""
