"""What a run hurts, and what every fault needs for it: whom it may take, how it is seen, when it is recovered from."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from semel.chaos.cluster import Cluster
from semel.chaos.compaction import Compaction
from semel.chaos.load import Load
from semel.chaos.observed import Observed
from semel.chaos.timeline import Entry, Phase, Timeline
from semel.chaos.workers import ChaosWorker
from semel.local.views import Views
from semel.plan import Plan
from semel.port import Broker

TERM_S = 40.0
# With nothing going wrong any more; a session, a transaction and a restore on a busy machine are far below it.
RECOVERY_S = 90.0
LOOK_S = 0.05
# What a worker says that has not the rights it needs, and how long one may take to end for it.
REFUSED = re.compile(r"_AUTHORIZATION_FAILED|error (29|30|31|53)\b")
GONE_S = 30.0
# How a worker ends that got SIGTERM: by itself; before it has come to listen to it; killed before that.
IN_ORDER = (0, -signal.SIGTERM, -signal.SIGKILL)
# A worker that ended is started again after so long.
AGAIN_S = 0.5


@dataclass
class Fleet:
    """What there is to be hurt, and what was seen of it.

    `spare`: processes that may join as guests; `goal`: until when it goes on, in words; `stage`: how far the run is, as it is
    shown; `active`: numbers of faults that are not healed. `findings`: what no fault excuses, as sentences; `mended`: what the
    brokers did of their own accord, and was put right. `starts`: how many processes were started; `unrightful`: how many
    workers ended for want of a right; `rights_since`: since when they all have theirs, inf while they do not.
    """

    plan: Plan
    broker: Broker
    cluster: Cluster
    workers: list[ChaosWorker]
    spare: list[ChaosWorker]
    observed: Observed
    load: Load
    compaction: Compaction
    views: Views
    say: Callable[[str], None]
    goal: str
    stage: str = "starting"
    timeline: Timeline = field(default_factory=Timeline)
    began: float = field(default_factory=time.monotonic)
    findings: list[str] = field(default_factory=list[str])
    mended: list[str] = field(default_factory=list[str])
    active: set[int] = field(default_factory=set[int])
    guests: list[ChaosWorker] = field(default_factory=list[ChaosWorker])
    starts: int = 0
    unrightful: int = 0
    rights_since: float = -math.inf
    _busy: set[str] = field(default_factory=set[str])
    _locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    def now(self) -> float:
        """Seconds of the run."""
        return time.monotonic() - self.began

    @property
    def everyone(self) -> list[ChaosWorker]:
        return [*self.workers, *self.guests]

    @property
    def behind(self) -> int:
        """Records that are certainly on the topic and not committed as done."""
        return self.observed.behind(self.load.ends)

    def report(self, finding: str) -> None:
        """What no fault excuses. It is said at once, that what led to it stands right above."""
        self.findings.append(finding)
        self.say(f"{self.now():7.1f} s  finding: {finding.partition(chr(10))[0]}")

    # -- one fault, from its beginning to the recovery

    def begins(self, entry: Entry, whom: str) -> None:
        """It was waited for until here: whom it is to hit was busy with another fault."""
        entry.at_s, entry.whom = self.now(), whom
        self.timeline.entries.append(entry)
        self.say(f"{entry.at_s:7.1f} s  #{entry.number} {entry.what} → {whom}")

    async def recovered(self, entry: Entry) -> None:
        """Until every partition runs and commits go on; a finding where it does not, with nothing else going wrong."""
        healed, processed = time.monotonic(), self.observed.processed

        def whole() -> bool:
            return self.observed.whole_since(healed) and (self.observed.processed > processed or not self.behind)

        if not await self.comes(whole, RECOVERY_S):
            entry.note = entry.note or "never recovered"
            self.report(
                f"recovery ends: {RECOVERY_S:g} s after fault {entry.number} ({entry.what}, {entry.whom}) not all "
                "partitions run and commit: " + "; ".join(self.observed.trouble()[:8])
            )
            return
        entry.recovered_s = self.now()
        remarks = f" ({entry.remarks})" if entry.remarks else ""
        took_s = entry.recovery_s or 0.0
        self.say(f"{self.now():7.1f} s  #{entry.number} recovered {took_s:.1f} s after its end{remarks}")

    async def comes(self, holds: Callable[[], bool], within_s: float, *, beside: int = 0) -> bool:
        """Whether that comes to hold; False after so long on end in which no fault was in force, but the one of that number."""
        quiet_s, looked = 0.0, time.monotonic()
        while not holds():
            await asyncio.sleep(LOOK_S)
            before, looked = looked, time.monotonic()
            quiet_s = 0.0 if self.active - {beside} else quiet_s + looked - before
            if quiet_s > within_s:
                return False
        return True

    # -- whom

    def alone(self, what: str) -> asyncio.Lock:
        """Held by the one fault that has this in hand: the brokers, the group, the input, their quotas, rights or code, or the
        dead letters."""
        return self._locks[what]

    @asynccontextmanager
    async def claimed(self, index: int, *, everyone: bool = False) -> AsyncGenerator[list[ChaosWorker]]:
        """The worker of that number, or the next that no other fault has in hand; waits while all are.

        `everyone`: and all others that no fault has in hand.
        """
        while True:
            at = index % len(self.workers)
            idle = [w for w in (*self.workers[at:], *self.workers[:at]) if w.name not in self._busy]
            if idle:
                break
            await asyncio.sleep(LOOK_S)
        claimed = idle if everyone else idle[:1]
        names = {worker.name for worker in claimed}
        self._busy |= names
        try:
            yield claimed
        finally:
            self._busy -= names

    @asynccontextmanager
    async def struck(self, index: int, entry: Entry) -> AsyncGenerator[ChaosWorker]:
        """As `claimed`, by a fault that begins at once."""
        async with self.claimed(index) as [worker]:
            self.begins(entry, worker.name)
            yield worker

    def aimed(self, index: int) -> list[ChaosWorker]:
        """The worker of that number, all of them below 0; also where another fault has it in hand."""
        return self.workers if index < 0 else [self.workers[index % len(self.workers)]]

    # -- processes

    def start(self, worker: ChaosWorker, *, failpoint: str = "") -> None:
        worker.start(failpoint=failpoint)
        self.starts += 1
        self._turns(worker, "starting")

    def _turns(self, worker: ChaosWorker, phase: Phase) -> None:
        if phase == "starting":
            self.observed.started(worker.name, worker.url, worker.pid)
        else:
            self.observed.gone(worker.name)
        self.timeline.turn(worker.name, self.now(), phase)

    async def kill9(self, *workers: ChaosWorker) -> None:
        for worker in workers:
            worker.expected_end = True
            worker.send(signal.SIGKILL)
        for worker in workers:
            await worker.kill9()
            self._turns(worker, "dead")

    async def restart(self, worker: ChaosWorker, *, failpoint: str = "", fresh_disk: bool = False) -> None:
        """SIGKILL, unless it is gone, and a start."""
        await self.kill9(worker)
        if fresh_disk:
            worker.lose_disk()
        self.start(worker, failpoint=failpoint)

    def freeze(self, worker: ChaosWorker) -> None:
        worker.freeze()
        self._turns(worker, "frozen")

    def thaw(self, worker: ChaosWorker) -> None:
        worker.thaw()
        self._turns(worker, "starting")

    def replace(self, worker: ChaosWorker, by: ChaosWorker) -> None:
        """Another process is the worker of that name from now on; it runs, or is about to be started."""
        worker.expected_end = True
        self.workers[self.workers.index(worker)] = by
        if by.running:
            by.expected_end = False
            self._turns(by, "starting")

    async def holding(self, worker: ChaosWorker, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and worker.running:
            if self.observed.holds(worker.name):
                return True
            await asyncio.sleep(LOOK_S)
        return False

    def ended_by_itself(self, worker: ChaosWorker, code: int) -> None:
        """A finding, but for one that says that it may not do what a fault took the right to."""
        late = time.monotonic() - self.rights_since > GONE_S
        if code in (1, 2) and not late and REFUSED.search(worker.log_end()):
            self.unrightful += 1
        else:
            self.report(f"{worker.name} ended by itself with exit code {code}; {worker.log_end()}")

    def ended_unasked(self, worker: ChaosWorker, code: int) -> None:
        """As `ended_by_itself`; one that says it cannot reach its broker (exit code 3) while brokers or connections are troubled
        is right."""
        if code == 4 and self.cluster.forgetful:
            self.mended.append(
                f"{worker.name} gave its name up (exit code 4): a broker had coordinated from a part of its log"
            )
        elif not (code == 3 and (self.active or self.cluster.away)):
            self.ended_by_itself(worker, code)

    def ended_asked(self, worker: ChaosWorker, code: int | None, when: str = "") -> None:
        """It got SIGTERM; a finding where it ended otherwise than in order, or not at all within `TERM_S` (None)."""
        if code is None:
            self.report(f"{worker.name} did not end within {TERM_S:g} s of SIGTERM{when and f' ({when})'}")
        elif code not in IN_ORDER:
            self.ended_unasked(worker, code)

    async def supervise(self, worker: ChaosWorker) -> None:
        """A worker that ended with nobody's leave is started again, as a supervisor would; it is a finding, too."""
        code = worker.exit_code
        if worker.running or worker.expected_end or worker.name in self._busy or code is None:
            return
        worker.expected_end = True
        self.ended_unasked(worker, code)
        self._turns(worker, "dead")
        await asyncio.sleep(AGAIN_S)
        # A fault that has it in hand meanwhile does not always start it: one that froze it thaws what is not there.
        await self.comes(lambda: worker.name not in self._busy, math.inf)
        # A guest may have been dismissed meanwhile.
        if worker in self.everyone and not worker.running:
            self.start(worker)

    # -- the group and its brokers

    def invite(self, number: int) -> ChaosWorker:
        guest = self.spare[number - 1]
        self.guests.append(guest)
        self.start(guest)
        return guest

    async def dismiss(self, guests: list[ChaosWorker], *, kill: bool) -> None:
        for guest in guests:
            if kill:
                await guest.kill9()
            else:
                # One that has ended by itself was seen by its supervisor.
                seen = guest.expected_end and not guest.running
                code = await guest.term(TERM_S)
                if not seen:
                    self.ended_asked(guest, code, "a guest")
            self._turns(guest, "away")
            self.observed.forget(guest.name)
            self.guests.remove(guest)

    async def mend_brokers(self) -> None:
        """Start a broker again that cannot coordinate, as an operator would: it does not come to by itself.

        Seen of Kafka 4.1.1 after a SIGKILL: a coordinator that had loaded a part of its log only, then failed to reload it.
        """
        if self.alone("brokers").locked():
            return
        async with self.alone("brokers"):
            for node, why in self.cluster.stuck().items():
                self.mended.append(f"broker {node} did not load what it coordinates and was started again ({why})")
                self.say(f"{self.now():7.1f} s  {self.mended[-1]}")
                self.active.add(-node)
                try:
                    await self.cluster.leave(node)
                    await self.cluster.back(node)
                finally:
                    self.active.discard(-node)
