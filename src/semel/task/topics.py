"""The topics an app needs: waited for where they are the user's, created where they are its own (protocol rules 17, 18, 21)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from semel.broker.asking import ask, see
from semel.codes import NO_RIGHT
from semel.errors import ConfigError, OutputRefused, TopicChanged
from semel.partitioner import KeyPartitions
from semel.plan import Plan
from semel.port import Broker, Clock, RpcError, RpcLost, TopicInfo, TopicSpec
from semel.runtime.settings import COMPACTION_LAG_MS
from semel.stages.sink.destination import NOT_THE_VALUE_BYTES, Destination, limits_from
from semel.state.dedup_marks import Marks
from semel.state.positions import Sink
from semel.state.state_log import KEPT
from semel.state.table_rows import Rows
from semel.task import foreign_state
from semel.task.topic_identity import not_known, source_resized
from semel.topic import KAFKAS_OWN, Topic, UnnamedTopic

T = TypeVar("T")

log = logging.getLogger("semel.topics")

# Room for the headers semel appends to a dead letter, and for the key beside a row.
HEADROOM_BYTES = 65_536
# What semel writes there for itself has no time but that of the broker: a worker whose clock is ahead stops nothing.
_STAMPED = {"message.timestamp.type": "LogAppendTime"}
# For so long a broker may not have heard of partitions that others know.
BEHIND_S = 5.0
# For so long metadata may lack a topic that was there: brokers come back with a part of it first.
MISSING_S = 30.0


# One record a partition counts; one is written at each commit, with a marker that stays for delete.retention.ms.
_POSITIONS = {
    "cleanup.policy": "compact", "delete.retention.ms": "3600000", "segment.bytes": str(4 << 20), "segment.ms": "3600000",
    "min.cleanable.dirty.ratio": "0.1", "min.compaction.lag.ms": str(COMPACTION_LAG_MS), "max.compaction.lag.ms": "7200000",
}  # fmt: skip
# Where segments are larger, a restart without the store reads for minutes what compaction does not come to.
LARGE_SEGMENT_BYTES = 256 << 20
# What a client needs for each request, as ACLs name it.
_RIGHTS = {
    "Metadata": "Describe on the topic",
    "ListOffsets": "Describe on the topic",
    "DescribeConfigs": "DescribeConfigs on the topic",
    "CreateTopics": "Create on the topic (or the cluster), or create it by hand",
    "CreatePartitions": "Alter on the topic, or give it the partitions by hand",
    "DeleteTopics": "Delete on the topic",
    "Fetch": "Read on the topic",
    "Produce": "Write on the topic",
    "AddPartitionsToTxn": "Write on the topic",
}


def denied(app: str, exc: RpcError | RpcLost) -> ConfigError:
    """Where asking again is in vain: what was refused, and the right that is missing, if one is."""
    if isinstance(exc, RpcError) and exc.code in NO_RIGHT:
        return ConfigError(
            f"{exc}: {app!r} may not use that topic; grant {_RIGHTS.get(exc.api, 'the rights it needs')}"
        )
    return ConfigError(f"{exc}: a topic of {app!r} cannot be made ready; see the broker's words")


def deleted_by(configs: Mapping[str, str]) -> str:
    """The settings of a topic by which Kafka deletes its records, whatever is in them; empty where it does not."""
    if "delete" not in configs.get("cleanup.policy", ""):
        return ""
    limits = [f"{name}={configs[name]}" for name in KEPT if configs.get(name, "-1") != "-1"]
    return ", ".join([f"cleanup.policy={configs['cleanup.policy']}", *limits]) if limits else ""


class Topics:
    """Metadata of every topic of the app, fresh when asked; creates what is missing of its own."""

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        plan: Plan,
        *,
        replication_factor: int | None,
        say: Callable[[str], None],
        keys_bytes: int = 10 << 20,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._plan = plan
        self._replication_factor = replication_factor
        self._say = say
        self._keys_bytes = keys_bytes
        # Partition count -> where keys go; tables and sinks of all tasks share what is known.
        self._places: dict[int, KeyPartitions] = {}
        self._created_with = {plan.marks_topic: Marks.topic_config, plan.positions_topic: _POSITIONS}
        self.known: dict[str, TopicInfo] = {}
        self.destinations: dict[str, Destination] = {}
        self.configs: dict[str, dict[str, str]] = {}
        # By task, what its position record says of the topics that outputs go to, or is going to say.
        self._recorded: dict[int, dict[str, Sink]] = {}
        self._warned: set[tuple[str, ...]] = set()

    async def ready(self) -> dict[str, int]:
        """Waits for the source topics, creates the internal ones and the sinks; source -> partitions."""
        behind_until = self._clock.monotonic() + BEHIND_S

        async def all_of_them() -> dict[str, TopicInfo]:
            sources = await self._sources()
            tasks = max((info.partitions for info in sources.values()), default=1)
            await self._own(tasks, may_be_behind=self._clock.monotonic() < behind_until)
            return sources

        sources = await self._persist(all_of_them)
        return {name: info.partitions for name, info in sources.items()}

    async def _sources(self) -> dict[str, TopicInfo]:
        names = list(self._plan.sources)
        while True:
            topics = await self._persist(lambda: self._broker.topics(names))
            missing = [name for name in names if name not in topics]
            if not missing:
                self._say("")
                self.known.update(topics)
                return topics
            self._say(
                f"waiting for the source topic{'s' if len(missing) > 1 else ''} {', '.join(missing)}: semel never creates a "
                "source; create it, or start what produces to it"
            )
            await self._clock.sleep(0.5)

    async def refreshed(self, names: list[str]) -> dict[str, TopicInfo]:
        topics = await self._broker.topics(names)
        self.known.update(topics)
        return topics

    async def _own(self, tasks: int, *, may_be_behind: bool) -> None:
        plan = self._plan
        outputs = {t.name: t for t in plan.outputs}
        names = [*plan.sources, *plan.logs, plan.dead_letter_topic, *outputs]
        topics = await self._broker.topics(names)
        source_configs = await self._broker.topic_configs(list(plan.sources)) if plan.sources else {}
        room = str(HEADROOM_BYTES + max((limits_from(c).max_bytes for c in source_configs.values()), default=1_048_588))
        factor, safe = await self._safety()
        await self._fit(topics, tasks, may_be_behind=may_be_behind)
        for name in {*outputs, plan.dead_letter_topic} & topics.keys():
            if (keeper := await self._keeper_of(topics[name])) is not None:
                raise ConfigError(foreign_state.refusal(name, keeper))
        specs: list[TopicSpec] = []
        for name in plan.logs:
            if name in topics:
                continue
            kept = self._created_with.get(name, Rows.topic_config)
            specs.append(TopicSpec(name, tasks, factor, {**kept, **_STAMPED, **safe, "max.message.bytes": room}))
        if plan.dead_letter_topic not in topics:
            kept, given = {**KEPT, **_STAMPED, **safe, "max.message.bytes": room}, plan.dead_letters
            partitions, configs = (None, {}) if given is None else (given.partitions, given.configs)
            specs.append(TopicSpec(plan.dead_letter_topic, partitions or tasks, factor, {**kept, **configs}))
        specs += [self._output(topic, tasks, factor, safe) for name, topic in outputs.items() if name not in topics]
        if specs:
            log.info("creating topics %s", ", ".join(s.name for s in specs))
            await self._broker.create_topics(specs)
            topics = await self._shown(names)
            # Creating what is there is no error: a broker that is behind may not have known of a log.
            await self._fit(topics, tasks, may_be_behind=may_be_behind)
        self.known.update(topics)
        self.configs = await self._broker.topic_configs([*plan.logs, plan.dead_letter_topic, *outputs])
        for topic in outputs.values():
            self._open(topic)
        await self._have_named(tasks)
        self._check_room(source_configs)
        self._check_segments()

    async def _keeper_of(self, topic: TopicInfo) -> str | None:
        """The other app whose state it holds, asked for once."""
        if topic.name in self.known and self.known[topic.name].id == topic.id:
            return None
        return await foreign_state.keeper_of(self._broker, self._plan, topic)

    def _open(self, topic: Topic) -> None:
        limits = limits_from(self.configs[topic.name])
        partitions = self.known[topic.name].partitions
        destination = Destination(topic, partitions, limits, self.place(partitions))
        self.destinations[topic.name] = destination
        for task in self._recorded:
            self._spread(task, destination)

    # -- over how many partitions keys go

    def begin(self) -> None:
        """A takeover begins: what is recorded is yet to be read."""
        self._recorded = {}
        for destination in self.destinations.values():
            destination.begin()

    def recorded(self, task: int, sinks: Mapping[str, Sink]) -> None:
        """What the position record of a task says: where a topic grew since, its keys stay where they went before."""
        self._recorded[task] = dict(sinks)
        for destination in self.destinations.values():
            self._spread(task, destination)

    def sinks(self, task: int) -> dict[str, Sink]:
        """What is to be recorded."""
        return self._recorded.get(task, {})

    def _spread(self, task: int, destination: Destination) -> None:
        """From now on until the next takeover the task's keys go over so many partitions.

        Each task goes by its own record: of two that began while the topic grew, each may have met it otherwise.
        """
        topic, info = destination.topic, self.known[destination.topic.name]
        mine = self._recorded[task].get(info.name)
        others = [r[info.name] for r in self._recorded.values() if info.name in r and r[info.name].id == info.id]
        if mine is not None and mine.id == info.id:
            partitions, least = self._stay(topic, info, mine.partitions), mine.least
        elif others:
            partitions = least = min(sink.partitions for sink in others)
            self._stay(topic, info, partitions)
        else:
            partitions = least = info.partitions
        self._recorded[task][info.name] = Sink(info.id, partitions, min(least, partitions))
        destination.spread(task, self.place(partitions))

    def _stay(self, topic: Topic, info: TopicInfo, before: int) -> int:
        """Where keys went over so many partitions: over how many they go now."""
        if before >= info.partitions:
            # Kafka takes no partition away: a broker that knows of fewer is behind.
            return before
        if topic.partitions == info.partitions:
            self._warn(
                ("moved", info.name, info.id, str(info.partitions)),
                f"outputs to {info.name!r} go over {info.partitions} partitions now, {before} before, as the topic is declared "
                f"with partitions={info.partitions}: keys move, and their later outputs stand in other partitions than the "
                "earlier ones",
            )
            return info.partitions
        self.say_grown(info.name, before, info.partitions)
        return before

    def say_grown(self, name: str, before: int, now: int) -> None:
        self._warn(
            ("grown", name, str(before), str(now)),
            f"topic {name!r} has {now} partitions now, and {before} when {self._plan.app!r} began to write to it: outputs "
            f"go on to the first {before}, so that no key moves. To use all of them, and have keys move at that moment, "
            f"declare Topic({name!r}, partitions={now}) and restart all workers; or give a new topic",
        )

    def _warn(self, once: tuple[str, ...], text: str) -> None:
        if once not in self._warned:
            self._warned.add(once)
            log.warning("%s", text)

    # -- whether what is there will do

    def _check_room(self, source_configs: Mapping[str, dict[str, str]]) -> None:
        """Say where the dead-letter topic does not take what a source takes: one of the two was configured since."""
        letters = self._plan.dead_letter_topic
        room = limits_from(self.configs[letters]).max_bytes
        for name, configs in source_configs.items():
            largest = limits_from(configs).max_bytes
            if largest > room:
                self._warn(
                    ("room", name, str(largest), str(room)),
                    f"source topic {name!r} takes records of {largest} bytes (max.message.bytes), and the dead-letter topic "
                    f"{letters!r} only of {room}: a larger event that fails is dead-lettered without its value. Set "
                    f"max.message.bytes={largest + HEADROOM_BYTES} on {letters!r}",
                )
        if limits_from(self.configs[letters]).compacted:
            raise TopicChanged(
                f"the dead-letter topic {letters!r} is compacted: a dead letter would take away the earlier ones of its key, "
                "and one without a key is refused. Set cleanup.policy=delete,retention.ms=-1,retention.bytes=-1 on it, or Kafka "
                "deletes what is older than its retention; what compaction took is gone"
            )

    async def look_at_retention(self) -> None:
        """TopicChanged where somebody lets Kafka delete state; RpcError, RpcLost where the brokers do not say."""
        self.configs |= await self._broker.topic_configs([*self._plan.logs, self._plan.dead_letter_topic])
        self.check_kept()

    def check_kept(self) -> None:
        """To be asked when it is known that the topics are those of the positions: else there is more to say. TopicChanged."""
        plan, configs = self._plan, self.configs
        for name in plan.logs:
            if by := deleted_by(configs[name]):
                better = "retention.ms=-1,retention.bytes=-1" if name == plan.marks_topic else "cleanup.policy=compact"
                raise TopicChanged(
                    f"topic {name!r}, which holds state of {plan.app!r}, has {by}: Kafka deletes what is older, or more, and "
                    f"what is deleted is lost to every restore. Set {better} on the topic. Where Kafka has deleted already, "
                    "`semel reset` rebuilds state from the source, which writes results again"
                )
        letters = plan.dead_letter_topic
        if by := deleted_by(configs[letters]):
            self._warn(
                ("kept", letters, by),
                f"the dead-letter topic {letters!r} has {by}: Kafka deletes dead letters that are older, or more, whether "
                "somebody has looked at them or not. To keep them for good set retention.ms=-1,retention.bytes=-1 on it",
            )

    async def _fit(self, topics: dict[str, TopicInfo], tasks: int, *, may_be_behind: bool) -> None:
        """State is partitioned as the source is. Where nothing in it belongs to a key it grows with it."""
        for name in self._plan.logs if self._plan.may_grow else ():
            if name in topics and topics[name].partitions < tasks:
                log.info(
                    "%s gets %d partitions, as the source has, instead of %d", name, tasks, topics[name].partitions
                )
                await self._broker.create_partitions(name, tasks)
                topics |= await self._shown([name], tasks)
        self._check_sizes(topics, tasks, may_be_behind=may_be_behind)

    def _check_segments(self) -> None:
        """Say which logs are compacted late. Topics that were there keep their settings: somebody may have chosen them."""
        plan = self._plan
        for name in plan.logs:
            size = int(self.configs[name].get("segment.bytes", "0"))
            if name == plan.marks_topic or size < LARGE_SEGMENT_BYTES:
                continue
            better = self._created_with.get(name, Rows.topic_config)
            self._warn(
                ("segments", name),
                f"{name} has segments of {size >> 20} MiB, and compaction leaves the newest alone: a restart without the local "
                "state reads up to that much of each partition. Set on the topic: "
                + ",".join(f"{key}={value}" for key, value in better.items()),
            )

    def _check_sizes(self, topics: Mapping[str, TopicInfo], tasks: int, *, may_be_behind: bool) -> None:
        """TopicChanged where state and source are not partitioned alike. All of the state differs: it is the source.

        RpcError where a broker may not have heard of all of it yet: sources grow, and a reset has the state grow with them.
        """
        sizes = {name: topics[name].partitions for name in self._plan.logs if name in topics}
        odd = [name for name, size in sizes.items() if size != tasks]
        if not odd:
            return
        before = sizes[odd[0]]
        if may_be_behind:
            raise not_known(f"a broker knows {before} partitions of {odd[0]!r}, and {tasks} of the source")
        if self._plan.sources and all(size == before for size in sizes.values()):
            largest = max(self._plan.sources, key=lambda name: self.known[name].partitions)
            raise source_resized(self._plan.app, largest, before, tasks)
        raise TopicChanged(
            f"topic {odd[0]!r} has {before} partitions, the source has {tasks}: state and source must be partitioned alike. "
            "Run `semel reset` to make it anew, or use another pipeline name"
        )

    async def open_destination(self, topic: Topic, tasks: int) -> Destination:
        """A topic first named by an `Output`, or by a timer: created if missing, as a sink is. OutputRefused where it cannot be
        had."""
        known = self.destinations.get(topic.name)
        if known is None or not known.named:
            if topic.name in KAFKAS_OWN:
                raise OutputRefused(
                    f"output to {topic.name!r}: the brokers keep their own state there and let no client write to it; choose "
                    "another topic"
                )
            if topic.name in self._plan.own_topics:
                raise OutputRefused(
                    f"output to {topic.name!r}: {self._plan.app!r} keeps its own state or dead letters there, which a foreign "
                    "record would damage; choose another topic"
                )
            try:
                await self._persist(lambda: self._have(topic, tasks))
            except ConfigError as exc:
                raise OutputRefused(f"output to {topic.name!r}: {exc}. Or create it by hand") from exc
            if isinstance(topic, UnnamedTopic):
                self._plan.unnamed.append(topic)
            else:
                self._plan.named.append(topic)
                self._plan.unnamed = [t for t in self._plan.unnamed if t.name != topic.name]
        return self.destinations[topic.name]

    async def _have(self, topic: Topic, tasks: int) -> None:
        name = topic.name
        topics = await self._broker.topics([name])
        if name not in topics:
            log.info("creating topic %s", name)
            await self._broker.create_topics([self._output(topic, tasks, *await self._safety())])
            topics = await self._shown([name])
        elif (keeper := await self._keeper_of(topics[name])) is not None:
            raise OutputRefused(f"output to {name!r}: {foreign_state.refusal(name, keeper)}")
        self.known.update(topics)
        self.configs |= await self._broker.topic_configs([name])
        destination = self.destinations.get(name)
        if not (isinstance(topic, UnnamedTopic) and destination is not None and destination.named):
            self._open(topic)

    async def _have_named(self, tasks: int) -> None:
        """Topics that were named before, as they are now; one that cannot be had any more is asked for when it is named."""
        named, unnamed, self._plan.named, self._plan.unnamed = self._plan.named, self._plan.unnamed, [], []
        for topic in (*named, *unnamed):
            self.destinations.pop(topic.name, None)
        for topic in (*named, *unnamed):
            try:
                await self._have(topic, tasks)
            except RpcError as exc:
                log.info("%s: %s", topic.name, exc)
                continue
            (self._plan.unnamed if isinstance(topic, UnnamedTopic) else self._plan.named).append(topic)

    async def _safety(self) -> tuple[int, dict[str, str]]:
        """How many copies a topic of ours has, and what keeps them from being lost."""
        factor = self._replication_factor or (3 if await self._broker.broker_count() >= 3 else 1)
        return factor, {"min.insync.replicas": "2" if factor >= 3 else "1", "unclean.leader.election.enable": "false"}

    def _output(self, topic: Topic, tasks: int, factor: int, safe: Mapping[str, str]) -> TopicSpec:
        # Outputs keep their event's timestamp: with Kafka's default of seven days, results of old events would be deleted as
        # soon as they are written. Give Topic(configs=...) to decide otherwise.
        return TopicSpec(topic.name, topic.partitions or tasks, factor, {**KEPT, **safe, **topic.configs})

    async def _persist(self, request: Callable[[], Awaitable[T]]) -> T:
        """Ask until the broker answers; say so while it does not."""
        told = False

        def waiting(exc: RpcError | RpcLost) -> None:
            nonlocal told
            told = True
            self._say(f"the broker does not answer: {exc}")

        answer = await ask(self._clock, request, waiting=waiting, giving_up=lambda exc: denied(self._plan.app, exc))
        if told:
            self._say("")
        return answer

    async def _shown(self, names: Sequence[str], partitions: int = 1) -> dict[str, TopicInfo]:
        """What was made just now, once the brokers know of it. RpcError where they do not for long: it is made once more."""
        return await see(
            self._clock,
            lambda: self._broker.topics(names),
            lambda shown: all(name in shown and shown[name].partitions >= partitions for name in names),
            within_s=BEHIND_S,
            otherwise=lambda _: not_known(f"{', '.join(names)}: made just now, and the brokers do not show it"),
        )

    def max_bytes(self, topic: str) -> int:
        """What a record's value may have in this topic."""
        return limits_from(self.configs.get(topic, {})).max_bytes - NOT_THE_VALUE_BYTES

    def tombstones_ms(self, topic: str) -> int:
        """For how long at least the topic's compaction keeps a deletion."""
        return int(self.configs.get(topic, {}).get("delete.retention.ms", "86400000"))

    def max_batch_bytes(self, topic: str) -> int:
        """What a batch of records may have in this topic."""
        return limits_from(self.configs.get(topic, {})).max_bytes

    def place(self, partitions: int) -> KeyPartitions:
        """Where keys go among so many partitions."""
        key_partitions = self._places.get(partitions)
        if key_partitions is None:
            key_partitions = self._places[partitions] = KeyPartitions(partitions)
            for place in self._places.values():
                place.limit_bytes = self._keys_bytes // len(self._places)
        return key_partitions

    @property
    def keys_bytes(self) -> int:
        """What is known of where keys go takes so much."""
        return sum(place.bytes for place in self._places.values())

    def partitions(self, names: Mapping[str, object]) -> dict[str, int]:
        return {name: self.known[name].partitions for name in names}
