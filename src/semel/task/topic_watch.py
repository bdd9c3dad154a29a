"""Topic watch: whether the topics of an app are what they were, seen by the clock (protocol rule 17).

Sources and logs are looked at every second, also where nothing is committed. No epoch is committed on knowledge older than
a quarter of one: where the brokers do not say what the sources are, it waits, and is given up when its time is over.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

from semel.broker.answers import Answer
from semel.broker.asking import Pause, ask
from semel.errors import CommitError, TopicChanged
from semel.plan import Plan
from semel.port import Broker, Clock, RpcError, RpcLost, TopicInfo
from semel.runtime import looptime
from semel.runtime.settings import EngineSettings
from semel.stages.commit.ownership import Ownership
from semel.stages.commit.transaction import CommitFailed
from semel.state.positions import TopicPosition
from semel.task.topic_identity import check_log_ids, check_topic, not_known, source_resized
from semel.task.topics import MISSING_S, Topics

log = logging.getLogger("semel.topics")

LOOK_S = 1.0
# Kafka looks every five minutes (log.retention.check.interval.ms) for what it may delete.
RETENTION_S = 60.0
# How old what an epoch is committed on may be. (Metadata of many partitions takes milliseconds to read, so not every epoch
# asks.) Nothing of a source that was made anew is read meanwhile: it is fetched by its id.
CONFIRM_S = 0.25
# A topic that metadata lacks is said to be gone after so long: brokers come back with a part of it first.
SAY_MISSING_S = 2.0
# Every member that sees a source grow asks for a new assignment; a leader that does not see it yet is asked again then.
GROWN_S = 3.0


class TopicWatch:
    """`gone`: topics that are not there, and since when.

    `assigned`: over how many partitions of each source the group has shared out tasks. `source_grew` and `outputs_remade` are
    told that a source has new partitions, and that a topic that outputs go to is another one.
    """

    def __init__(
        self,
        owned: Ownership,
        plan: Plan,
        settings: EngineSettings,
        broker: Broker,
        clock: Clock,
        topics: Topics,
        *,
        assigned: Callable[[], Mapping[str, int]],
        source_grew: Callable[[], None],
        outputs_remade: Callable[[], Awaitable[None]],
    ) -> None:
        self._owned = owned
        self._assigned = assigned
        self._source_grew = source_grew
        self._outputs_remade = outputs_remade
        self._plan = plan
        self._settings = settings
        self._broker = broker
        self._clock = clock
        self._topics = topics
        self._looked_at = -LOOK_S
        # What was found once holds, whatever another broker says, who may be behind.
        self._changed: TopicChanged | None = None
        self._retention_at = clock.monotonic()
        # Which takeover a look was asked for in: what the one before knew says nothing of the tasks of this one.
        self._life = 0
        self._grown_at = -GROWN_S
        self.gone: dict[str, float] = {}
        self._said_gone: set[str] = set()
        self._said_grown: set[tuple[str, int]] = set()

    def begin(self, asked_at: float) -> None:
        """A takeover has fresh metadata, asked for at this time."""
        self._life += 1
        self._looked_at = asked_at

    async def run(self) -> None:
        """TopicChanged where a source or a log is not what it was, or is not kept."""
        while True:
            await self._clock.sleep(LOOK_S)
            try:
                if self._plan.sources and self._clock.monotonic() - self._looked_at >= LOOK_S:
                    await self._look()
                await self._look_at_outputs()
                if self._clock.monotonic() - self._retention_at >= RETENTION_S:
                    self._retention_at = self._clock.monotonic()
                    await self._topics.look_at_retention()
            except (RpcError, RpcLost) as exc:
                log.debug("looking at the topics: %s", exc)

    async def confirm(self) -> None:
        """Before an epoch is sent: the sources and logs are what they were. TopicChanged; CommitFailed where nobody says."""
        if not self._plan.sources:
            return
        if self._changed is not None:
            raise self._changed
        began = self._clock.monotonic()
        until = looptime.now() + self._settings.commit_timeout_ms / 1000

        def unconfirmed(exc: RpcError | RpcLost) -> CommitFailed:
            unknown = CommitError(
                f"nobody confirms that the source topics of {self._plan.app!r} are what they were ({exc}), and on older "
                "knowledge nothing is committed"
            )
            return CommitFailed(Answer.ABORT, unknown)

        # An answer that was asked for since will do, however long it took: brokers may be slow, or ask to wait.
        while began - self._looked_at > CONFIRM_S:
            await ask(self._clock, self._look, until=until, pause=Pause(0.05, 0.2), giving_up=unconfirmed)

    # -- sources and logs

    async def _look(self) -> None:
        """RpcError, RpcLost where they are not known; TopicChanged."""
        asked_at, life = self._clock.monotonic(), self._life
        known = self._topics.known
        # What has never been there is waited for by whoever joins; only what was there can be gone.
        names = [name for name in (*self._plan.sources, *self._plan.logs) if name in known]
        if any(name not in known for name in self._plan.sources):
            raise not_known(f"not every source topic of {self._plan.app!r} has been there yet")
        try:
            topics = await self._broker.topics(names)
        except (RpcError, RpcLost):
            # Whoever was missing before may come back with the brokers.
            self.gone.clear()
            raise
        if life != self._life:
            return
        missing = self._note(names, topics)
        for name in missing:
            if self._clock.monotonic() - self.gone[name] > MISSING_S:
                raise TopicChanged(
                    f"topic {name!r} is gone: it was deleted while {self._plan.app!r} ran; create it again and run `semel "
                    "reset`, or use another pipeline name"
                )
        try:
            self._compare(topics)
        except TopicChanged as exc:
            self._changed = exc
            raise
        for name in missing:
            if name in self._plan.sources:
                raise not_known(f"the brokers know no topic {name!r}")
        self._looked_at = asked_at

    def _compare(self, topics: Mapping[str, TopicInfo]) -> None:
        app, assigned = self._plan.app, self._assigned()
        for name in self._plan.sources:
            if name not in topics:
                continue
            info = topics[name]
            held = {task.topics[name] for task in self._owned.tasks.values() if name in task.topics}
            for topic_id, partitions in held:
                check_topic(self._plan, TopicPosition(topic_id, partitions, 0), info)
            before, now = assigned.get(name, 0), self._clock.monotonic()
            if not 0 < before < info.partitions:
                continue
            if not self._plan.may_grow:
                raise source_resized(app, name, before, info.partitions)
            if now - self._grown_at >= GROWN_S:
                self._grown_at = now
                log.warning(
                    "source topic %r has %d partitions now, %d before: the new ones are taken up. Keys moved between "
                    "partitions, so results of one key may stand out of order around this moment",
                    name, info.partitions, before,
                )  # fmt: skip
                self._source_grew()
        check_log_ids(
            app,
            {name: log["id"] for task in self._owned.tasks.values() for name, log in task.logs.items()},
            topics,
        )

    # -- what is written to

    async def _look_at_outputs(self) -> None:
        known = self._topics.known
        names = [name for name in (self._plan.dead_letter_topic, *self._topics.destinations) if name in known]
        topics = await self._broker.topics(names)
        self._note(names, topics)
        remade = False
        for name, info in topics.items():
            if info.id != known[name].id:
                log.warning(
                    "%s was deleted and created again, with %d partitions, %d before: what was written to it before is gone%s",
                    self._what(name), info.partitions, known[name].partitions,
                    "" if info.partitions == known[name].partitions else
                    ", and what was written since, until now, may stand in other partitions than the later records of its key",
                )  # fmt: skip
                known[name] = info
                remade = True
            elif info.partitions > known[name].partitions and (name, info.partitions) not in self._said_grown:
                self._said_grown.add((name, info.partitions))
                destination = self._topics.destinations.get(name)
                if destination is not None:
                    self._topics.say_grown(name, destination.partitions, info.partitions)
        if remade:
            await self._outputs_remade()

    # -- saying so

    def _note(self, names: Iterable[str], topics: Mapping[str, TopicInfo]) -> list[str]:
        """Those that are missing, said when they have been for a while."""
        now, missing = self._clock.monotonic(), [name for name in names if name not in topics]
        for name in topics:
            self.gone.pop(name, None)
            if name in self._said_gone:
                self._said_gone.remove(name)
                log.info("%s is there again", self._what(name))
        for name in missing:
            since = self.gone.setdefault(name, now)
            if now - since >= SAY_MISSING_S and name not in self._said_gone:
                self._said_gone.add(name)
                log.warning("%s is gone; was it deleted? %s", self._what(name), self._consequence(name))
        return missing

    def missing(self) -> list[str]:
        """In words, those that were said to be gone."""
        return [self._what(name) for name in sorted(self._said_gone)]

    def _what(self, name: str) -> str:
        plan = self._plan
        if name in plan.sources:
            return f"source topic {name!r}"
        if name == plan.dead_letter_topic:
            return f"dead-letter topic {name!r}"
        if name in plan.logs:
            return f"topic {name!r}, which holds state of {plan.app!r},"
        return f"output topic {name!r}"

    def _consequence(self, name: str) -> str:
        plan = self._plan
        if name in plan.sources or name in plan.logs:
            return f"Nothing is committed; the worker ends if it is not back within {MISSING_S:.0f} s"
        what = "dead letters" if name == plan.dead_letter_topic else "results"
        partitions = self._topics.known[name].partitions
        return (
            f"An epoch with {what} for it is not committed, and its events are handled again. Create it with {partitions} "
            "partitions, as before, or restart a worker, which creates what is missing"
        )
