"""A run from the first to the last step. What is started here is stopped here, however the run ends."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from demos.up.audit import Found, Letter, Verdict, judge
from demos.up.feed import YEAR_EVENTS, Feed, parts
from demos.up.report import Report
from demos.up.show import Display, Shown, WorkerShown, display, summary
from feeds import collect
from feeds.publish import create_topic, publish
from feeds.record import Record
from semel.errors import SemelError
from semel.local import jars, ports
from semel.local.forkserver import ForkServer
from semel.local.install import install
from semel.local.kafka import LocalKafka
from semel.local.run_directory import RunFolder
from semel.local.views import Views
from semel.local.watch import Watch, WorkerState
from semel.local.worker_process import WorkerProcess, end_all
from semel.pipeline import Pipeline

T = TypeVar("T")

TARGET = "pipelines.flights"
NAMES = ("up-1", "up-2")
# Two for each worker, so that a kill stops a part of the work and not all of it.
PARTITIONS = 4
# Where a browser looks first; another free one where somebody else listens there.
WEB_PORTS = (6066, 6067)

POLL_S = 0.25
RATE_OVER_S = 3.0
# Longer than everything that may stand still by itself: a session, a transaction and a restart.
STALLED_S = 60.0
DEAD_FOR_S = 1.0
GRACE_S = 5.0

OK, FINDING, INTERRUPTED = 0, 1, 130


class UpError(SemelError):
    """The run cannot go on; the message says why, and ends with what the workers logged last where that tells more."""


def run(pipeline: Pipeline, *, events: int | None, seed: int | None, as_json: bool) -> int:
    """Do the whole run in the current directory and print its report; returns the exit code.

    With `events` it ends by itself; else all of the year is run, and the workers stay until Ctrl-C. What goes wrong is
    raised, a SemelError where it can be said in a sentence; with `as_json` it is in the document.
    """
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    return asyncio.run(_main(Up(pipeline, events, seed, display(moving=sys.stderr.isatty() and not as_json)), as_json))


async def _main(up: Up, as_json: bool) -> int:
    work = asyncio.ensure_future(_work(up, as_json))
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        up.interrupted()
        work.cancel()

    # Once: what follows a Ctrl-C is the stopping, and that ends by itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        return await work
    except asyncio.CancelledError:
        return INTERRUPTED
    finally:
        await up.close()


async def _work(up: Up, as_json: bool) -> int:
    try:
        await up.go()
    except Exception as error:
        if not as_json:
            raise
        up.report.error = str(error) or type(error).__name__
        up.display.say(f"semel: {error}" if isinstance(error, SemelError) else traceback.format_exc())
    found = up.report.document()
    up.display.close()
    if as_json:
        from semel.display import printing

        printing.document(found)
    else:
        print(summary(found), flush=True)  # noqa: T201
    code = OK if up.report.ok else FINDING
    if up.stays:
        up.display.say(f"the workers stay: {up.url}/pipelines, {up.url}/tables. Ctrl-C ends them")
        with contextlib.suppress(asyncio.CancelledError):
            await up.watch_on()
    return code


class Up:
    """One run: broker, feed, workers, and what is known of them."""

    def __init__(self, pipeline: Pipeline, events: int | None, seed: int, shown: Display) -> None:
        self.pipeline = pipeline
        self.display = shown
        self.report = Report(seed)
        self.feed = Feed(events or YEAR_EVENTS, seed)
        self.folder = Path(".semel/up")
        self._stay = events is None
        self._held = RunFolder(self.folder, "semel up")
        self._kafka: LocalKafka | None = None
        self._views: Views | None = None
        self._workers: dict[str, WorkerProcess] = {}
        self._forkserver: ForkServer | None = None
        self._watch = Watch(pipeline.source.name, PARTITIONS)
        self._recent: deque[tuple[float, int]] = deque()
        self._began: float | None = None
        self._ended: float | None = None
        self._published = 0
        self._moved = (-1, 0.0)
        self._news = asyncio.Event()
        self._down: str | None = None
        self._killed: str | None = None
        self._killed_at = 0.0
        self._killed_tasks: set[int] = set()
        self._told = ""
        self._step = "before anything was processed"
        self._interrupted = False

    @property
    def url(self) -> str:
        return self._watch.workers[NAMES[0]].url

    @property
    def stays(self) -> bool:
        """The workers are left running after the audit."""
        return self._stay and self.report.lost is not None

    # -- the steps

    async def go(self) -> None:
        """Everything up to the audit; `report` says how it went."""
        self.display.say(
            f"seed {self.report.seed}: with --seed {self.report.seed} the same records are published again"
        )
        self._held.take()
        await asyncio.to_thread(self._make_ready)
        await self._start()
        watching = asyncio.ensure_future(self._watching())
        try:
            await self._beside(watching, self._ready())
            await self._beside(watching, self._stream())
            verdict = await self._beside(watching, self._audited())
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        self._conclude(verdict)

    def _make_ready(self) -> None:
        """A broker with nothing in it and no state: the audit is of this run alone."""
        self._held.clear(self.display.say, within_s=GRACE_S)
        (self.folder / "logs").mkdir()
        install(jars.NEWEST, self.display.say)
        self._kafka = LocalKafka(self._held.kafka, heap_mb=512, full_jit=True, progress=self.display.say)

    async def _start(self) -> None:
        kafka = self._kafka
        assert kafka is not None
        self._forkserver = ForkServer(self.folder / "logs" / "forkserver.log")
        self._forkserver.start()
        self.display.say("starting Kafka, reading a year of flights")
        try:
            await asyncio.gather(asyncio.to_thread(kafka.start), asyncio.to_thread(self.feed.open))
        except FileNotFoundError as missing:
            raise UpError(str(missing)) from missing
        self.display.say(f"Kafka {kafka.version} on {kafka.bootstrap}")
        await create_topic(kafka.bootstrap, self.pipeline.source.name, PARTITIONS)
        config = self.folder / "worker.toml"
        # A file of its own, not config/local.toml: `semel worker pipelines.flights --config` takes it for a third one.
        config.write_text(f'broker = "kafka://{kafka.bootstrap}"\nstate_dir = "{self.folder / "state"}"\n')
        self._views = Views()
        for name, wanted in zip(NAMES, WEB_PORTS, strict=True):
            port = wanted if ports.is_free(wanted) else ports.choose(1)[0]
            self._workers[name] = WorkerProcess(
                self._forkserver,
                TARGET,
                name,
                log_file=self.folder / "logs" / f"{name}.log",
                environment={},
                arguments=("--web-port", str(port), "--config", str(config)),
            )
            self._watch.workers[name] = WorkerState(name, f"http://127.0.0.1:{port}")
            self._launch(self._workers[name])
        self.display.say(f"two workers; web page: {self.url}/pipelines")

    def _launch(self, worker: WorkerProcess) -> None:
        # As a user starts it: with imports of its own.
        worker.start(fresh=True)
        state = self._watch.workers[worker.name]
        state.pid, state.phase = worker.pid, "starting"

    async def _ready(self) -> None:
        watch = self._watch
        await self._until(lambda: watch.whole and all(w.tasks for w in watch.workers.values()))

    async def _stream(self) -> None:
        """Publish in three parts: before the kill, up to it, and while the worker is dead; then wait for all of it."""
        self._step = "before the audit"
        self._began = time.monotonic()
        first, until_kill = parts(self.feed.limit)
        await self._publish(self.feed.until(first))
        await self._until(lambda: self._watch.processed > 0)
        await self._publish(self.feed.until(until_kill), self._kill)
        again = asyncio.ensure_future(self._start_again())
        try:
            await self._publish(self.feed.until(self.feed.limit))
            await again
        finally:
            again.cancel()
        await self._until(
            lambda: self._watch.processed == self._published and self._watch.whole and self._killed is None
        )
        self._ended = time.monotonic()

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Looks again after each answer of the workers."""
        while not holds():
            await self._news.wait()

    async def _publish(self, records: Iterator[Record], then: Callable[[], None] | None = None) -> None:
        assert self._kafka is not None
        before = self._published

        def progress(count: int) -> None:
            self._published = before + count
            if then is not None:
                then()

        await publish(
            self._kafka.bootstrap, self.pipeline.source.name, records, partitions=PARTITIONS, progress=progress
        )

    def _kill(self) -> None:
        """SIGKILL to the worker that has the most before it, the moment that fresh records reached the broker."""
        if self.report.kills:
            return
        watch = self._watch
        victim = max(
            watch.workers.values(),
            key=lambda w: (w.document["lag"] or 0, w.document["counts"].get("in", 0)) if w.document else (-1, 0),
        )
        self._down = victim.name
        self._workers[victim.name].send(signal.SIGKILL)
        self.report.kills += 1
        self._killed, self._killed_at, self._killed_tasks = victim.name, time.monotonic(), set(victim.tasks)
        self._told = f"{victim.name} killed"
        self.display.say(
            f"kill: SIGKILL to {victim.name} (pid {victim.pid}, partitions {_listed(self._killed_tasks)}) with "
            f"{self._published:,} records published and {watch.processed:,} known as processed"
        )
        watch.gone(victim.name)

    async def _start_again(self) -> None:
        assert self._killed is not None
        worker = self._workers[self._killed]
        while await worker.ended(5.0) is None:
            continue
        await asyncio.sleep(max(0.0, self._killed_at + DEAD_FOR_S - time.monotonic()))
        self._launch(worker)
        self._down = None
        self.display.say(f"{worker.name} starts again (pid {worker.pid})")

    async def _audited(self) -> Verdict:
        assert self._kafka is not None and self._views is not None
        counts = self._watch.counts()
        self._step = "during the audit, so nothing is said of the result"
        self.display.say("everything is processed; audit: reading all rows, outputs and dead letters")
        expected = self.feed.expected()
        tables: dict[str, list[tuple[str, Any]]] = {}
        for table in self.pipeline.tables:
            rows = tables[table.name] = []
            async for more in self._views.pages(self.url, table.name):
                rows += more
                self._told = f"audit: {len(rows):,} rows of {table.name}"
        self._told = "audit: outputs and dead letters"
        letters: list[Letter] = []
        async for record in _committed(self._kafka.bootstrap, self.pipeline.plan().dead_letter_topic):
            letters.append((record.key or b"", record.value or b""))
        sink = self.pipeline.sink
        assert sink is not None
        outputs = await collect.outputs(self._kafka.bootstrap, sink.name)
        return judge(expected, Found(counts, tables, outputs, letters))

    def _conclude(self, verdict: Verdict) -> None:
        report = self.report
        self._step = "after the audit"
        report.accepted, report.duplicates, report.conflicts = verdict.accepted, verdict.duplicates, verdict.conflicts
        report.dead_lettered = verdict.dead_lettered
        report.lost, report.doubled, report.wrong_rows = verdict.lost, verdict.doubled, verdict.wrong_rows
        report.findings = verdict.findings
        report.ok = verdict.ok and report.kills > 0
        self._told = "audit ok" if report.ok else f"audit: {len(verdict.findings):,} findings"

    # -- watching

    async def _beside(self, watching: asyncio.Future[None], work: Awaitable[T]) -> T:
        """`work`, unless the watch finds before its end that it cannot succeed."""
        doing = asyncio.ensure_future(work)
        try:
            await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                watching.result()
            return await doing
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)
            self.report.events, self.report.redelivered = self.feed.events, self.feed.redelivered
            if self._began is not None and self._ended is not None:
                self.report.seconds = self._ended - self._began

    async def watch_on(self) -> None:
        """Keep the display alive until cancelled; UpError where a worker ends."""
        await self._watching(forever=True)

    async def _watching(self, *, forever: bool = False) -> None:
        self._moved = (-1, time.monotonic())
        while True:
            await asyncio.gather(*(self._ask(name) for name in self._workers))
            self._see_recovery()
            now = time.monotonic()
            self._recent.append((now, self._watch.processed))
            while now - self._recent[0][0] > RATE_OVER_S:
                self._recent.popleft()
            if not self._interrupted:
                self.display.show(self._shown(now))
            self._refuse_dead()
            news, self._news = self._news, asyncio.Event()
            news.set()
            if not forever:
                self._refuse_standstill(now)
            await asyncio.sleep(POLL_S)

    async def _ask(self, name: str) -> None:
        worker = self._workers[name]
        assert self._views is not None
        if not worker.running:
            return
        pid = worker.pid
        document = await self._views.pipeline(self._watch.workers[name].url)
        # An answer that was on its way when its worker was killed says what no longer holds.
        if (
            document is not None
            and worker.pid == pid
            and worker.running
            and self._watch.workers[name].phase != "killed"
        ):
            self._watch.hear(name, document)

    def _see_recovery(self) -> None:
        if self._killed is None or not self._workers[self._killed].running:
            return
        if self._killed_tasks <= self._watch.running() and self._watch.workers[self._killed].tasks:
            took = time.monotonic() - self._killed_at
            self._told = f"{self._killed} back after {took:.1f} s"
            self.display.say(
                f"recovery: {self._killed} is back, partitions {_listed(self._killed_tasks)} run again {took:.1f} s "
                f"after the kill, {DEAD_FOR_S:g} s of which it was left dead"
            )
            self._killed = None

    def _refuse_dead(self) -> None:
        for worker in self._workers.values():
            if not worker.running and worker.name != self._down:
                raise UpError(f"{worker.name} ended by itself; {worker.log_end()}")

    def _refuse_standstill(self, now: float) -> None:
        """Reading the audit's rows moves nothing and has time limits of its own."""
        progress = hash((self._watch.processed, self._published, len(self._watch.running())))
        if progress != self._moved[0] or self._ended is not None:
            self._moved = (progress, now)
        elif now - self._moved[1] > STALLED_S:
            raise UpError(
                f"nothing has moved for {STALLED_S:g} s, with {self._watch.processed:,} records processed of "
                f"{self._published:,} published:\n"
                + "\n".join(f"  {line}" for line in self._watch.trouble())
                + "".join(f"\n{worker.log_end()}" for worker in self._workers.values())
            )

    def _shown(self, now: float) -> Shown:
        (since, before), (_, after) = self._recent[0], self._recent[-1]
        medians = [
            ms
            for w in self._watch.workers.values()
            if w.document and (ms := w.document["commits"]["p50_ms"]) is not None
        ]
        return Shown(
            seconds=0.0 if self._began is None else (self._ended or now) - self._began,
            limit=self.feed.limit,
            events=self.feed.events,
            published=self._published,
            processed=self._watch.processed,
            rate=(after - before) / (now - since) if now - since > POLL_S / 2 else 0.0,
            counts=self._watch.shown(),
            commits=self._watch.commits,
            commit_ms=max(medians, default=None),
            url=self.url,
            workers=tuple(
                WorkerShown(w.name, w.phase, w.pid, w.tasks, w.document["events_per_s"] if w.document else 0.0)
                for w in self._watch.workers.values()
            ),
            told=self._told,
        )

    # -- the end

    def interrupted(self) -> None:
        """Somebody wants it to end: answered at once, since stopping takes seconds. The second time nothing is said."""
        if self._interrupted:
            return
        self._interrupted = True
        self._say_last(f"interrupted {self._step}; stopping")

    async def close(self) -> None:
        """Stop everything this run started; its logs stay. Never raises for what is shown."""
        with contextlib.suppress(OSError, ValueError):
            self.display.close()
        if self._views is not None:
            await self._views.close()
        workers = list(self._workers.values())
        stopped = [worker.name for worker in workers if worker.running]
        await asyncio.to_thread(end_all, workers, GRACE_S)
        if self._forkserver is not None:
            await asyncio.to_thread(self._forkserver.close)
        if self._kafka is not None:
            await asyncio.to_thread(self._kafka.stop, GRACE_S)
            stopped += ["Kafka"] if self._kafka.nodes else []
        self._held.release()
        if self._interrupted:
            self._say_last(_last_word(stopped, self.folder))

    def _say_last(self, sentence: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.display.close()
            self.display.say(sentence)


def _committed(broker: str, topic: str) -> AsyncIterator[Any]:
    return collect.committed(broker, topic)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _last_word(stopped: list[str], folder: Path) -> str:
    if not stopped:
        return "nothing was running yet"
    data = folder / "kafka"
    return (
        f"stopped {', '.join(stopped)}. {folder} keeps topics (kafka), state and logs until the next `semel up`, which "
        f"begins anew; to look at the topics: semel kafka start --data {data}"
    )


def _listed(partitions: set[int]) -> str:
    return ", ".join(map(str, sorted(partitions))) or "none"
