"""Engine: one worker's heart. It owns tasks and lanes, cuts epochs, commits them, and starts over when that fails.

One lock, `_turn`, orders everything that changes what is held: committing, revoking, taking over. Lanes never take it; they
only meet the gate. The rules are those of `docs/protocol.md`; the numbers in comments are theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from semel.errors import CarryOverFull, CommitError, InstanceTaken, SemelError, TopicChanged
from semel.partitioner import KeyPartitions
from semel.plan import Plan, TablePlan
from semel.port import EARLIEST, LATEST, TP, Broker, Clock, Fetched, Membership, Randomness, RpcError, RpcLost
from semel.runtime.assignor import Assignment
from semel.runtime.failpoints import Failpoints
from semel.runtime.intake import Intake
from semel.runtime.membership import GroupMember
from semel.runtime.restore import Restorer, RestoreSettings, check_topic, task_meta
from semel.runtime.settings import EngineSettings
from semel.runtime.task import Cursor, Task, TaskState
from semel.runtime.topics import Topics
from semel.stages.agent import Lane
from semel.stages.answers import Answer, answer_of
from semel.stages.commit import CommitFailed, Sealed, Writer, by_partition
from semel.stages.sink import DeadLetters, Destination, Out
from semel.state import positions
from semel.state.marks import Marks
from semel.state.overlay import Rows
from semel.state.positions import COUNTS, TopicPosition
from semel.state.store import Store, StoreError
from semel.topic import Topic

log = logging.getLogger("semel.engine")

# Restores running side by side: they share one loop and one disk.
RESTORES = 8
# The sources' identity is checked before a commit at most this often (rule 17).
TOPIC_CHECK_S = 1.0
FENCED_WINDOW_S = 60.0
# After a refused record this many events are committed one by one: more than were in the refused epoch's one batch.
CAUTIOUS_EPOCHS = 2_000


class Carried:
    """An output without a source record, put into the next epoch again until it is committed (rule 4)."""

    __slots__ = ("done", "out", "since")

    def __init__(self, out: Out, done: asyncio.Future[None], since: float) -> None:
        self.out = out
        self.done = done
        self.since = since


class Engine:
    """Runs a `Plan` against a `Broker`. `run` returns after `stop`, or raises why it cannot go on (a SemelError)."""

    def __init__(
        self,
        plan: Plan,
        settings: EngineSettings,
        broker: Broker,
        store: Store,
        clock: Clock,
        randomness: Randomness,
        *,
        instance: str,
        failpoints: Failpoints | None = None,
    ) -> None:
        self.plan = plan
        self.app = plan.app
        self.settings = settings
        self.instance = instance
        self.broker = broker
        self.store = store
        self.clock = clock
        self.randomness = randomness
        self.dead_letters = DeadLetters(plan.dead_letter_topic, 1, 1 << 20)
        self.transactional_id = f"{plan.app}-{instance}"
        self._pass = failpoints or Failpoints()
        self.topics = Topics(broker, clock, plan, replication_factor=settings.replication_factor, say=self._say_waiting)
        self.lanes = [Lane(self, agent) for agent in plan.agents]
        self.intake = Intake(broker, clock, offer=self._offer, trimmed=self._trimmed)
        self.tasks: dict[int, Task] = {}
        self.assignment = Assignment(())
        self.membership: Membership | None = None
        self.group: GroupMember | None = None
        self.writer: Writer | None = None
        # What a lane sees (stages.agent.Host)
        self.gate_closed = False
        self.landings = 0
        self.epoch_outputs: list[Out] = []
        # -- epochs
        self._gate_open = asyncio.Event()
        self._gate_open.set()
        self._parked = asyncio.Event()
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._carry: deque[Carried] = deque()
        self._epoch = 0
        self._epoch_since: float | None = None
        self._cautious_epochs = 0
        self._condemned: dict[TP, dict[int, str]] = {}
        self._committing = False
        self._open_for_work = False
        self._taking_over: asyncio.Task[None] | None = None
        self._lost_writer_at: list[float] = []
        self._topics_checked_at = 0.0
        self._running: list[asyncio.Task[Any]] = []
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._table_numbers = {t.name: n + 1 for n, t in enumerate(sorted(plan.tables, key=lambda t: t.name))}
        # -- what others look at
        self.waiting_for = "starting"
        self.paused_by = ""
        self.stats: dict[str, float] = dict.fromkeys(
            ("commits", "aborts", "unknown", "fences", "rebalances", "recoveries", "left_out", "trims"), 0
        )
        self._rated = (0.0, 0, 0.0)
        self.commit_seconds: deque[float] = deque(maxlen=1000)
        self.on_committed: list[Callable[[], None]] = []

    # ================================================================== running

    async def run(self) -> None:
        """Until `stop`. Raises a SemelError where only a person can help; nothing is lost then."""
        try:
            await self._connect()
            self._spawn(self.intake.run(), "intake")
            self._spawn(self._commit_loop(), "commits")
            for lane in self.lanes:
                self._spawn(lane.run(), f"lane {lane.plan.name}")
            if self.plan.sources:
                self.group = self._member()
                self._spawn(self.group.run(), "group")
            else:
                self._spawn(self._without_sources(), "writer")
            await self._stop.wait()
            if self._failure is not None:
                raise self._failure
        finally:
            await self._shut_down()

    def _member(self) -> GroupMember:
        s = self.settings
        return GroupMember(
            self.broker,
            self.clock,
            self._pass,
            self,
            group=self.app,
            instance=self.instance,
            instance_id=self.transactional_id,
            topics=tuple(self.plan.sources),
            url=s.web_url,
            session_timeout_ms=s.session_timeout_ms,
            rebalance_timeout_ms=s.rebalance_timeout_ms,
        )

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._running.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            return
        exc = task.exception()
        if exc is not None:
            self.fail(exc)

    def fail(self, exc: BaseException) -> None:
        """Stop with this error; what is not committed is dropped."""
        if self._failure is None:
            self._failure = exc
            if not isinstance(exc, SemelError):
                log.error("the engine stops on an unexpected error", exc_info=exc)
        self._stop.set()

    def stop(self) -> None:
        """Ask `run` to end: drain within drain_timeout_ms, commit, leave the group's work in order."""
        self._stop.set()

    async def _connect(self) -> None:
        pause = 0.1
        while not self._stop.is_set():
            try:
                await self.broker.start()
                return
            except RpcLost as exc:
                self._say_waiting(f"the broker does not answer: {exc}")
                await self.clock.sleep(pause)
                pause = min(pause * 1.5, 1.0)

    async def _shut_down(self) -> None:
        """Finish what runs, commit it, and go; a failed engine commits nothing."""
        if self._failure is None and self.membership is not None:
            with contextlib.suppress(TimeoutError, CommitFailed, RpcError, RpcLost, StoreError):
                async with asyncio.timeout(self.settings.drain_timeout_ms / 1000):
                    async with self._turn:
                        self._open_for_work = False
                        await self._commit_epoch()
        await self._stop_taking_over()
        for lane in self.lanes:
            await lane.close()
        if self.group is not None:
            self.group.stop()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for carried in self._carry:
            if not carried.done.done():
                carried.done.set_exception(CommitError("the worker stopped before this was committed"))
        if self.group is not None and self._failure is None and self.settings.leave_on_stop:
            await self.group.leave()
        if self.writer is not None:
            with contextlib.suppress(RpcError, RpcLost, TimeoutError):
                async with asyncio.timeout(self.settings.rpc_timeout_ms / 1000):
                    await self.writer.abort()
        await self.broker.close()

    def _say_waiting(self, what: str) -> None:
        if what != self.waiting_for:
            self.waiting_for = what
            if what:
                log.info("%s", what)

    # ================================================================== what others look at

    @property
    def restored(self) -> bool:
        """Every task of the current assignment runs."""
        return self._open_for_work and all(t.state is TaskState.RUNNING for t in self.tasks.values())

    def lag(self) -> dict[TP, int]:
        """Records between the committed position and the log's end, as of the last fetch."""
        found: dict[TP, int] = {}
        for task in self.tasks.values():
            for topic, at in task.committed.topics.items():
                feed = self.intake.feeds.get(TP(topic, task.partition))
                if feed is not None and feed.high_watermark >= 0:
                    found[feed.tp] = max(0, feed.high_watermark - at.next)
        return found

    def rate(self) -> float:
        """Events a second since the last time this was asked for, at least a second ago; else as then."""
        now = self.clock.monotonic()
        done = sum(t.committed.counts.get("in", 0) for t in self.tasks.values())
        at, before, last = self._rated
        if now - at >= 1.0:
            last = max(0, done - before) / (now - at) if at else 0.0
            self._rated = (now, done, last)
        return last

    # ================================================================== what lanes ask

    def gate(self) -> Awaitable[Any]:
        self._parked.set()
        return self._gate_open.wait()

    def cautious(self) -> bool:
        return self._cautious_epochs > 0

    def may_take(self) -> bool:
        if not self._open_for_work or self.paused_by:
            return False
        # In cautious epochs one event is in an epoch, so that a refused record names its event (rule 2).
        return not self._cautious_epochs or not (self._committing or self._has_work())

    def finished(self) -> None:
        self._changed.set()

    def released(self, cursor: Cursor, lane: Lane) -> None:
        self.intake.consumed(cursor)
        if len(self.lanes) > 1:
            for other in self.lanes:
                if other is not lane and other.ready:
                    other.wake.set()
        if cursor.queue:
            lane.offer(cursor)

    def destination(self, topic: Topic) -> Destination | None:
        return self.topics.destinations.get(topic.name)

    async def open_destination(self, topic: Topic) -> Destination:
        return await self.topics.open_destination(topic, max(self.assignment.partitions.values(), default=1))

    def _offer(self, cursor: Cursor) -> None:
        for lane in self.lanes:
            if lane.plan is cursor.agent:
                lane.offer(cursor)

    def _trimmed(self, tp: TP, asked: int, answer: Fetched) -> None:
        self.fail(
            TopicChanged(
                f"{tp.topic}[{tp.partition}] no longer holds offset {asked}, where {self.app!r} stands: records were deleted, by retention or by hand, before they were processed. Run `semel "
                "reset --to earliest` to go on with what is there, and raise the topic's retention"
            )
        )

    # ================================================================== work without a source record

    def carry(self, out: Out) -> asyncio.Future[None]:
        """Put an output into the next epoch that commits; the future resolves after EndTxn. CarryOverFull."""
        if len(self._carry) >= self.settings.carry_over_limit:
            raise CarryOverFull(
                f"{len(self._carry)} outputs without an event wait for their commit, the limit (carry_over_limit) is "
                f"{self.settings.carry_over_limit}; await what app.send returns, and send slower"
            )
        done = asyncio.get_running_loop().create_future()
        self._carry.append(Carried(out, done, self.clock.monotonic()))
        self._changed.set()
        return done

    def _expire_carried(self) -> None:
        """A worker that owns nothing sends nothing (rule 9)."""
        bound = self.clock.monotonic() - self.settings.commit_timeout_ms / 1000
        while self._carry and self._carry[0].since < bound and not self.tasks:
            carried = self._carry.popleft()
            if not carried.done.done():
                carried.done.set_exception(
                    CommitError(
                        "this worker owns no partition, so nothing can fence what it sends; send from a worker that does, or "
                        "write to the source topic"
                    )
                )

    # ================================================================== epochs

    def _has_work(self) -> bool:
        return bool(self.epoch_outputs) or any(t.touched for t in self.tasks.values()) or (
            bool(self._carry) and self._can_carry()
        )

    def _can_carry(self) -> bool:
        """There is a task whose offset can fence what has no source record, or no source at all (rule 9)."""
        return not self.plan.sources or any(t.state is TaskState.RUNNING for t in self.tasks.values())

    def _idle(self) -> bool:
        return all(lane.waiting for lane in self.lanes)

    async def _due(self) -> None:
        """Until an epoch should be cut: as soon as there is nothing else to do, at the latest after the commit interval."""
        interval = self.settings.commit_interval_ms / 1000
        while True:
            if not self._has_work():
                self._epoch_since = None
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5 if self._carry else None):
                        await self._changed.wait()
                self._expire_carried()
                continue
            now = self.clock.monotonic()
            if self._epoch_since is None:
                self._epoch_since = now
            left = self._epoch_since + interval - now
            if left <= 0 or self._idle() or self._cautious_epochs:
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    async def _commit_loop(self) -> None:
        while True:
            await self._due()
            failed: CommitFailed | None = None
            sent = False
            async with self._turn:
                if self._open_for_work:
                    try:
                        sent = await self._commit_epoch()
                    except CommitFailed as exc:
                        failed = exc
                        self._lose_epoch(exc)
                    except StoreError as exc:
                        self._store_failed(exc)
            if failed is not None:
                await self._after_failure(failed)
            if not sent:
                # Work waits for a writer or an assignment: never ask again without letting others run.
                await self.clock.sleep(0.01)

    async def _commit_epoch(self) -> bool:
        """One turn of the barrier (rule 7), then the commit (rule 8). Runs under `_turn`. False: nothing could be sent."""
        membership, writer = self.membership, self.writer
        if writer is None or writer.dead or (self.plan.sources and (membership is None or not self.tasks)):
            return False
        self._committing = True
        try:
            self.gate_closed = True
            self._gate_open.clear()
            try:
                busy = await self._quiesce()
                await self._pass("barrier.before_seal")
                attach = [lane.detach() for lane in busy if lane.hand.holding]
                sealed, carried = self._seal()
                for put_back in attach:
                    put_back()
            finally:
                self.gate_closed = False
                self._gate_open.set()
            if sealed is None:
                return False
            await self._pass("barrier.after_seal")
            started = self.clock.monotonic()
            try:
                await self._check_topics()
                await writer.commit(sealed, membership)
            except CommitFailed:
                self._carry.extendleft(reversed(carried))
                raise
            self.commit_seconds.append(self.clock.monotonic() - started)
            await self._pass("commit.before_store")
            self._land(sealed, writer, carried)
            await self._pass("commit.after_store")
            return True
        finally:
            self._committing = False

    async def _quiesce(self) -> list[Lane]:
        """Wait for running events; what is over its time is left out, not killed (rule 3)."""
        ends = self.clock.monotonic() + self.settings.handler_timeout_ms / 1000
        while True:
            busy = [lane for lane in self.lanes if lane.hand.holding]
            left = ends - self.clock.monotonic()
            if not busy or left <= 0:
                break
            self._parked.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, 0.05)):
                    await self._parked.wait()
        for lane in busy:
            self.stats["left_out"] += 1
            s = lane.slice
            where = f"{s.cursor.tp.topic}[{s.cursor.tp.partition}]@{lane.hand.record.offset}" if s is not None else "?"
            log.warning(
                "agent %s has been handling %s for over %d ms; it is left out of this epoch and goes on",
                lane.plan.name, where, self.settings.handler_timeout_ms,
            )  # fmt: skip
        return busy

    def _seal(self) -> tuple[Sealed | None, list[Carried]]:
        """Cut the epoch, synchronously: nothing an agent does can fall between its parts."""
        for lane in self.lanes:
            lane.settle()
        touched = [t for t in self.tasks.values() if t.touched]
        carried = list(self._carry)
        self._carry.clear()
        if carried and not touched and self.plan.sources:
            # Every transaction carries a task's offset: it is the fence (rule 9).
            touched = [t for t in self.tasks.values() if t.state is TaskState.RUNNING][:1]
            if not touched:
                self._carry.extend(carried)
                return None, []
        self._epoch_since = None
        if not touched and not carried:
            return None, []
        self._epoch += 1
        now_ms = int(self.clock.time() * 1000)
        outs, self.epoch_outputs = self.epoch_outputs, []
        outs.extend(c.out for c in carried)
        records = by_partition(outs)
        offsets: dict[TP, int] = {}
        plan, generation = self.plan, self.membership.generation if self.membership else -1
        for task in touched:
            task.touched = False
            p = task.partition
            for rows in task.touched_rows:
                tp = TP(plan.changelog(rows.name), p)
                records[tp] = [Out(tp, now_ms, key, value, ()) for key, value in rows.seal().items()]
            if task.marks is not None and task.marks.open:
                tp = TP(plan.marks_topic, p)
                records[tp] = [Out(tp, now_ms, key, value, ()) for key, value in task.marks.seal().items()]
            tp = TP(plan.positions_topic, p)
            position = task.position(generation, self.transactional_id, self._epoch, now_ms, plan.shape())
            task.sealed_position = position
            records[tp] = [Out(tp, now_ms, positions.KEY, position.encode(), ())]
            for topic, at in position.topics.items():
                offsets[TP(topic, p)] = at.next
        sealed = Sealed(self._epoch, records, offsets)
        return sealed, carried

    def _land(self, sealed: Sealed, writer: Writer, carried: list[Carried]) -> None:
        """The epoch is committed on Kafka: let the store have it, then drop the overlay."""
        batch = self.store.batch()
        now_ms = int(self.clock.time() * 1000)
        landed: list[Task] = []
        for task in self.tasks.values():
            position = task.sealed_position
            if position is None:
                continue
            landed.append(task)
            p = task.partition
            for rows in task.tables.values():
                if rows.sealed:
                    batch.rows(rows.prefix, rows.sealed)
                    self._advance(task, self.plan.changelog(rows.name), sealed)
            marks = task.marks
            if marks is not None:
                if marks.sealed:
                    first = sealed.base_offsets.get(TP(self.plan.marks_topic, p), -1)
                    marks.land(batch, marks.sealed.items(), first)
                    self._advance(task, self.plan.marks_topic, sealed)
                if position.stream_time.ms is not None:
                    expired = marks.expired(position.stream_time.ms)
                    if expired:
                        marks.drop_buckets(batch, expired)
                        self._trim(task)
            own = self._advance(task, self.plan.positions_topic, sealed)
            stamp = (self.transactional_id, sealed.number, own)
            batch.meta(p, task_meta(task, position, now_ms, stamp))
        self.store.write(batch)
        self.landings += 1
        for task in landed:
            assert task.sealed_position is not None
            task.committed, task.sealed_position = task.sealed_position, None
            for rows in task.tables.values():
                rows.landed()
            if task.marks is not None:
                task.marks.sealed = {}
        self.stats["commits"] += 1
        if self._cautious_epochs:
            self._cautious_epochs -= 1
        for waiting in carried:
            if not waiting.done.done():
                waiting.done.set_result(None)
        for told in self.on_committed:
            told()
        self._changed.set()
        for lane in self.lanes:
            if self._cautious_epochs:
                lane.wake.set()

    def _advance(self, task: Task, topic: str, sealed: Sealed) -> int:
        """Note how far the log is in the store; the offset of the epoch's first record there, -1 if not told."""
        tp = TP(topic, task.partition)
        base = sealed.base_offsets.get(tp, -1)
        if base >= 0:
            task.logs[topic]["next"] = base + len(sealed.records[tp])
        return base

    def _trim(self, task: Task) -> None:
        """Let Kafka forget marks that no live bucket needs (rule 21); in the background, and not vital."""
        assert task.marks is not None
        before = task.marks.first_live_offset()
        tp = TP(self.plan.marks_topic, task.partition)
        if before is None or not self.settings.trim_marks:
            return

        async def trim() -> None:
            try:
                await self.broker.delete_records({tp: before})
                self.stats["trims"] += 1
            except RpcError as exc:
                if exc.code in (29, 31):
                    self.settings.trim_marks = False
                    log.warning("deleting expired marks from %s is not permitted (%s); the topic will only grow. Grant Delete on "
                                "it to trim", tp.topic, exc)  # fmt: skip
            except RpcLost:
                pass

        self._background(trim())

    def _background(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._running.append(task)
        task.add_done_callback(self._running.remove)

    async def _check_topics(self) -> None:
        """Rule 17: a source that grew or was made anew under us stops the app before another epoch counts."""
        now = self.clock.monotonic()
        if now - self._topics_checked_at < TOPIC_CHECK_S or not self.plan.sources:
            return
        try:
            found = await self.broker.topics(list(self.plan.sources))
        except (RpcError, RpcLost):
            return
        self._topics_checked_at = now
        for task in self.tasks.values():
            for name, (topic_id, partitions) in task.topics.items():
                if name not in found:
                    raise TopicChanged(f"topic {name!r} is gone: it was deleted while {self.app!r} reads it; "
                                       "create it again and run `semel reset`, or use another pipeline name")  # fmt: skip
                check_topic(self.app, TopicPosition(topic_id, partitions, 0), found[name])
            break

    # ================================================================== when it fails

    def _drop_everything(self) -> None:
        """The incarnation is over: no work of it may count any more (rule 5)."""
        self._open_for_work = False
        self.intake.clear()
        self.epoch_outputs = []
        for lane in self.lanes:
            lane.abandon()
        for task in self.tasks.values():
            task.state = TaskState.RESTORING
            task.sealed_position = None
            task.open_anew()

    def _lose_epoch(self, failed: CommitFailed) -> None:
        log.warning("epoch %d is not committed: %s; what it did is undone and done again", self._epoch, failed)
        self.stats["unknown" if failed.answer is Answer.UNKNOWN else "aborts"] += 1
        self._drop_everything()

    async def _after_failure(self, failed: CommitFailed) -> None:
        answer = failed.answer
        self.stats["recoveries"] += 1
        if answer is Answer.EXIT:
            raise InstanceTaken(f"another worker runs as instance {self.instance!r} of {self.app!r}; start one of them with "
                                "another --instance") from failed  # fmt: skip
        if answer is Answer.RECORD:
            self._cautious(failed)
        if answer is Answer.TOPIC:
            self.paused_by = f"a topic cannot be written: {failed.cause}; grant Write on it, or create it; trying again"
            log.error("%s", self.paused_by)
            await self.clock.sleep(5)
            self.paused_by = ""
        if answer is Answer.FENCED:
            self.stats["fences"] += 1
            now = self.clock.monotonic()
            self._lost_writer_at = [t for t in self._lost_writer_at if now - t < FENCED_WINDOW_S] + [now]
            if len(self._lost_writer_at) >= 2 and self.membership is not None:
                raise InstanceTaken(f"the writer {self.transactional_id!r} was taken over twice within a minute: another worker "
                                    f"runs as instance {self.instance!r}; start one of them with another --instance")  # fmt: skip
        if answer in (Answer.FENCED, Answer.REJOIN) and self.group is not None:
            # Only an assignment proves that these tasks are still ours (rule 16).
            self.group.request_rejoin()
            return
        if self.membership is not None or not self.plan.sources:
            self._start_take_over()

    def _cautious(self, failed: CommitFailed) -> None:
        """A record was refused (rule 2). Epochs of one event from here, until the culprit is alone and can be named."""
        if self._cautious_epochs:
            suspects = [lane.alone for lane in self.lanes if lane.alone is not None]
            for tp, offset in suspects:
                self._condemned.setdefault(tp, {})[offset] = f"its writes were refused by the broker: {failed.cause}"
            if not suspects:
                while self._carry:
                    carried = self._carry.popleft()
                    if not carried.done.done():
                        carried.done.set_exception(CommitError(f"the broker refused it: {failed.cause}"))
        self._cautious_epochs = CAUTIOUS_EPOCHS

    def _store_failed(self, exc: StoreError) -> None:
        """The disk refused what Kafka has committed: nothing is lost, but nothing can go on until it takes writes again."""
        log.error(
            "%s; free some space or mend the disk. Work stops until the store can be written, nothing is lost", exc
        )
        self.paused_by = str(exc)
        self._drop_everything()
        self._background(self._mend_store())

    async def _mend_store(self) -> None:
        while True:
            await self.clock.sleep(1)
            try:
                self.store.reopen()
                self.store.check_writable()
                break
            except (StoreError, SemelError) as exc:
                log.debug("the store cannot be written yet: %s", exc)
        self.paused_by = ""
        log.info("the store takes writes again")
        if self.membership is not None:
            self._start_take_over()

    # ================================================================== what the group says (membership.Owner)

    async def source_partitions(self) -> dict[str, int]:
        return await self.topics.ready()

    async def revoke(self, *, lost: bool) -> None:
        """Commit the epoch within the deadline or drop it (rule 14). Nothing crosses a generation."""
        await self._pass("revoke.begin")
        await self._stop_taking_over()
        if not lost and self._open_for_work:
            try:
                async with asyncio.timeout(self.settings.revoke_timeout_ms / 1000):
                    async with self._turn:
                        self._open_for_work = False
                        await self._commit_epoch()
            except (TimeoutError, CommitFailed) as exc:
                log.warning("the epoch could not be committed before the partitions had to go: %s", exc)
                self.stats["aborts"] += 1
                if self.writer is not None:
                    self.writer.dead = True
            except StoreError as exc:
                log.error("%s; the partitions go to others, the store is brought up to date later", exc)
        self.membership = None
        self._drop_everything()
        if self.writer is not None and self.writer.transaction_open_since is not None:
            self.writer.dead = True
        self.tasks = {}
        self.assignment = Assignment((), owners=self.assignment.owners, partitions=self.assignment.partitions)
        await self._pass("revoke.end")

    async def assign(self, membership: Membership, assignment: Assignment) -> None:
        await self._pass("assign.begin")
        self.membership = membership
        self.assignment = assignment
        self.stats["rebalances"] += 1
        self._start_take_over()

    def _start_take_over(self) -> None:
        if self._taking_over is not None:
            self._taking_over.cancel()
        self._taking_over = asyncio.create_task(self._take_over(), name="take over")
        self._taking_over.add_done_callback(self._ended)

    async def _stop_taking_over(self) -> None:
        """When this returns nothing restores any more."""
        taking_over, self._taking_over = self._taking_over, None
        if taking_over is not None:
            taking_over.cancel()
            await asyncio.wait({taking_over})

    async def _take_over(self) -> None:
        """A writer, then every task restored, each running as soon as it is (rules 11, 14, 15)."""
        membership = self.membership
        async with self._turn:
            if membership is not self.membership:
                return
            self._drop_everything()
            await self._new_writer()
            topics = await self._metadata()
            letters = self.plan.dead_letter_topic
            self.dead_letters = DeadLetters(
                letters, self.topics.known[letters].partitions, self.topics.max_bytes(letters)
            )
            self._topics_checked_at = self.clock.monotonic()
            self.tasks = {p: self._task(p) for p in self.assignment.tasks}
            for lane in self.lanes:
                lane.sink = self.topics.destinations.get(lane.plan.sink.name) if lane.plan.sink is not None else None
            self._open_for_work = True
        restorer = Restorer(
            self.broker,
            self.clock,
            self.randomness,
            self._pass,
            self.store,
            self.plan,
            RestoreSettings(
                group=self.app,
                has_sources=bool(self.plan.sources),
                rpc_timeout_ms=self.settings.rpc_timeout_ms,
                rebuild_age_ms=self.settings.rebuild_age_ms,
                adopt=self.settings.adopt,
            ),
            fence=lambda name: self.broker.init_producer_id(name, self.settings.transaction_timeout_ms),
            own_id=self.transactional_id,
        )
        slots = asyncio.Semaphore(RESTORES)

        async def bring_up(task: Task) -> None:
            async with slots:
                position = await restorer.restore(task, topics)
                position = await self._begin(task, position)
                task.committed = position
                task.open_anew()
                task.state = TaskState.RUNNING
                self._feed(task)
                log.info("task %d runs from %s", task.partition, {t: a.next for t, a in position.topics.items()})

        restores = [asyncio.create_task(bring_up(t)) for t in self.tasks.values()]
        try:
            await asyncio.gather(*restores)
        except StoreError as exc:
            self._store_failed(exc)
            return
        finally:
            for restore in restores:
                restore.cancel()
            await asyncio.gather(*restores, return_exceptions=True)
        self._changed.set()

    async def _new_writer(self) -> None:
        if self.writer is not None and not self.writer.dead:
            return
        while True:
            writer = Writer(
                self.broker,
                self.clock,
                self._pass,
                self.transactional_id,
                timeout_ms=self.settings.transaction_timeout_ms,
                commit_timeout_ms=self.settings.commit_timeout_ms,
            )
            try:
                await writer.init(until=self.clock.monotonic() + self.settings.commit_timeout_ms / 1000)
            except (RpcError, RpcLost) as exc:
                answer = answer_of(exc)
                if isinstance(exc, RpcError) and answer is Answer.UNKNOWN:
                    raise CommitError(f"no transactional writer {self.transactional_id!r} is to be had: {exc}") from exc
                log.info("taking a writer: %s", exc)
                await self.clock.sleep(0.2)
                continue
            self.writer = writer
            return

    async def _metadata(self) -> dict[str, Any]:
        names = [*self.plan.sources, *self.plan.logs]
        while True:
            try:
                found = await self.topics.refreshed(names)
            except (RpcError, RpcLost) as exc:
                log.debug("metadata: %s", exc)
                found = {}
            if all(name in found for name in names):
                return found
            await self.clock.sleep(0.1)

    def _task(self, partition: int) -> Task:
        task = Task(partition)
        plan, known = self.plan, self.topics.known
        share = max(1_000, 200_000 // max(1, len(self.assignment.tasks) * max(1, len(plan.tables))))
        for table in plan.tables:
            task.tables[table.name] = Rows(
                table.name,
                partition,
                self._table_numbers[table.name],
                self.store,
                table.key,
                table.value,
                place=self._place(table),
                max_bytes=self.topics.max_bytes(plan.changelog(table.name)),
                limit=share,
            )
        dedup = plan.dedup
        if dedup is not None:
            task.dedup = dedup
            task.marks = Marks(self.store, partition, window_ms=dedup.window_ms, bucket_ms=dedup.bucket_ms)
        for name in plan.sources:
            info = known[name]
            if partition < info.partitions:
                task.topics[name] = (info.id, info.partitions)
                for agent in plan.agents:
                    if any(t.name == name for t in agent.sources):
                        cursor = Cursor(task, TP(name, partition), agent)
                        cursor.condemned = self._condemned.setdefault(cursor.tp, {})
                        task.cursors[(name, agent.name)] = cursor
        return task

    def _place(self, table: TablePlan) -> Callable[[bytes], int] | None:
        if not table.keyed:
            return None
        partitions = max((self.topics.known[n].partitions for n in self.plan.sources), default=1)
        return KeyPartitions(partitions)

    async def _begin(self, task: Task, position: positions.Position) -> positions.Position:
        """Where a task that never committed begins: `start=` of the declaration."""
        fresh = [TP(t, task.partition) for t, at in position.topics.items() if at.next < 0]
        if not fresh:
            return position
        at = EARLIEST if self.plan.start == "earliest" else LATEST
        while True:
            try:
                offsets = await self.broker.list_offsets(fresh, at)
                break
            except (RpcError, RpcLost) as exc:
                if answer_of(exc) not in (Answer.WAIT, Answer.RETRY, Answer.UNKNOWN):
                    raise
                await self.clock.sleep(0.1)
        topics = {
            t: p if p.next >= 0 else TopicPosition(p.id, p.partitions, offsets[TP(t, task.partition)])
            for t, p in position.topics.items()
        }
        counts = {**dict.fromkeys(COUNTS, 0), **position.counts}
        return positions.moved(position, topics=topics, counts=counts)

    def _feed(self, task: Task) -> None:
        for topic in task.topics:
            tp = TP(topic, task.partition)
            self.intake.add(tp, [c for c in task.cursors.values() if c.tp == tp])

    async def _without_sources(self) -> None:
        """An app without source topics commits under its id alone (rule 9)."""
        await self.topics.ready()
        async with self._turn:
            await self._new_writer()
            self._open_for_work = True
