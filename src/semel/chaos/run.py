"""A run from the first to the last step. What is started here is stopped here, however the run ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from semel.chaos import disks
from semel.chaos.cluster import Cluster
from semel.chaos.compaction import PLAIN, Compaction, Taken
from semel.chaos.events import Input, deliveries
from semel.chaos.faults import Torture
from semel.chaos.kept import KeptSource
from semel.chaos.load import Load
from semel.chaos.page import write
from semel.chaos.plan import Fault, Kind, Shape, possible, schedule
from semel.chaos.prover import prove
from semel.chaos.report import CLEAN, UNPROVABLE, Report, summary
from semel.chaos.show import Display, Shown, WorkerShown, display
from semel.chaos.sight import Sight
from semel.chaos.subject import Subject
from semel.chaos.tables import compare
from semel.chaos.timeline import Sample, percentile, rates, void_reasons
from semel.chaos.workers import WorkerProcess
from semel.errors import SemelError
from semel.kafka import KafkaBroker
from semel.local import jars, ports
from semel.local.folder import RunFolder
from semel.local.install import install
from semel.local.nursery import Nursery
from semel.port import RpcError, RpcLost, TopicSpec
from semel.up.workers import Views

FOLDER = Path(".semel/chaos")
# Short, so that a dead worker is missed soon; the local broker allows it.
SETTINGS = {"SEMEL_SESSION_TIMEOUT_MS": "6000", "SEMEL_COMMIT_INTERVAL_MS": "50", "SEMEL_DRAIN_TIMEOUT_MS": "20000"}
SESSION_S = 6.0
PARTITIONS = 4
GUESTS = 3
# More at once than this, and hardly anything runs that could be hurt.
AT_ONCE = 4
READY_S = 120.0
ASK_EVERY_S = 0.2
SAMPLE_EVERY_S = 0.5
RATE_OVER_S = 3.0
# What is left to do when the load stops is what a last recovery left, and the rest of a few seconds.
DRAIN_S = 120.0
# A worker that still joins is a session away from its partitions at most, and a restore.
TABLES_S = 30.0
# A run of so many faults without end is none: this much for each, which is several recoveries.
FAULT_S = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run is to do. `count`: so many faults, else for `minutes`. `report`: where the HTML goes, if anywhere."""

    target: str
    subject: Subject
    source: Input
    kinds: tuple[Kind, ...]
    count: int | None
    minutes: float
    workers: int
    brokers: int
    partitions: int | None
    rate: float
    seed: int
    report: Path | None
    as_json: bool

    @property
    def goal(self) -> str:
        return f"{self.count} faults" if self.count is not None else f"{self.minutes * 60:g} s"


@dataclass(frozen=True, slots=True)
class Ended:
    """`interrupted`: by Ctrl-C or SIGTERM, before there was a verdict."""

    report: Report
    interrupted: bool = False

    @property
    def clean(self) -> bool:
        return not self.interrupted and self.report.verdict == CLEAN

    @property
    def unprovable(self) -> bool:
        return not self.interrupted and self.report.verdict == UNPROVABLE


def run(asked: Asked) -> Ended:
    """Do the whole run in the current directory and print its report. What goes wrong before there is anything to
    report is raised, a SemelError where it can be said in a sentence."""
    return asyncio.run(_main(Run(asked, display(moving=sys.stderr.isatty() and not asked.as_json))))


async def _main(this: Run) -> Ended:
    work = asyncio.ensure_future(this.go())
    loop = asyncio.get_running_loop()
    # Once: what follows a Ctrl-C is the stopping, and that ends by itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        return Ended(this.report, interrupted=True)
    finally:
        await this.close()
    return Ended(this.report)


class Run:
    """Brokers, workers, load and torture of one run, and what is known of them."""

    def __init__(self, asked: Asked, shown: Display) -> None:
        self.asked = asked
        self.display = shown
        self.folder = FOLDER
        subject = asked.subject
        self.partitions = asked.partitions or subject.source.partitions or PARTITIONS
        self.report = Report(subject.name, asked.seed, asked.workers, asked.brokers, self.partitions)
        self.timeline = self.report.timeline
        self.sight = Sight(subject.source.name, self.partitions)
        self._held = RunFolder(self.folder, "semel chaos")
        self._nursery: Nursery | None = None
        self._cluster: Cluster | None = None
        self._broker: KafkaBroker | None = None
        self._views: Views | None = None
        self._kept: KeptSource | None = None
        self._load: Load | None = None
        self._torture: Torture | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: set[int] = set()
        self._began: float | None = None
        self._stage = "starting"
        self._guest_processes: dict[int, WorkerProcess] = {}

    def now(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began

    # -- the steps

    async def go(self) -> None:
        say = self.display.say
        say(f"seed {self.asked.seed}: --seed {self.asked.seed} gives the same faults and the same events again")
        self._take_folder()
        stalls = "disk-slow" in self.asked.kinds and await asyncio.to_thread(disks.can_stall, self.folder)
        mounts = stalls or ("disk-full" in self.asked.kinds and await asyncio.to_thread(disks.can_mount, self.folder))
        kinds, left_out = possible(
            self.asked.kinds, workers=self.asked.workers, brokers=self.asked.brokers, mounts=mounts, stalls=stalls
        )
        self.report.left_out = {str(kind): why for kind, why in left_out.items()}
        self.report.kinds, self.report.notes = tuple(kinds), self.asked.source.notes
        for sentence in (*self.asked.source.notes, *(f"no {kind}: {why}" for kind, why in left_out.items())):
            say(sentence)
        if not kinds:
            raise SemelError("none of the faults that were asked for can happen here")
        await self._start(disks.mount_file if stalls else disks.mount if mounts else None)
        assert self._load is not None
        listening = self._beside(self._listening())
        await self._until(lambda: self.sight.whole_since(0), READY_S, "the workers did not come to run")
        self._stage = "chaos"
        loading = self._beside(self._load.run())
        started = self._load
        await self._until(lambda: self.sight.behind(started.ends) < started.published, READY_S, "nothing was processed")
        try:
            await self._storm(kinds, loading)
            await self._settle(loading)
        finally:
            self._conclude()
        listening.cancel()
        await self._prove()
        self._publish()

    def _take_folder(self) -> None:
        self._held.take()
        disks.unmount_below(self.folder / "state")
        self._held.clear(self.display.say, within_s=2.0)
        for name in ("state", "logs"):
            (self.folder / name).mkdir()
        # A file of its own, so that no worker reads config/local.toml.
        (self.folder / "worker.toml").write_text("# The workers of semel chaos are set by their environment.\n")

    async def _start(self, mount: disks.Mount | None) -> None:
        say = self.display.say
        self._nursery = Nursery(self.folder / "logs" / "nursery.log")
        self._nursery.start()
        await asyncio.to_thread(install, jars.NEWEST, say)
        say(f"starting Kafka, {self.asked.brokers} broker{'s' if self.asked.brokers > 1 else ''}")
        cluster = Cluster(self._held.kafka, brokers=self.asked.brokers, version=jars.NEWEST, progress=say)
        self._cluster = await cluster.__aenter__()
        self._broker = KafkaBroker(cluster.bootstrap, client_id="semel-chaos", rpc_timeout_ms=4000)
        await self._broker.start()
        source = self.asked.subject.source
        replicas = min(3, self.asked.brokers)
        await self._broker.create_topics([TopicSpec(source.name, self.partitions, replicas, PLAIN)])
        self._kept = KeptSource(self.folder / "input.sqlite", source.name)
        self._views = Views()
        stream = deliveries(self.asked.source, self.asked.seed, now_ms)
        self._load = Load(self._broker, source.name, self.partitions, stream, rate=self._rate(), seed=self.asked.seed)
        chosen = ports.choose(self.asked.workers + GUESTS)
        workers = [self._worker(f"w{n}", chosen[n - 1]) for n in range(1, self.asked.workers + 1)]
        for n, port in enumerate(chosen[self.asked.workers :], 1):
            self._guest_processes[n] = self._worker(f"guest{n}", port)
        self._torture = Torture(
            app=self.asked.subject.name,
            cluster=cluster,
            workers=workers,
            guest=lambda number: self._guest_processes[number],
            sight=self.sight,
            load=self._load,
            compaction=Compaction(
                self._broker, cluster, self._kept, self.partitions, lambda: self.sight.watch.positions
            ),
            timeline=self.timeline,
            now=self.now,
            say=say,
            session_s=SESSION_S,
            findings=self.report.findings,
        )
        self._began = time.monotonic()
        for worker in workers:
            if mount is not None and not await asyncio.to_thread(mount, worker.state_dir):
                raise SemelError(f"a file system for {worker.state_dir} could not be mounted, though one could before")
            self._torture.start(worker)
        say(f"{len(workers)} workers, {self.partitions} partitions; {self.asked.goal} of chaos")

    def _rate(self) -> float:
        """Recorded events are spread over the run, so that they do not end before it."""
        limit = self.asked.source.limit
        if limit is None:
            return self.asked.rate
        seconds = self.asked.minutes * 60 if self.asked.count is None else self.asked.count * 3.0
        return max(1.0, min(self.asked.rate, limit * 1.2 / seconds))

    def _worker(self, name: str, port: int) -> WorkerProcess:
        assert self._nursery is not None and self._cluster is not None
        return WorkerProcess(
            self._nursery,
            self.asked.target,
            name,
            port=port,
            bootstrap=self._cluster.workers_bootstrap,
            folder=self.folder.absolute(),
            settings=SETTINGS,
        )

    async def _until(self, holds: Callable[[], bool], within_s: float, otherwise: str) -> None:
        deadline = time.monotonic() + within_s
        while not holds():
            self._refuse_failed()
            if time.monotonic() > deadline:
                ends = "".join(f"\n{w.log}:\n{w.log_end()}" for w in self._all_workers())
                raise SemelError(f"{otherwise} within {within_s:g} s: {'; '.join(self.sight.trouble())}{ends}")
            if self._stage == "starting" and (codes := [w.exit_code for w in self._all_workers() if w.exit_code]):
                raise SemelError(
                    f"a worker ended with exit code {codes[0]} before anything went wrong; its log ends:\n"
                    + "\n".join(w.log_end() for w in self._all_workers() if w.exit_code)
                )
            await asyncio.sleep(0.05)

    # -- the storm

    async def _storm(self, kinds: list[Kind], loading: asyncio.Task[None]) -> None:
        """Faults until there were as many as asked for, or the time is over; then until all are recovered from."""
        assert self._torture is not None and self._began is not None
        self.report.seconds = self.now()
        shape = Shape(self.asked.workers, self.asked.brokers, SESSION_S)
        count, began = 0, time.monotonic()
        limit_s = self.asked.minutes * 60 if self.asked.count is None else self.asked.count * FAULT_S
        running: set[asyncio.Task[None]] = set()

        def over() -> bool:
            if self.asked.count is not None and count >= self.asked.count:
                return True
            return time.monotonic() - began > limit_s or loading.done()

        async def fewer_than(most: int) -> None:
            while len(running) >= most:
                done, _ = await asyncio.wait(running, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    running.discard(task)
                    await task
                self._refuse_failed()
                if over() and most > 1:
                    return

        for fault in schedule(self.asked.seed, kinds, shape):
            await fewer_than(AT_ONCE if fault.overlap else 1)
            await asyncio.sleep(fault.gap_s)
            if over():
                break
            count += 1
            running.add(self._inflict(fault))
        await fewer_than(1)

    def _inflict(self, fault: Fault) -> asyncio.Task[None]:
        assert self._torture is not None
        return self._beside(self._torture.inflict(fault))

    async def _settle(self, loading: asyncio.Task[None]) -> None:
        """The load stops, and everything that it sent comes to its end."""
        assert self._torture is not None and self._load is not None
        self._stage = "draining"
        self._load.stop()
        await asyncio.wait({loading}, timeout=30)
        self._torture.heal()
        if not await self._load.finish(30):
            self.report.findings.append("the load's last records could not be written for 30 s with no fault in force")
        load, asked = self._load, time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not (self.sight.whole_since(asked) and self.sight.behind(load.ends) == 0):
                    self._refuse_failed()
                    await asyncio.sleep(0.1)
                return
        self.report.findings.append(
            f"recovery ends: {DRAIN_S:g} s after the last fault {self.sight.behind(load.ends):,} records are not "
            f"processed: {'; '.join(self.sight.trouble()[:8])}"
        )

    def _conclude(self) -> None:
        assert self._load is not None
        counts = dict(self._load.counts)
        kinds = ("immediate", "late", "burst", "disordered")
        redelivered = sum(counts.get(kind, 0) for kind in kinds) + counts.get("resent", 0)
        self.report.seconds = self.now()
        self.report.processed = self.sight.processed
        taken = self._torture.compaction.taken if self._torture is not None else Taken()
        self.report.events = {
            "published": self._load.published, "redelivered": redelivered, **counts, "compacted": taken.gone,
            "unread": taken.unread,
        }  # fmt: skip
        self.report.bites = self.sight.bites()
        self.report.mended = self._torture.mended if self._torture is not None else []
        workers = self._all_workers()
        self.report.void = void_reasons(
            self.timeline.entries,
            self.report.bites,
            starts=sum(w.starts for w in workers),
            redelivered=redelivered,
            deduped=self.asked.subject.dedup is not None,
        )

    # -- the proof

    async def _prove(self) -> None:
        assert self._torture is not None and self._broker is not None and self._kept is not None
        self._stage = "proving"
        self.display.say("the load is done and every fault healed; rows against changelogs, then the proof")
        with self._as_finding("the tables could not be read"):
            self.report.findings += await self._compare()
        for worker in self._torture.workers:
            worker.expected_end = True
            worker.send(signal.SIGTERM)
        for worker in self._torture.workers:
            if await worker.ended(40) is None:
                self.report.findings.append(f"{worker.name} did not end within 40 s of SIGTERM after the run")
                await worker.kill9()
        with self._as_finding("there is no proof"):
            self.report.proved = await prove(self._broker, self.asked.subject.plan, self._kept, self.display.say)

    async def _compare(self) -> list[str]:
        """Any worker answers for all, but the last one to come back may just be joining, and partitions move for that."""
        assert self._torture is not None and self._broker is not None and self._views is not None
        until = time.monotonic() + TABLES_S
        for worker in itertools.cycle(self._torture.workers):
            try:
                return await compare(self.asked.subject.plan, self._broker, self._views, worker.url)
            except SemelError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(ASK_EVERY_S)
        raise AssertionError("a run has workers")

    @contextlib.contextmanager
    def _as_finding(self, what: str) -> Generator[None]:
        """What keeps the run from its verdict is said with everything else."""
        try:
            yield
        except (SemelError, RpcError, RpcLost) as error:
            self.report.findings.append(f"{what}: {error}")

    def _publish(self) -> None:
        self.display.close()
        document = self.report.document()
        if self.asked.report is not None:
            write(self.asked.report, self.report)
            document["report"] = str(self.asked.report)
            self.display.say(f"report: {self.asked.report}")
        if self.asked.as_json:
            from semel.cli import output

            output.document(document)
        else:
            print(summary(self.report), flush=True)  # noqa: T201

    # -- watching

    def _beside(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        return task

    def _refuse_failed(self) -> None:
        """What runs beside must not fail unseen."""
        for task in [t for t in self._tasks if t.done()]:
            self._tasks.discard(task)
            if not task.cancelled():
                task.result()

    def _all_workers(self) -> list[WorkerProcess]:
        if self._torture is None:
            return []
        return [*self._torture.workers, *self._torture.guests]

    async def _listening(self) -> None:
        assert self._torture is not None
        next_sample = 0.0
        while True:
            for worker in self._all_workers():
                if worker.running and not worker.frozen and worker.pid not in self._asking:
                    self._beside(self._ask(worker))
                elif not worker.running and not worker.expected_end and self._stage != "starting":
                    self._beside(self._torture.supervise(worker))
            if self.now() >= next_sample:
                next_sample = self.now() + SAMPLE_EVERY_S
                self._sample()
                if self._stage != "starting":
                    self._beside(self._torture.mend_brokers())
                self.display.show(self._shown())
            await asyncio.sleep(ASK_EVERY_S)

    async def _ask(self, worker: WorkerProcess) -> None:
        assert self._views is not None and self._torture is not None
        pid, asked = worker.pid, time.monotonic()
        self._asking.add(pid)
        try:
            document = await self._views.pipeline(worker.url)
        finally:
            self._asking.discard(pid)
        # An answer that was on its way when its worker was killed or frozen says what no longer holds.
        known = any(w is worker for w in self._all_workers())
        if document is None or not known or worker.pid != pid or not worker.running or worker.frozen:
            return
        self.sight.hear(worker.name, pid, document, asked)
        states = {task["state"] for task in document["tasks"]}
        self.timeline.turn(worker.name, self.now(), "running" if states == {"running"} else "starting")

    def _sample(self) -> None:
        assert self._load is not None
        behind = self.sight.behind(self._load.ends)
        self.timeline.samples.append(Sample(self.now(), self._load.published, self.sight.processed, behind))

    def _shown(self) -> Shown:
        assert self._torture is not None and self._load is not None
        recent = rates(self.timeline.samples[-20:], RATE_OVER_S)
        return Shown(
            seconds=self.now(),
            goal=self.asked.goal,
            stage=self._stage,
            published=self._load.published,
            lag=self.sight.behind(self._load.ends),
            rate=recent[-1][1] if recent else 0.0,
            faults=self.timeline.by_kind(),
            active=len(self._torture.active),
            recovery_p50_s=percentile(self.timeline.recoveries(), 0.5),
            findings=len(self.report.findings),
            workers=tuple(self._worker_shown(w) for w in self._all_workers()),
        )

    def _worker_shown(self, worker: WorkerProcess) -> WorkerShown:
        seen = self.sight.watch.workers.get(worker.name)
        tasks = seen.tasks if seen is not None else {}
        phase = "frozen" if worker.frozen else "dead" if not worker.running else "running" if tasks else "starting"
        return WorkerShown(worker.name, phase, worker.pid, tasks)

    # -- the end

    async def close(self) -> None:
        """Stop everything this run started; its logs and the brokers' data stay. Never raises for what is shown."""
        with contextlib.suppress(OSError, ValueError):
            self.display.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._nursery is not None:
            await asyncio.to_thread(self._nursery.close)
        if self._views is not None:
            await self._views.close()
        if self._broker is not None:
            await self._broker.close()
        if self._kept is not None:
            self._kept.close()
        if self._cluster is not None:
            await self._cluster.__aexit__()
        if self._held.held:
            await asyncio.to_thread(disks.unmount_below, self.folder / "state")
            self._held.release()


def now_ms() -> int:
    return int(time.time() * 1000)
