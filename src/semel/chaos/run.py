"""A run from the first to the last step. What is started here is stopped here, however the run ends."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from semel.chaos import disks
from semel.chaos.archive import Archive
from semel.chaos.cluster import Cluster
from semel.chaos.compaction import PLAIN, Compaction
from semel.chaos.events import Input, deliveries
from semel.chaos.fault import Machine, Shape
from semel.chaos.faults import heal, inflict
from semel.chaos.faults.brokers import growing
from semel.chaos.fleet import Fleet
from semel.chaos.load import Load
from semel.chaos.monitor import Monitor
from semel.chaos.observed import Observed
from semel.chaos.page import write
from semel.chaos.plan import possible, schedule
from semel.chaos.report import CLEAN, UNPROVABLE, Report, summary
from semel.chaos.show import Display, display
from semel.chaos.subject import Subject
from semel.chaos.verdict import conclude, judge
from semel.chaos.workers import ChaosWorker
from semel.errors import SemelError
from semel.kafka import KafkaBroker
from semel.local import jars, ports
from semel.local.forkserver import Nursery
from semel.local.install import install
from semel.local.run_directory import RunFolder
from semel.local.views import Views
from semel.port import TopicSpec

FOLDER = Path(".semel/chaos")
# Short, so that a dead worker is missed soon; the local broker allows it.
SETTINGS = {"SEMEL_SESSION_TIMEOUT_MS": "6000", "SEMEL_COMMIT_INTERVAL_MS": "50", "SEMEL_DRAIN_TIMEOUT_MS": "20000"}
SESSION_S = 6.0
PARTITIONS = 4
GUESTS = 3
# More at once than this, and hardly anything runs that could be hurt.
AT_ONCE = 4
READY_S = 120.0
# What is left to do when the load stops is what a last recovery left, and the rest of a few seconds.
DRAIN_S = 120.0
# A run of so many faults without end is none: this much for each, which is several recoveries.
FAULT_S = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run is to do. `count`: so many faults, else for `minutes`. `report`: where the HTML goes, if anywhere."""

    target: str
    subject: Subject
    source: Input
    kinds: tuple[str, ...]
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
    """One run; `report` is what it found so far, also where it was interrupted."""

    def __init__(self, asked: Asked, shown: Display) -> None:
        self.asked = asked
        self.display = shown
        self.folder = FOLDER
        subject = asked.subject
        self.partitions = asked.partitions or subject.source.partitions or PARTITIONS
        self.report = Report(subject.name, asked.seed, asked.workers, asked.brokers, self.partitions)
        self.observed = Observed(subject.source.name, self.partitions)
        self._started = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._began: float | None = None

    def now(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began

    # -- the steps

    async def go(self) -> None:
        say = self.display.say
        say(f"seed {self.asked.seed}: --seed {self.asked.seed} gives the same faults and the same events again")
        kafka = self._take_folder()
        stalls = "disk-slow" in self.asked.kinds and await asyncio.to_thread(disks.can_stall, self.folder)
        mounts = stalls or ("disk-full" in self.asked.kinds and await asyncio.to_thread(disks.can_mount, self.folder))
        kinds, left_out = possible(self.asked.kinds, Machine(self.asked.brokers, mounts, stalls))
        self.report.left_out = left_out
        self.report.kinds, self.report.notes = tuple(kinds), self.asked.source.notes
        for sentence in (*self.asked.source.notes, *(f"no {kind}: {why}" for kind, why in left_out.items())):
            say(sentence)
        if not kinds:
            raise SemelError("none of the faults that were asked for can happen here")
        broker, cluster = await self._start_brokers(kafka)
        archive = self._started.enter_context(closing(Archive(self.folder / "input.sqlite", self.observed.topic)))
        views = Views()
        self._started.push_async_callback(views.close)
        on = self._fleet(broker, cluster, archive)
        await self._start_workers(on, disks.mount_file if stalls else disks.mount if mounts else None)
        monitor = Monitor(on, views, self.display, goal=self.asked.goal, beside=self._beside)
        listening = self._beside(monitor.go())
        await self._until(on, lambda: self.observed.whole_since(0), "the workers did not come to run", unhurt=True)
        monitor.stage = "chaos"
        loading = self._beside(on.load.run())
        await self._until(on, lambda: self.observed.behind(on.load.ends) < on.load.published, "nothing was processed")
        try:
            await self._storm(on, kinds, loading)
            monitor.stage = "draining"
            await self._settle(on, loading)
        finally:
            conclude(self.report, on, deduped=self.asked.subject.dedup is not None)
        listening.cancel()
        monitor.stage = "proving"
        say("the load is done and every fault healed; rows against changelogs, then the proof")
        await judge(self.report, on, self.asked.subject, broker, archive, views, say)
        self._publish()

    def _take_folder(self) -> Path:
        """Where the run's Kafka keeps its data. FolderTaken."""
        held = RunFolder(self.folder, "semel chaos")
        held.take()
        self._started.callback(held.release)
        self._started.push_async_callback(asyncio.to_thread, disks.unmount_below, self.folder / "state")
        disks.unmount_below(self.folder / "state")
        held.clear(self.display.say, within_s=2.0)
        for name in ("state", "logs"):
            (self.folder / name).mkdir()
        # A file of its own, so that no worker reads config/local.toml.
        (self.folder / "worker.toml").write_text("# The workers of semel chaos are set by their environment.\n")
        return held.kafka

    async def _start_brokers(self, data: Path) -> tuple[KafkaBroker, Cluster]:
        brokers = self.asked.brokers
        await asyncio.to_thread(install, jars.NEWEST, self.display.say)
        self.display.say(f"starting Kafka, {brokers} broker{'s' if brokers > 1 else ''}")
        cluster = await self._started.enter_async_context(
            Cluster(data, brokers=brokers, version=jars.NEWEST, progress=self.display.say)
        )
        broker = KafkaBroker(cluster.bootstrap, client_id="semel-chaos", rpc_timeout_ms=4000)
        self._started.push_async_callback(broker.close)
        await broker.start()
        await broker.create_topics([TopicSpec(self.observed.topic, self.partitions, min(3, brokers), PLAIN)])
        return broker, cluster

    def _fleet(self, broker: KafkaBroker, cluster: Cluster, archive: Archive) -> Fleet:
        asked, topic = self.asked, self.observed.topic
        nursery = Nursery(self.folder / "logs" / "nursery.log")
        self._started.push_async_callback(asyncio.to_thread, nursery.close)
        nursery.start()
        names = [f"w{n}" for n in range(1, asked.workers + 1)] + [f"guest{n}" for n in range(1, GUESTS + 1)]
        processes = [
            ChaosWorker(
                nursery,
                asked.target,
                name,
                port=port,
                bootstrap=cluster.workers_bootstrap,
                folder=self.folder.absolute(),
                settings={**SETTINGS, **cluster.workers_settings},
            )
            for name, port in zip(names, ports.choose(len(names)), strict=True)
        ]
        guests = dict(enumerate(processes[asked.workers :], 1))
        stream = deliveries(asked.source, asked.seed, now_ms)
        return Fleet(
            plan=asked.subject.plan,
            broker=broker,
            cluster=cluster,
            workers=processes[: asked.workers],
            guest=guests.__getitem__,
            observed=self.observed,
            load=Load(broker, topic, self.partitions, stream, rate=self._rate(), seed=asked.seed),
            compaction=Compaction(
                broker, cluster, archive, lambda: self.observed.partitions, lambda: self.observed.watch.positions
            ),
            timeline=self.report.timeline,
            now=self.now,
            say=self.display.say,
            findings=self.report.findings,
        )

    async def _start_workers(self, on: Fleet, mount: disks.Mount | None) -> None:
        self._began = time.monotonic()
        for worker in on.workers:
            if mount is not None and not await asyncio.to_thread(mount, worker.state_dir):
                raise SemelError(f"a file system for {worker.state_dir} could not be mounted, though one could before")
            on.start(worker)
        self.display.say(f"{len(on.workers)} workers, {self.partitions} partitions; {self.asked.goal} of chaos")

    def _rate(self) -> float:
        """Recorded events are spread over the run, so that they do not end before it."""
        limit = self.asked.source.limit
        if limit is None:
            return self.asked.rate
        seconds = self.asked.minutes * 60 if self.asked.count is None else self.asked.count * 3.0
        return max(1.0, min(self.asked.rate, limit * 1.2 / seconds))

    async def _until(self, on: Fleet, holds: Callable[[], bool], otherwise: str, *, unhurt: bool = False) -> None:
        """`unhurt`: while no worker may end, as nothing goes wrong yet."""
        deadline = time.monotonic() + READY_S
        while not holds():
            self._refuse_failed()
            if time.monotonic() > deadline:
                ends = "".join(f"\n{w.log_end()}" for w in on.everyone)
                raise SemelError(f"{otherwise} within {READY_S:g} s: {'; '.join(self.observed.trouble())}{ends}")
            if unhurt and (ended := [w for w in on.everyone if w.exit_code]):
                raise SemelError(
                    f"a worker ended with exit code {ended[0].exit_code} before anything went wrong\n"
                    + "\n".join(w.log_end() for w in ended)
                )
            await asyncio.sleep(0.05)

    # -- the storm

    async def _storm(self, on: Fleet, kinds: list[str], loading: asyncio.Task[None]) -> None:
        """Faults until there were as many as asked for, or the time is over; then until all are recovered from."""
        self.report.seconds = self.now()
        shape = Shape(self.asked.workers, self.asked.brokers, SESSION_S, growing(self.asked.subject.plan))
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
            running.add(self._beside(inflict(on, fault)))
        await fewer_than(1)

    async def _settle(self, on: Fleet, loading: asyncio.Task[None]) -> None:
        """The load stops, and everything that it sent comes to its end."""
        on.load.stop()
        await asyncio.wait({loading}, timeout=30)
        heal(on)
        if not await on.load.finish(30):
            self.report.findings.append("the load's last records could not be written for 30 s with no fault in force")
        asked = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not (self.observed.whole_since(asked) and self.observed.behind(on.load.ends) == 0):
                    self._refuse_failed()
                    await asyncio.sleep(0.1)
                return
        self.report.findings.append(
            f"recovery ends: {DRAIN_S:g} s after the last fault {self.observed.behind(on.load.ends):,} records are not "
            f"processed: {'; '.join(self.observed.trouble()[:8])}"
        )

    # -- the end

    def _publish(self) -> None:
        self.display.close()
        document = self.report.document()
        if self.asked.report is not None:
            write(self.asked.report, self.report)
            document["report"] = str(self.asked.report)
            self.display.say(f"report: {self.asked.report}")
        if self.asked.as_json:
            from semel.display import printing

            printing.document(document)
        else:
            print(summary(self.report), flush=True)  # noqa: T201

    # -- what runs beside

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

    async def close(self) -> None:
        """Stop everything this run started; its logs and the brokers' data stay. Never raises for what is shown."""
        with suppress(OSError, ValueError):
            self.display.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._started.aclose()


def now_ms() -> int:
    return int(time.time() * 1000)
