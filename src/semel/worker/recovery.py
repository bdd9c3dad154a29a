"""Recovery: what comes after a commit that failed, and after a store that failed (protocol rules 8, 11 and 16)."""

from __future__ import annotations

import logging
from typing import Protocol

from semel.broker.answers import Answer
from semel.errors import InstanceTaken, SemelError
from semel.group.membership import GroupMember
from semel.plan import Plan
from semel.port import Clock, Membership
from semel.runtime.settings import EngineSettings
from semel.stages.commit.poison_pills import PoisonPills
from semel.stages.commit.transaction import CommitFailed, Writer
from semel.state.store import Store, StoreError
from semel.worker.background import Background

log = logging.getLogger("semel.engine")

# A writer that is taken over twice within this time has a twin (rule 16).
FENCED_WINDOW_S = 60.0
# A topic that cannot be written is tried again after this long.
PAUSE_S = 5.0


class Worker(Protocol):
    """What of the engine is dropped, and taken over anew."""

    transactional_id: str
    instance: str
    membership: Membership | None
    group: GroupMember | None
    writer: Writer | None
    open_for_work: bool
    stats: dict[str, float]

    def drop_everything(self) -> None: ...
    def start_over(self) -> None: ...
    def read_topics_anew(self) -> None: ...
    async def stop_taking_over(self) -> None: ...


class Recovery:
    """`paused_by`: why no work is taken; empty where it is. `mending`: the store cannot be used."""

    def __init__(
        self,
        worker: Worker,
        plan: Plan,
        settings: EngineSettings,
        store: Store,
        clock: Clock,
        suspects: PoisonPills,
        background: Background,
    ) -> None:
        self._worker = worker
        self._plan = plan
        self._settings = settings
        self._store = store
        self._clock = clock
        self._suspects = suspects
        self._background = background
        self._fenced_at: list[float] = []
        self.paused_by = ""
        self.mending = False
        # What the store holds is to be thrown away.
        self._damaged = False

    # -- a commit

    async def after(self, failed: CommitFailed, membership: Membership | None) -> None:
        """What comes next; `membership`: the one it was committed under. InstanceTaken."""
        answer, worker = failed.answer, self._worker
        worker.stats["recoveries"] += 1
        # What a membership is told that we have given up since says nothing of the one that we have now: a static member
        # that joins again fences its own former self.
        proven = worker.membership is membership
        if answer is Answer.FENCED:
            self._fenced()
        if answer in (Answer.FENCED, Answer.REJOIN) and worker.group is not None:
            # Only an assignment proves that these tasks are still ours (rule 16). One that came meanwhile will do.
            if proven:
                worker.group.request_rejoin()
            return
        if answer is Answer.RECORD:
            # A topic may take less than it did when it was looked at.
            worker.read_topics_anew()
        if answer is Answer.RECORD and not self._suspects.refused(failed.cause):
            await self._pause(f"{self._plan.dead_letter_topic} does not take what must go there: {failed.cause}; raise its "
                              "max.message.bytes, or set this machine's clock right")  # fmt: skip
        if answer is Answer.TOPIC:
            await self._pause(f"a topic cannot be written: {failed.cause}; grant Read and Write on it, or create it")
        if not worker.open_for_work:
            worker.start_over()

    async def _pause(self, why: str) -> None:
        self.paused_by = why
        log.error("%s; trying again in %d s", why, PAUSE_S)
        await self._clock.sleep(PAUSE_S)
        if self.paused_by == why:
            self.paused_by = ""

    def _fenced(self) -> None:
        """Our writer was taken over. Twice while nothing else explains it: another worker has our name (rule 16)."""
        worker, settings, now = self._worker, self._settings, self._clock.monotonic()
        worker.stats["fences"] += 1
        begun = worker.writer.transaction_open_since if worker.writer is not None else None
        timed_out = begun is not None and now - begun > settings.transaction_timeout_ms / 1000
        gone = worker.group is not None and now - worker.group.last_answer_at > settings.session_timeout_ms / 1000
        if timed_out or gone:
            return
        self._fenced_at = [t for t in self._fenced_at if now - t < FENCED_WINDOW_S] + [now]
        if len(self._fenced_at) >= 2:
            raise InstanceTaken(
                f"the writer {worker.transactional_id!r} was taken over twice within a minute: another worker "
                f"runs as instance {worker.instance!r}; start one of them with another --instance"
            )

    # -- the store

    def store_failed(self, exc: StoreError) -> None:
        """The disk refuses what Kafka has: nothing is lost, but nothing can go on until the store can be used again."""
        self._worker.drop_everything()
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
            self._worker.stats["rebuilds"] += 1
            log.error("%s; this copy is damaged: it is thrown away and made anew from the changelogs, nothing is lost. Where "
                      "that happens again, replace the disk", str(exc))  # fmt: skip

    async def _mend_store(self) -> None:
        while True:
            await self._clock.sleep(1)
            # Nothing may be reading or writing it meanwhile.
            await self._worker.stop_taking_over()
            try:
                before = self._store.found_damaged
                self._store.reopen(empty=self._damaged)
                self._worker.stats["rebuilds"] += self._store.found_damaged - before
                self._store.check_writable()
                break
            except (StoreError, SemelError) as exc:
                self._note_damage(exc)
                self.paused_by = str(exc)
                log.warning("the store cannot be written yet: %s", self.paused_by)
        self.mending = self._damaged = False
        self.paused_by = ""
        log.info("the store takes writes again")
        self._worker.start_over()
