"""Committer: when an epoch is cut, how it is committed, and what becomes of outputs that got no answer (rules 4, 7, 8, 17)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from semel.broker.answers import Answer
from semel.codes import NO_RIGHT
from semel.plan import Plan
from semel.port import TP, Broker, Clock, Membership, RpcError, RpcLost
from semel.runtime.budget import shares
from semel.runtime.failpoints import Failpoints
from semel.runtime.settings import COMPACTION_LAG_MS, EngineSettings
from semel.stages.agent.runner import AgentRunner
from semel.stages.commit import checkpoint
from semel.stages.commit.drain import drain
from semel.stages.commit.due_timers import LOOK_S, DueTimers
from semel.stages.commit.epoch import EpochState, SealedEpoch
from semel.stages.commit.ownership import Ownership
from semel.stages.commit.poison_pills import PoisonPills
from semel.stages.commit.transaction import (
    REQUEST_BYTES,
    CommitFailed,
    Throttled,
    Unwritable,
    Writer,
)
from semel.stages.fetch.lag import Histogram
from semel.stages.sink import outbox
from semel.stages.sink.open_epoch import OpenEpoch
from semel.stages.sink.outbox import Followers, InDoubt, Outbox, PendingOutput
from semel.state.positions import Sink
from semel.state.store import Store

log = logging.getLogger("semel.engine")

# No epoch is made smaller than this, whatever it takes to commit one: about one event of a usual size.
EPOCH_LEAST_BYTES = 64 << 10
# Brokers that take less within rpc_timeout_ms are out of order.
REQUEST_LEAST_BYTES = 256 << 10
# While brokers throttle, this often it is seen whether there is still anything to commit.
THROTTLE_LOOK_S = 0.5


class Committer:
    """`commit` runs under the engine's turn, one at a time; the rest never waits for it."""

    def __init__(
        self,
        owned: Ownership,
        runners: Sequence[AgentRunner],
        epoch: OpenEpoch,
        plan: Plan,
        settings: EngineSettings,
        broker: Broker,
        store: Store,
        clock: Clock,
        failpoints: Failpoints,
        *,
        stats: dict[str, float],
        transactional_id: str,
        confirm: Callable[[], Awaitable[None]],
        changed: asyncio.Event,
        sinks: Callable[[int], dict[str, Sink]],
        timers: DueTimers,
    ) -> None:
        self.timers = timers
        self._confirm = confirm
        # Something happened that may make an epoch due.
        self.changed = changed
        self._sinks = sinks
        self._owned = owned
        self._runners = runners
        self._stats = stats
        self._plan = plan
        self._settings = settings
        self._broker = broker
        self._store = store
        self._clock = clock
        self._pass = failpoints
        self._transactional_id = transactional_id
        self._epoch = epoch
        self._share = shares(settings.memory_budget_bytes)
        self._least_bytes = min(EPOCH_LEAST_BYTES, self._share.epoch)
        self.outbox = Outbox(settings.carry_over_limit, self._share.outbox)
        self._followers = Followers(())
        self.poison_pills = PoisonPills()
        self.number = 0
        self.committing = False
        self._sealed: SealedEpoch | None = None
        self._since: float | None = None
        # Shorter than what is set while brokers throttle what an epoch of that length writes.
        self._interval_s = settings.commit_interval_ms / 1000
        self._trimming: set[asyncio.Task[None]] = set()
        self.commit_seconds: deque[float] = deque(maxlen=1000)
        self.commit_histogram = Histogram()
        self.on_committed: list[Callable[[], None]] = []

    async def close(self) -> None:
        """Whoever waits for an output hears that it will not be committed any more."""
        for trimming in self._trimming:
            trimming.cancel()
        await asyncio.gather(*self._trimming, return_exceptions=True)
        await self.timers.close()
        self.outbox.give_up()

    # -- when

    def has_work(self) -> bool:
        if self._epoch.outputs or self._owned.touched:
            return True
        return (bool(self.outbox) and self._can_carry()) or self.timers.wait_s() == 0

    def _can_carry(self) -> bool:
        """There is a task whose offset can fence what has no source record, or no source at all (rule 9)."""
        return not self._plan.sources or bool(self._owned.running)

    def _idle(self) -> bool:
        return all(runner.waiting for runner in self._runners)

    @property
    def behind(self) -> bool:
        """An epoch is being committed, or should have been cut by now."""
        since, interval = self._since, self._settings.commit_interval_ms / 1000
        late = since is not None and self._clock.monotonic() - since >= interval
        return self.committing or (late and not self.throttled_s())

    def throttled_s(self) -> float:
        """How long brokers take no records of this client: no event begins, and no transaction, until they do."""
        return self._broker.throttles.wait_s("Produce")

    async def due(self) -> None:
        """Until an epoch should be cut: as soon as there is nothing else to do, at the latest after the commit interval."""
        while True:
            if not self.has_work():
                self._since = None
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_again_s()):
                        await self.changed.wait()
                if not self._owned.tasks:
                    self.outbox.expire(self._clock.monotonic() - self._settings.commit_timeout_ms / 1000)
                continue
            if (wait := self.throttled_s()) > 0:
                # Here, where nothing is held, and not within the transaction, whose time runs.
                await self._clock.sleep(min(wait, THROTTLE_LOOK_S))
                continue
            now = self._clock.monotonic()
            if self._since is None:
                self._since = now
            left = self._since + self._interval_s - now
            if left <= 0 or self._epoch.full or self._idle() or self.poison_pills.isolating:
                return
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.changed.wait()

    def _look_again_s(self) -> float | None:
        """Where there is no work: how long until there may be some that nobody tells of."""
        timer_s = self.timers.wait_s()
        if timer_s is None:
            return 0.5 if self.outbox else None
        return min(timer_s, 0.5 if self.outbox else LOOK_S)

    # -- how large

    def _fit(self, size: int, seconds: float) -> None:
        """After an epoch of `size` bytes was committed in so many seconds: how large the next may be."""
        epoch, timeout = self._epoch, self._settings.commit_timeout_ms / 1000
        if seconds > timeout / 2:
            epoch.limit_bytes = max(self._least_bytes, min(epoch.limit_bytes, int(size * timeout / seconds / 2)))
        elif seconds < timeout / 4:
            epoch.limit_bytes = min(self._share.epoch, epoch.limit_bytes * 2)

    def _too_large(self, sealed: SealedEpoch, writer: Writer, cause: Exception) -> None:
        """An epoch got no answer in time: the next is smaller. Where it is one event's and still does not get through while
        the brokers take what they can, that event is to blame."""
        epoch, least = self._epoch, self._least_bytes
        as_small_as_can_be = epoch.limit_bytes == least or self.poison_pills.isolating
        epoch.limit_bytes = max(least, min(epoch.limit_bytes, sealed.size) // 4)
        if as_small_as_can_be and sealed.size > least and self._took_too_long(writer, cause):
            self.poison_pills.unfinished(
                f"what it writes is too much for one transaction: of {writer.to_send} bytes the brokers took "
                f"{writer.acknowledged} within commit_timeout_ms={self._settings.commit_timeout_ms}"
            )

    def _took_too_long(self, writer: Writer, cause: Exception) -> bool:
        """Whether brokers that were all there, and took one request of the epoch after the other, were too slow for all of it.

        Where one is away, or stands still, the others take their part as fast as ever: no event is to blame for that.
        """
        if writer.hindered or not 0 < writer.acknowledged < writer.to_send:
            return False
        if isinstance(cause, Throttled):
            return True
        needed_s = writer.taking_s * writer.to_send / writer.acknowledged
        return isinstance(cause, TimeoutError) and needed_s > self._settings.commit_timeout_ms / 1000 / 2

    # -- how

    async def commit(self, *, last: bool = False) -> bool:
        """Cut the epoch (rule 7), then commit it (rule 8). Runs under `_turn`. False: nothing could be sent.

        `last`: the partitions go, so running events are waited for. Another commit takes what is done, and waits for nobody.
        """
        membership, writer = self._owned.membership, self._owned.writer
        if writer is None or writer.dead or (self._plan.sources and (membership is None or not self._owned.tasks)):
            return False
        self.committing = True
        try:
            self._epoch.close()
            try:
                if last:
                    await drain(
                        self._clock,
                        self._runners,
                        self._epoch,
                        at_most_s=self._settings.handler_timeout_ms / 1000,
                    )
                await self._pass("barrier.before_seal")
                sealed, carried = self._seal(membership)
            finally:
                self._epoch.reopen()
            if sealed is None:
                return False
            self._sealed = sealed
            await self._commit(sealed, carried, writer, membership)
            await self._pass("commit.before_store")
            self._land(sealed)
            await self._pass("commit.after_store")
            return True
        except BaseException:
            self._abandon_sealed()
            raise
        finally:
            self._sealed = None
            self.committing = False

    def abandon(self) -> None:
        """The tasks are given up, with what is done and not committed, and with what was cut and has not landed."""
        self._epoch.drop()
        self._abandon_sealed()

    def _abandon_sealed(self) -> None:
        if self._sealed is not None:
            self._sealed.abandon()

    def _seal(self, membership: Membership | None) -> tuple[SealedEpoch | None, list[PendingOutput]]:
        """Cut the epoch, synchronously: nothing an agent does can fall between its parts."""
        for runner in self._runners:
            runner.settle()
        if not self.poison_pills.isolating:
            self.timers.send()
        elif not self._owned.touched:
            self.timers.send(most=1)
        touched = self._owned.touched
        carried: list[PendingOutput] = []
        if not self.poison_pills.isolating:
            carried = self.outbox.take(bytes_left=self._epoch.limit_bytes - self._epoch.bytes)
        elif not touched:
            # While somebody is sought who is to blame, an epoch is one event's or one output's.
            carried = self.outbox.take(1)
        if carried and not touched and self._plan.sources:
            # Every transaction carries a task's offset: it is the fence (rule 9).
            touched = self._owned.running[:1]
            if not touched:
                self.outbox.put_back(carried)
                return None, []
        self._since = None
        if not touched and not carried:
            return None, []
        self.number += 1
        outs, size = self._epoch.take()
        outs.extend(c.out for c in carried)
        self._followers = Followers(runner.context for runner in self._runners if runner.on_result is not None)
        self.poison_pills.sealed(self._runners)
        sealed = checkpoint.seal(
            self._plan, touched, outs, number=self.number, generation=membership.generation if membership else -1,
            writer=self._transactional_id, now_ms=self._now_ms(), sinks=self._sinks,
        )  # fmt: skip
        sealed.size = size + sum(c.out.size for c in carried)
        return sealed, carried

    async def _commit(
        self, sealed: SealedEpoch, carried: list[PendingOutput], writer: Writer, membership: Membership | None
    ) -> None:
        try:
            await self._pass("barrier.after_seal")
            try:
                await self._confirm()
            except BaseException:
                # Also where a topic is another: nothing of it was sent, and this worker commits no more.
                sealed.step(EpochState.ABANDONED)
                raise
            started = self._clock.monotonic()
            writer.request_bytes = min(REQUEST_BYTES, max(REQUEST_LEAST_BYTES, self._epoch.limit_bytes))
            await writer.commit(sealed, membership)
        except BaseException as exc:
            self._not_committed(sealed, carried, exc)
            if isinstance(exc, CommitFailed) and isinstance(exc.cause, Throttled):
                self._interval_s = self._interval_s / 4 if self._interval_s > 0.001 else 0.0
            if isinstance(exc, CommitFailed) and (exc.answer is Answer.UNKNOWN or isinstance(exc.cause, Throttled)):
                self._too_large(sealed, writer, exc.cause)
            raise
        took = self._clock.monotonic() - started
        self.commit_seconds.append(took)
        self.commit_histogram.add(took)
        self._interval_s = min(self._settings.commit_interval_ms / 1000, max(self._interval_s * 1.5, 0.001))
        self._fit(sealed.size, took)
        # Kafka has it; what becomes of our store changes nothing for those who wait for their outputs.
        outbox.committed(carried)
        self.timers.committed()
        self.outbox.release(self._followers.let_go(committed=True))
        self._stats["commits"] += 1
        self.poison_pills.committed()

    def _not_committed(self, sealed: SealedEpoch, carried: list[PendingOutput], exc: BaseException) -> None:
        isolated = self.poison_pills.isolating and isinstance(exc, CommitFailed) and exc.answer is Answer.RECORD
        self.timers.not_committed(str(exc.cause) if isolated and isinstance(exc, CommitFailed) else "")
        if sealed.ending and (carried or self._followers.possible):
            tp = next(tp for tp in sealed.records if tp.topic == self._plan.positions_topic)
            task = self._owned.tasks.get(tp.partition)
            position_log: dict[str, Any] = task.logs[tp.topic] if task is not None else {"id": "", "next": 0}
            stamp = (self._transactional_id, sealed.number, sealed.at_ms)
            doubt = InDoubt(carried, tp, position_log["id"], position_log["next"], stamp, self._followers)
            self.outbox.in_doubt.append(doubt)
            return
        self._followers.let_go(committed=False)
        if not carried:
            return
        if self.poison_pills.isolating and isinstance(exc, CommitFailed) and exc.answer is Answer.RECORD:
            by = "it is refused" if isinstance(exc.cause, Unwritable) else "the broker refuses it"
            outbox.fail(carried, f"{by}: {exc.cause}")
        else:
            self.outbox.put_back(carried)

    def _land(self, sealed: SealedEpoch) -> None:
        """The epoch is committed on Kafka: let the store have it."""
        trims = checkpoint.land(self._store, self._plan, sealed, now_ms=self._now_ms())
        if trims and self._settings.trim_marks:
            trimming = asyncio.create_task(self._trim(trims))
            self._trimming.add(trimming)
            trimming.add_done_callback(self._trimming.discard)
        for told in self.on_committed:
            told()
        self.changed.set()
        if self.poison_pills.isolating:
            for runner in self._runners:
                runner.queue.wake.set()

    def _now_ms(self) -> int:
        return int(self._clock.time() * 1000)

    async def _trim(self, before: dict[TP, int]) -> None:
        """Let Kafka forget marks that no live bucket needs (rule 21); not vital."""
        try:
            await self._broker.delete_records(before)
            self._stats["trims"] += 1
        except RpcError as exc:
            if exc.code in NO_RIGHT:
                self._settings.trim_marks = False
                log.warning("deleting expired marks is not permitted (%s); %s will only grow. Grant Delete on it to trim",
                            exc, self._plan.marks_topic)  # fmt: skip
        except RpcLost:
            pass

    async def settle_doubts(self, committed: Callable[[InDoubt], Awaitable[bool | None]]) -> None:
        """Were the outputs committed whose epoch ended without an answer? The log of positions knows (rule 4).

        `committed`: None where it cannot be known any more.
        """
        doubts = self.outbox.in_doubt
        while doubts:
            doubt = doubts[-1]
            known = await committed(doubt)
            doubts.pop()
            if known:
                outbox.committed(doubt.outs)
            elif known is None:
                # Another log of that name may have had the record, too.
                outbox.fail(doubt.outs, f"nobody knows any more whether epoch {doubt.stamp[1]} was committed: topic "
                                       f"{doubt.tp.topic!r}, which would say so, was deleted and created again")  # fmt: skip
            elif self._now_ms() - doubt.stamp[2] > COMPACTION_LAG_MS:
                # The record may have been compacted away: sent again it might be there twice.
                outbox.fail(doubt.outs, f"nobody knows any more whether epoch {doubt.stamp[1]} was committed: this worker stood "
                                       f"still for over {COMPACTION_LAG_MS // 60_000} minutes")  # fmt: skip
            else:
                self.outbox.put_back(doubt.outs)
            self.outbox.release(doubt.followers.let_go(committed=bool(known)))
