"""PipelineTester: a pipeline tested without Kafka, in milliseconds, on the engine that runs it in production.

The real stages, commit protocol and RocksDB; only the broker is in memory, and time is virtual: it stands still between
two calls of the test, and waiting takes none.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from semel.display.counting import counted
from semel.errors import described
from semel.pipeline import Pipeline
from semel.state.task import Task
from semel.testing.clock import DEFAULT_START, VirtualLoop
from semel.testing.consumer import ResultsConsumer
from semel.testing.crash import Crash
from semel.testing.deployment import Deployment
from semel.testing.errors import NotSettled, PipelineTesterError, unknown
from semel.testing.producer import Headers, SourceProducer, required_field, utc
from semel.testing.results import Counts, DeadLetter, TopicRecord, counts_of
from semel.testing.tables import TableViews
from semel.topic import Topic

T = TypeVar("T")

# Real time in which a handler's socket may answer before virtual time moves on.
SOCKET_PATIENCE_S = 0.05
_SHOWN = 5


class PipelineTester:
    """Runs one pipeline for one test; a context manager, or `close()` it.

        with PipelineTester(pipeline) as tester:
            tester.send(Payment("p1", "anna", 10), key="anna")
            assert [o.value for o in tester.outputs()] == [Settlement("p1", "anna", 10)]
            assert tester.tables["balances"]["anna"] == 10

    `partitions`: of the source topic. `workers`: how many share them. `seed`: of all chance, as the jitter of retries; the
    same seed is the same run. `start`: what the clock shows first, 2025-10-09T08:53:20Z unless given.

    Every call returns when all that it set off is committed. None may be made from a running event loop.
    PipelineTesterError for what cannot be; NotSettled (one of them) for records that never get done; and the SemelError
    that a worker stops with, where it does.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        partitions: int = 4,
        workers: int = 1,
        seed: int = 0,
        start: datetime | None = None,
    ) -> None:
        if not isinstance(pipeline, Pipeline):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PipelineTesterError(_no_pipeline(pipeline))
        if partitions < 1 or workers < 1:
            raise PipelineTesterError(f"partitions={partitions}, workers={workers}; both take one or more")
        self.pipeline = pipeline
        self.seed = seed
        self._workers = workers
        self._closed = False
        self._folder = tempfile.TemporaryDirectory(prefix="semel-", dir=_fastest_folder(), ignore_cleanup_errors=True)
        self._loop = VirtualLoop(socket_patience_s=SOCKET_PATIENCE_S)
        self._deployment = Deployment(
            pipeline,
            self._loop,
            Path(self._folder.name),
            partitions=partitions,
            seed=seed,
            start_s=DEFAULT_START if start is None else utc(start).timestamp(),
        )
        cluster = self._deployment.cluster
        self._source = SourceProducer(cluster, pipeline.source, partitions)
        self._results = ResultsConsumer(cluster, pipeline.source, self._deployment.plans)
        self._deployment.on_committed.append(self._results.read)
        self._warnings = _LatestWarnings()
        self._tables = TableViews(pipeline.plan().tables, self._tasks)

    def __enter__(self) -> PipelineTester:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if exc is not None and not isinstance(exc, NotSettled):
            exc.add_note(self.report())
        self.close(failed=exc is not None)

    def __repr__(self) -> str:
        return f"PipelineTester({self.pipeline.name!r}, seed={self.seed})"

    def close(self, *, failed: bool = False) -> None:
        """Stop the workers and remove their state. May be called again.

        PipelineTesterError where a `crash(at=...)` never happened, unless the test has `failed` anyway: it tested nothing.
        """
        if self._closed:
            return
        try:
            self._run(self._deployment.close)
            self._loop.run_until_complete(self._end_loop())
        finally:
            self._closed = True
            self._loop.close()
            self._folder.cleanup()
        waiting = [crash for crash in self._deployment.crashes if not crash.happened]
        if waiting and not failed:
            crashes = ", ".join(f"crash(at={crash.at!r}, nth={crash.nth})" for crash in waiting)
            raise PipelineTesterError(f"{crashes} never happened: no worker came past it, so nothing was tested")

    async def _end_loop(self) -> None:
        mine = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not mine]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    # -- events

    def send(
        self,
        value: Any,
        *,
        key: Any = None,
        headers: Headers = (),
        timestamp: datetime | int | None = None,
        partition: int | None = None,
        settle: bool = True,
    ) -> TopicRecord:
        """Write an event to the source topic, and (`settle`) wait until all that is there is done and committed.

        `value`: of the source's type; bytes go as they are, whatever the type, and None is a null value. `key`: of the
        source's key type, or bytes; it decides the partition as Kafka's producers do, unless `partition` is given; events
        without a key take turns. `timestamp`: a datetime (UTC where it names no zone) or ms since 1970; now unless given.
        """
        self._ready()
        sent = self._source.send(value, key, headers, timestamp, partition)
        if settle:
            self.settle()
        return sent

    def send_all(
        self, values: Iterable[Any], *, key: str | Callable[[Any], Any] | None = None, settle: bool = True
    ) -> list[TopicRecord]:
        """Write many events before any is handled.

        `key`: the name of the field that is the key (an attribute, or an item of a dict), or a function of a value; events
        have no key unless it is given. PipelineTesterError where a value has no such field: then none is written.
        """
        read = required_field(key) if isinstance(key, str) else key
        keyed = [(value, None if read is None else read(value)) for value in values]
        self._ready()
        sent = [self._source.send(value, event_key, (), None, None) for value, event_key in keyed]
        if settle:
            self.settle()
        return sent

    def redeliver(self, *sent: TopicRecord, settle: bool = True) -> None:
        """Write records of `send` once more, as a producer does that retries: same bytes, headers, time, partition.

        All that were sent, in their order, where none is named.
        """
        self._ready()
        for record in sent or tuple(self._source.sent):
            self._source.redeliver(record)
        if settle:
            self.settle()

    def settle(self) -> None:
        """Wait until every record of the source is done and committed, its retries included. NotSettled."""
        self._ready(undone=False)

    # -- time

    @property
    def now(self) -> datetime:
        """What the workers' and the broker's clocks show, in UTC."""
        return datetime.fromtimestamp(self._deployment.clock.time(), UTC)

    def advance_time(self, by: timedelta) -> None:
        """Let time pass; what falls due meanwhile is done. What waits for a later time goes on waiting."""
        if not isinstance(by, timedelta) or by < timedelta(0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PipelineTesterError(f"advance_time({by!r}); give a timedelta, as timedelta(minutes=5)")
        self._ready()
        self._run(lambda: self._deployment.pass_time(by.total_seconds()))

    # -- results

    def outputs(self, topic: str | Topic | None = None) -> list[TopicRecord]:
        """The committed results so far, of all topics or of one, as a read-committed consumer gets them.

        In the order of their commits; within a commit each partition in its order, partitions woven by timestamp. `topic`:
        a Topic, or the name of the sink or of a topic that something was sent to (another name might be mistyped:
        UnknownName).
        """
        self._ready()
        records = self._results.outputs()
        if topic is None:
            return list(records)
        name = topic.name if isinstance(topic, Topic) else topic
        if name not in self._results.topics:
            self._check_unused(topic)
        return [record for record in records if record.topic == name]

    def _check_unused(self, topic: str | Topic) -> None:
        """Of a topic that no result went to: results might have."""
        if isinstance(topic, str):
            raise unknown(
                "topic that results go to", topic, self._results.topics,
                hint="; where nothing was sent to a topic yet, give the Topic itself, as outputs(alerts)",
            )  # fmt: skip
        if topic.name == self.pipeline.source.name or topic.name in self.pipeline.plan_names():
            raise PipelineTesterError(
                f"{topic.name!r} is no topic that results go to: pipeline {self.pipeline.name!r} reads it or keeps its "
                "own records there. Dead letters are in dead_letters(), rows in tables"
            )

    def new_outputs(self) -> list[TopicRecord]:
        """The results that came since this was last called."""
        self._ready()
        return self._results.take()

    def dead_letters(self) -> list[DeadLetter]:
        """The records that could not be done, with the reason, as they were in the source."""
        self._ready()
        return list(self._results.letters())

    @property
    def tables(self) -> TableViews:
        """The tables by name, as mappings of their committed rows."""
        return self._tables

    @property
    def counts(self) -> Counts:
        """What became of the records that are done."""
        return counts_of(task.committed.counts for task in self._tasks())

    @property
    def parked(self) -> int:
        """How many events are behind the position and not done: to be tried again, or behind such a one of the same key, or
        behind a dead letter that holds it."""
        return sum(task.committed.parked for task in self._tasks())

    # -- trouble

    @property
    def workers(self) -> tuple[str, ...]:
        """The names of the workers: w1, w2, ..."""
        self._ready()
        return tuple(self._deployment.workers)

    def crash(
        self, *, at: str | None = None, nth: int = 1, worker: str | None = None, lose_state: bool = False
    ) -> Crash:
        """Kill workers as SIGKILL does, and start them again.

        Without `at` all of them (or the one named), now. `at`: a failpoint, as "commit.after_produce"; the worker that
        passes it (the named one, or whichever) the `nth` time dies there, in this or a later call, and is started again
        at once. `lose_state`: without their RocksDB, which they restore from the changelogs.
        """
        self._ready()
        if worker is not None and worker not in self._deployment.workers:
            raise unknown("worker", worker, self._deployment.workers)
        crash = Crash(at, nth, worker, lose_state)
        if at is not None:
            self._deployment.crashes.append(crash)
            return crash
        self._run(lambda: self._crash(crash))
        return crash

    async def _crash(self, crash: Crash) -> None:
        self._deployment.kill(crash)
        await self._deployment.settle(undone=True)

    def die(self) -> NoReturn:
        """For what an agent calls, as the double of a service: its worker dies there as by SIGKILL, its code goes no further,
        and the worker is started again. PipelineTesterError where no agent is running."""
        self._deployment.die()

    def caller_is_dead(self) -> bool:
        """For what an agent calls: its worker was killed, and what this code does, no process does."""
        return self._deployment.caller_is_dead()

    def rebalance(self, workers: int | None = None) -> None:
        """Have so many workers: new ones join, or the last ones leave, and the partitions move. With as many as there are
        (also by default) the last one leaves and comes back.
        """
        count = len(self.workers) if workers is None else workers
        if count < 1:
            raise PipelineTesterError(f"rebalance(workers={workers}); it takes one or more")
        self._run(lambda: self._rebalance(count))

    async def _rebalance(self, workers: int) -> None:
        await self._deployment.scale(workers)
        await self._deployment.settle(undone=True)

    # -- for a test that failed

    def report(self) -> str:
        """What came of this test's events, in a few lines: for whoever reads why it failed."""
        letters = self._results.letters() if self._deployment.plans else []
        lines = [
            f"{self!r}: {counted(len(self._source.sent), 'event')} sent, {counted(self._results.output_count, 'result')}, "
            f"{counted(len(letters), 'dead letter')}"
        ]
        lines += [
            f"  dead letter {letter.topic}[{letter.partition}]@{letter.offset} ({letter.reason}, attempts: "
            f"{letter.attempts}): {letter.error:.300}"
            for letter in letters[-_SHOWN:]
        ]
        lines += [f"  log: {warning:.300}" for warning in self._warnings.latest]
        return "\n".join(lines)

    # -- inside

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._closed:
            raise PipelineTesterError(f"{self!r} is closed")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise PipelineTesterError(
                "a PipelineTester runs the pipeline in an event loop of its own, in virtual time, and cannot be used "
                "from a running one: write the test as `def`, without `async`, or put this part of it into a function "
                "and `await asyncio.to_thread(function)`"
            )
        log = logging.getLogger("semel")
        log.addHandler(self._warnings)
        try:
            return self._loop.run_until_complete(work())
        except NotSettled as exc:
            exc.add_note(self.report())
            raise
        finally:
            log.removeHandler(self._warnings)

    def _ready(self, *, undone: bool = True) -> None:
        """The workers run, and (not `undone`) all records are done."""
        deployment = self._deployment
        if self._closed or not deployment.is_running() or (not undone and not deployment.all_done()):
            self._run(lambda: self._until_running(undone))

    async def _until_running(self, undone: bool) -> None:
        if not self._deployment.workers:
            await self._deployment.begin(self._workers)
        await self._deployment.settle(undone=undone)

    def _tasks(self) -> list[Task]:
        self._ready()
        return list(self._deployment.tasks())


class _LatestWarnings(logging.Handler):
    """What the engine warned of last."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.latest: deque[str] = deque(maxlen=_SHOWN)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            error = described(record.exc_info[1])
            text += f": {error}" if error not in text else ""
        if text not in self.latest:
            self.latest.append(text)


def _fastest_folder() -> str | None:
    """Memory where there is a file system in it: opening RocksDB there takes half the time."""
    shared = Path("/dev/shm")
    try:
        with tempfile.TemporaryFile(dir=shared):
            return str(shared)
    except OSError:
        return None


def _no_pipeline(given: Any) -> str:
    names = {(c.__module__.partition(".")[0], c.__name__) for c in type(given).__mro__}
    if names & {("semel", "App"), ("faust", "App")}:
        return (
            f"{given!r} is an App, which needs a broker (`semel kafka start`). To test one of its agents without, declare "
            "it as a pipeline: Pipeline(name, source=Topic(...), agent=the function, tables=[semel.Table(...)])"
        )
    return f"{given!r:.200} is no semel.Pipeline; import the object, as `from pipelines.payments import pipeline`"
