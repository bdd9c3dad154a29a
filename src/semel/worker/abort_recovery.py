"""Abort recovery: what comes after an epoch that was aborted or whose end is unknown, and after a store that failed (protocol
rules 8, 11 and 16)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from semel.broker.answers import Answer
from semel.errors import InstanceTaken, SemelError
from semel.group.membership import GroupMember
from semel.plan import Plan
from semel.port import Clock, Membership
from semel.runtime.settings import EngineSettings
from semel.stages.commit.ownership import Ownership
from semel.stages.commit.poison_pills import PoisonPills
from semel.stages.commit.transaction import CommitFailed
from semel.state.store import Store, StoreError
from semel.worker.background import Background

log = logging.getLogger("semel.engine")

# A writer that is taken over twice within this time has a twin (rule 16).
FENCED_WINDOW_S = 60.0
# A topic that cannot be written is tried again after this long.
PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class StartingOver:
    """What the engine does: `drop_everything`, so that no work of before counts; `start_over`, to take over anew; before that,
    `stop_taking_over`, when nothing restores any more, and `read_topics_anew`."""

    drop_everything: Callable[[], None]
    start_over: Callable[[], None]
    stop_taking_over: Callable[[], Awaitable[None]]
    read_topics_anew: Callable[[], None]


class Recovery:
    """`paused_by`: why no work is taken; empty where it is. `mending`: the store cannot be used."""

    def __init__(
        self,
        owned: Ownership,
        engine: StartingOver,
        plan: Plan,
        settings: EngineSettings,
        store: Store,
        clock: Clock,
        poison_pills: PoisonPills,
        background: Background,
        *,
        stats: dict[str, float],
        group: Callable[[], GroupMember | None],
        transactional_id: str,
        instance: str,
    ) -> None:
        self._owned = owned
        self._engine = engine
        self._stats = stats
        self._group = group
        self._transactional_id = transactional_id
        self._instance = instance
        self._plan = plan
        self._settings = settings
        self._store = store
        self._clock = clock
        self._poison_pills = poison_pills
        self._background = background
        self._fenced_at: list[float] = []
        self.paused_by = ""
        self.mending = False
        # What the store holds is to be thrown away.
        self._damaged = False

    # -- a commit

    async def after(self, failed: CommitFailed, membership: Membership | None) -> None:
        """What comes next; `membership`: the one it was committed under. InstanceTaken."""
        answer, group = failed.answer, self._group()
        self._stats["recoveries"] += 1
        if self._timed_out():
            self._poison_pills.outlived()
        # What a membership is told that we have given up since says nothing of the one that we have now: a static member
        # that joins again fences the process that it was before.
        proven = self._owned.membership is membership
        if answer is Answer.FENCED:
            self._fenced()
        if answer in (Answer.FENCED, Answer.REJOIN) and group is not None:
            # Only an assignment proves that these tasks are still ours (rule 16). One that came meanwhile will do.
            if proven:
                group.request_rejoin()
            return
        if answer is Answer.RECORD:
            # A topic may take less than it did when it was looked at.
            self._engine.read_topics_anew()
        if answer is Answer.RECORD and not self._poison_pills.refused(failed.cause):
            await self._pause(f"{self._plan.dead_letter_topic} does not take what must go there: {failed.cause}; raise its "
                              "max.message.bytes, or set this machine's clock right")  # fmt: skip
        if answer is Answer.TOPIC:
            await self._pause(f"a topic cannot be written: {failed.cause}; grant Read and Write on it, or create it")
        if not self._owned.open_for_work:
            self._engine.start_over()

    def _timed_out(self) -> bool:
        """The transaction was open for longer than brokers keep it."""
        writer = self._owned.writer
        begun = writer.transaction_open_since if writer is not None else None
        return begun is not None and self._clock.monotonic() - begun > self._settings.transaction_timeout_ms / 1000

    async def _pause(self, why: str) -> None:
        self.paused_by = why
        log.error("%s; trying again in %d s", why, PAUSE_S)
        await self._clock.sleep(PAUSE_S)
        if self.paused_by == why:
            self.paused_by = ""

    def _fenced(self) -> None:
        """Our writer was taken over. Twice while nothing else explains it: another worker has our name (rule 16)."""
        settings, now, group = self._settings, self._clock.monotonic(), self._group()
        self._stats["fences"] += 1
        gone = group is not None and now - group.last_answer_at > settings.session_timeout_ms / 1000
        if self._timed_out() or gone:
            return
        self._fenced_at = [t for t in self._fenced_at if now - t < FENCED_WINDOW_S] + [now]
        if len(self._fenced_at) >= 2:
            raise InstanceTaken(
                f"the writer {self._transactional_id!r} was taken over twice within a minute: another worker "
                f"runs as instance {self._instance!r}; start one of them with another --instance"
            )

    # -- the store

    def store_failed(self, exc: StoreError) -> None:
        """The disk refuses what Kafka has: nothing is lost, but nothing can go on until the store can be used again."""
        self._engine.drop_everything()
        self._note_damage(exc)
        if self.mending:
            return
        self.mending = True
        self.paused_by = str(exc)
        # As text: whoever keeps the error keeps its frames, and with them handles that RocksDB must be rid of.
        if not exc.damaged:
            log.error("%s; free some space or mend the disk. Until the store can be written work stands still, nothing is "
                      "lost", self.paused_by)  # fmt: skip
        self._background.spawn(self._mend_store(), "mend the store")

    def _note_damage(self, exc: Exception) -> None:
        if isinstance(exc, StoreError) and exc.damaged and not self._damaged:
            self._damaged = True
            self._stats["rebuilds"] += 1
            log.error("%s; this copy is damaged: it is thrown away and made anew from the changelogs, nothing is lost. Where "
                      "that happens again, replace the disk", str(exc))  # fmt: skip

    async def _mend_store(self) -> None:
        while True:
            await self._clock.sleep(1)
            # Nothing may be reading or writing it meanwhile.
            await self._engine.stop_taking_over()
            try:
                before = self._store.found_damaged
                self._store.reopen(empty=self._damaged)
                self._stats["rebuilds"] += self._store.found_damaged - before
                self._store.check_writable()
                break
            except (StoreError, SemelError) as exc:
                self._note_damage(exc)
                self.paused_by = str(exc)
                log.warning("the store cannot be written yet: %s", self.paused_by)
        self.mending = self._damaged = False
        self.paused_by = ""
        log.info("the store takes writes again")
        self._engine.start_over()
