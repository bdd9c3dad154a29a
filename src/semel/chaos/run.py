"""A run, phase after phase: prepare, start, storm, settle, judge. What is started here is stopped here, however it ends.

Each phase takes what the one before it gives, and changes nothing of that: the fleet alone is what a run changes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from semel.chaos import disks, letters
from semel.chaos.cluster import Cluster
from semel.chaos.compaction import PLAIN, Archive, Compaction
from semel.chaos.conflicts import Altering
from semel.chaos.events import Input, deliveries
from semel.chaos.fault import Shape
from semel.chaos.faults import heal, inflict
from semel.chaos.faults.brokers import growing
from semel.chaos.fleet import Fleet
from semel.chaos.load import Load
from semel.chaos.monitor import watch
from semel.chaos.observed import Observed
from semel.chaos.page import page
from semel.chaos.plan import possible, schedule
from semel.chaos.report import Report, summary
from semel.chaos.show import Display, display
from semel.chaos.subject import Subject
from semel.chaos.verdict import judge
from semel.chaos.workers import ChaosWorker, Site
from semel.errors import SemelError
from semel.kafka import KafkaBroker
from semel.local import jars, ports
from semel.local.forkserver import ForkServer
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
# What is replayed may have been taken by a worker before it heard that its dependency is up.
REPLAYS = 3
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
    partitions: int
    rate: float
    seed: int
    report: Path | None
    as_json: bool


class Prepared(NamedTuple):
    """Where the run's Kafka lies, and what can happen on this machine."""

    kafka: Path
    kinds: tuple[str, ...]
    left_out: Mapping[str, str]
    shape: Shape


def run(asked: Asked) -> Report | None:
    """Do the whole run in the current directory and print its report; None where Ctrl-C or SIGTERM ended it before that.

    What goes wrong before there is anything to report is raised, a SemelError where it can be said in a sentence.
    """
    return asyncio.run(_main(asked))


async def _main(asked: Asked) -> Report | None:
    """Logs and the brokers' data stay when all else is stopped."""
    screen = display(moving=sys.stderr.isatty() and not asked.as_json)
    async with AsyncExitStack() as opened:
        work = asyncio.ensure_future(_phases(asked, screen, opened))
        # Once: what follows a Ctrl-C is the stopping, and that ends by itself.
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, lambda: work.cancelling() or work.cancel())
        try:
            return await work
        except asyncio.CancelledError:
            return None
        except ExceptionGroup as failed:
            if work.cancelling():
                return None
            raise failed.exceptions[0] from failed
        finally:
            with suppress(OSError, ValueError):
                screen.close()


async def _phases(asked: Asked, screen: Display, opened: AsyncExitStack) -> Report:
    """What runs beside them does not fail unseen: it ends the run."""
    screen.say(f"seed {asked.seed}: --seed {asked.seed} gives the same faults and the same events again")
    prepared = await _prepare(asked, screen.say, opened)
    fleet = await _fleet(asked, prepared, screen.say, opened)
    async with asyncio.TaskGroup() as beside:
        watching = beside.create_task(watch(fleet, screen, beside.create_task))
        loading = await _start(fleet, beside)
        await _storm(asked, prepared, fleet, loading, beside)
        await _settle(fleet, loading)
        watching.cancel()
        before = Report(
            asked.subject.plan.app, asked.seed, asked.workers, asked.brokers, asked.partitions, fleet.timeline,
            kinds=prepared.kinds, notes=asked.source.notes, left_out=prepared.left_out,
        )  # fmt: skip
        report = await judge(before, fleet, asked.subject.dedup)
    screen.close()
    _publish(asked, report, screen.say)
    return report


# -- the phases


async def _prepare(asked: Asked, say: Callable[[str], None], opened: AsyncExitStack) -> Prepared:
    """The folder is this run's alone, and empty. FolderTaken."""
    held = RunFolder(FOLDER, "semel chaos")
    held.take()
    opened.callback(held.release)
    opened.push_async_callback(asyncio.to_thread, disks.unmount_below, FOLDER / "state")
    disks.unmount_below(FOLDER / "state")
    held.clear(say, within_s=2.0)
    for name in ("state", "logs"):
        (FOLDER / name).mkdir()
    # A file of its own, so that no worker reads config/local.toml.
    (FOLDER / "worker.toml").write_text("# The workers of semel chaos are set by their environment.\n")
    stalls = "disk-slow" in asked.kinds and await asyncio.to_thread(disks.may_mount, FOLDER, stalls=True)
    mounts = stalls or ("disk-full" in asked.kinds and await asyncio.to_thread(disks.may_mount, FOLDER, stalls=False))
    grows = growing(asked.subject.plan)
    shape = Shape(asked.workers, asked.brokers, SESSION_S, grows, mounts, stalls)
    kinds, left_out = possible(asked.kinds, shape)
    for sentence in (*asked.source.notes, *(f"no {kind}: {why}" for kind, why in left_out.items())):
        say(sentence)
    if not kinds:
        raise SemelError("none of the faults that were asked for can happen here")
    return Prepared(held.kafka, kinds, left_out, shape)


async def _fleet(asked: Asked, prepared: Prepared, say: Callable[[str], None], opened: AsyncExitStack) -> Fleet:
    """Brokers and workers that were started."""
    await asyncio.to_thread(install, jars.NEWEST, say)
    say(f"starting Kafka, {asked.brokers} broker{'s' if asked.brokers > 1 else ''}")
    cluster = await opened.enter_async_context(
        Cluster(prepared.kafka, brokers=asked.brokers, version=jars.NEWEST, progress=say)
    )
    broker = KafkaBroker(cluster.bootstrap, client_id="semel-chaos", rpc_timeout_ms=4000)
    opened.push_async_callback(broker.close)
    await broker.start()
    plan, topic = asked.subject.plan, asked.subject.source.name
    await broker.create_topics([TopicSpec(topic, asked.partitions, min(3, asked.brokers), PLAIN)])
    archive = opened.enter_context(closing(Archive(FOLDER / "input.sqlite", topic)))
    views = Views()
    opened.push_async_callback(views.close)
    forkserver = ForkServer(FOLDER / "logs" / "forkserver.log")
    opened.push_async_callback(asyncio.to_thread, forkserver.close)
    forkserver.start()
    # The workers, then those that may join as guests.
    names = [f"w{n}" for n in range(1, asked.workers + 1)] + [f"guest{n}" for n in range(1, GUESTS + 1)]
    settings = {**SETTINGS, **cluster.workers_settings}
    site = Site(forkserver, asked.target, cluster.workers_bootstrap, FOLDER, settings)
    processes = [ChaosWorker(site, name, port) for name, port in zip(names, ports.choose(len(names)), strict=True)]
    observed = Observed(topic, asked.partitions)
    stream, rate = deliveries(asked.source, asked.seed, now_ms, Altering(asked.subject)), asked.rate
    seconds = asked.minutes * 60 if asked.count is None else asked.count * 3.0
    if asked.source.limit is not None:
        # Recorded events are spread over the run, so that they do not end before it.
        rate = max(1.0, min(rate, asked.source.limit * 1.2 / seconds))
    goal = f"{seconds:g} s" if asked.count is None else f"{asked.count} faults"
    on = Fleet(
        plan, broker, cluster, processes[: asked.workers], processes[asked.workers :], observed,
        Load(broker, topic, asked.partitions, stream, rate=rate, seed=asked.seed),
        Compaction(broker, cluster, archive, observed), views, say, goal,
    )  # fmt: skip
    shape = prepared.shape
    for worker in on.workers:
        if shape.mounts and not await asyncio.to_thread(disks.mount, worker.state_dir, stalls=shape.stalls):
            raise SemelError(f"a file system for {worker.state_dir} could not be mounted, though one could before")
        on.start(worker)
    on.say(f"{len(on.workers)} workers, {asked.partitions} partitions; {goal} of chaos")
    return on


async def _start(on: Fleet, beside: asyncio.TaskGroup) -> asyncio.Task[None]:
    """Until every partition runs and events are processed: the load. SemelError where that does not come."""
    await _until(on, lambda: on.observed.whole_since(0), "the workers did not come to run", unhurt=True)
    on.stage = "chaos"
    loading = beside.create_task(on.load.run())
    await _until(on, lambda: on.behind < on.load.published, "nothing was processed")
    return loading


async def _until(on: Fleet, holds: Callable[[], bool], otherwise: str, *, unhurt: bool = False) -> None:
    """`unhurt`: while no worker may end, as nothing goes wrong yet."""
    deadline = time.monotonic() + READY_S
    while not holds():
        if time.monotonic() > deadline:
            ends = "".join(f"\n{w.log_end()}" for w in on.everyone)
            raise SemelError(f"{otherwise} within {READY_S:g} s: {'; '.join(on.observed.trouble())}{ends}")
        if unhurt and (ended := [w for w in on.everyone if w.exit_code]):
            raise SemelError(
                f"a worker ended with exit code {ended[0].exit_code} before anything went wrong\n"
                + "\n".join(w.log_end() for w in ended)
            )
        await asyncio.sleep(0.05)


async def _storm(
    asked: Asked, prepared: Prepared, on: Fleet, loading: asyncio.Task[None], beside: asyncio.TaskGroup
) -> None:
    """Faults until there were as many as asked for, or the time is over; then until all are recovered from."""
    count, until = 0, time.monotonic() + (asked.minutes * 60 if asked.count is None else asked.count * FAULT_S)
    running: set[asyncio.Task[None]] = set()

    def over() -> bool:
        return count == asked.count or time.monotonic() > until or loading.done()

    async def fewer_than(most: int) -> None:
        """So many run; or, where most may go on, it is over."""
        while len(running) >= most and not (over() and most > 1):
            done, _ = await asyncio.wait(running, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                running.discard(task)
                await task

    for fault in schedule(asked.seed, prepared.kinds, prepared.shape):
        await fewer_than(AT_ONCE if fault.overlap else 1)
        await asyncio.sleep(fault.gap_s)
        if over():
            break
        count += 1
        running.add(beside.create_task(inflict(on, fault)))
    await fewer_than(1)


async def _settle(on: Fleet, loading: asyncio.Task[None]) -> None:
    """The load stops, and everything that it sent comes to its end; a finding where it does not."""
    on.stage = "draining"
    on.load.stop()
    await asyncio.wait({loading}, timeout=30)
    heal(on)
    if not await on.load.finish(30):
        on.report("the load's last records could not be written for 30 s with no fault in force")
    await _drained(on)
    await _replayed(on)
    loading.cancel()
    on.say("the load is done and every fault healed; rows against changelogs, then the proof")


async def _drained(on: Fleet) -> bool:
    asked = time.monotonic()
    while not (on.observed.whole_since(asked) and on.behind == 0):
        await asyncio.sleep(0.1)
        if time.monotonic() > asked + DRAIN_S:
            on.report(
                f"recovery ends: {DRAIN_S:g} s after the last fault {on.behind:,} records are not "
                f"processed: {'; '.join(on.observed.trouble()[:8])}"
            )
            return False
    return True


async def _replayed(on: Fleet) -> None:
    """What was given up since its dependency was down takes effect: nothing is down any more."""
    for _ in range(REPLAYS):
        replayed = await letters.replay(on, within_s=DRAIN_S)
        if replayed == 0 or not await _drained(on):
            return
        if replayed is None:
            on.report(f"dead letters could not be replayed within {DRAIN_S:g} s with no fault in force")
            return
    on.report("events whose dependency is up again are given up as often as they are replayed")


def _publish(asked: Asked, report: Report, say: Callable[[str], None]) -> None:
    document = report.document()
    if asked.report is not None:
        asked.report.write_text(page(report), encoding="utf-8")
        document["report"] = str(asked.report)
        say(f"report: {asked.report}")
    if asked.as_json:
        from semel.display import printing

        printing.document(document)
    else:
        print(summary(report), flush=True)  # noqa: T201


def now_ms() -> int:
    return int(time.time() * 1000)
