"""The topics an app needs: waited for where they are the user's, created where they are its own (protocol rules 17, 18, 21)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from semel.errors import OutputRefused, TopicChanged
from semel.partitioner import KeyPartitions
from semel.plan import Plan
from semel.port import Broker, Clock, RpcError, RpcLost, TopicInfo, TopicSpec
from semel.runtime.decide import source_resized
from semel.stages.answers import needs_a_person
from semel.stages.sink import Destination, limits_from
from semel.topic import Topic

log = logging.getLogger("semel.topics")

# Room for the headers semel appends to a dead letter, and for the key beside a row.
HEADROOM_BYTES = 65_536
_KEEP = {"retention.ms": "-1", "retention.bytes": "-1"}
# What semel writes there for itself has no time but that of the broker: a worker whose clock is ahead stops nothing.
_STAMPED = {"message.timestamp.type": "LogAppendTime"}


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
        self.known: dict[str, TopicInfo] = {}
        self.destinations: dict[str, Destination] = {}
        self.configs: dict[str, dict[str, str]] = {}

    async def ready(self) -> dict[str, int]:
        """Waits for the source topics, creates the internal ones and the sinks; source -> partitions."""
        sources = await self._sources()
        partitions = {name: info.partitions for name, info in sources.items()}
        tasks = max(partitions.values(), default=1)
        await self._persist(lambda: self._own(tasks))
        return partitions

    async def _sources(self) -> dict[str, TopicInfo]:
        names = list(self._plan.sources)
        while True:
            found = await self._persist(lambda: self._broker.topics(names))
            missing = [name for name in names if name not in found]
            if not missing:
                self._say("")
                self.known.update(found)
                return found
            self._say(
                f"waiting for the source topic{'s' if len(missing) > 1 else ''} {', '.join(missing)}: semel never creates a "
                "source; create it, or start what produces to it"
            )
            await self._clock.sleep(0.5)

    async def refreshed(self, names: list[str]) -> dict[str, TopicInfo]:
        found = await self._broker.topics(names)
        self.known.update(found)
        return found

    async def _own(self, tasks: int) -> None:
        plan = self._plan
        outputs = {t.name: t for t in plan.outputs}
        names = [*plan.sources, *plan.logs, plan.dead_letter_topic, *outputs]
        found = await self._broker.topics(names)
        source_configs = await self._broker.topic_configs(list(plan.sources)) if plan.sources else {}
        room = str(HEADROOM_BYTES + max((limits_from(c).max_bytes for c in source_configs.values()), default=1_048_588))
        brokers = await self._broker.broker_count()
        factor = self._replication_factor or (3 if brokers >= 3 else 1)
        safe = {"min.insync.replicas": "2" if factor >= 3 else "1", "unclean.leader.election.enable": "false"}
        self._check_sizes(found, tasks)
        specs: list[TopicSpec] = []
        for name in plan.logs:
            if name in found:
                continue
            if name == plan.marks_topic:
                kept = {"cleanup.policy": "delete", **_KEEP, "segment.bytes": str(16 << 20)}
            else:
                kept = {"cleanup.policy": "compact", "delete.retention.ms": "86400000"}
            specs.append(TopicSpec(name, tasks, factor, {**kept, **_STAMPED, **safe, "max.message.bytes": room}))
        if plan.dead_letter_topic not in found:
            kept = {**_KEEP, **_STAMPED, **safe, "max.message.bytes": room}
            specs.append(TopicSpec(plan.dead_letter_topic, tasks, factor, kept))
        for name, topic in outputs.items():
            if name not in found:
                # Outputs keep their event's timestamp: with Kafka's default of seven days, results of old events would be
                # deleted as soon as they are written. Give Topic(configs=...) to decide otherwise.
                specs.append(TopicSpec(name, topic.partitions or tasks, factor, {**_KEEP, **safe, **topic.configs}))
        if specs:
            log.info("creating topics %s", ", ".join(s.name for s in specs))
            await self._broker.create_topics(specs)
            while len(found := await self._broker.topics(names)) < len(set(names)):
                await self._clock.sleep(0.05)
            # Creating what is there is no error: a broker that is behind may not have known of a log.
            self._check_sizes(found, tasks)
        self.known.update(found)
        self.configs = await self._broker.topic_configs([*plan.logs, plan.dead_letter_topic, *outputs])
        for name, topic in outputs.items():
            partitions = found[name].partitions
            limits = limits_from(self.configs[name])
            self.destinations[name] = Destination(topic, partitions, limits, self.place(partitions))

    def _check_sizes(self, found: Mapping[str, TopicInfo], tasks: int) -> None:
        """TopicChanged where state and source are not partitioned alike. All of the state differs: it is the source."""
        sizes = {name: found[name].partitions for name in self._plan.logs if name in found}
        odd = [name for name, size in sizes.items() if size != tasks]
        if not odd:
            return
        before = sizes[odd[0]]
        if self._plan.sources and all(size == before for size in sizes.values()):
            largest = max(self._plan.sources, key=lambda name: self.known[name].partitions)
            raise source_resized(self._plan.app, largest, before, tasks)
        raise TopicChanged(
            f"topic {odd[0]!r} has {before} partitions, the source has {tasks}: state and source must be partitioned alike. "
            "Run `semel reset` to make it anew, or use another pipeline name"
        )

    async def open_destination(self, topic: Topic, tasks: int) -> Destination:
        """A topic first named by an `Output`: created if missing, as a sink is."""
        known = self.destinations.get(topic.name)
        if known is None:
            if topic.name in self._plan.own_topics:
                raise OutputRefused(
                    f"output to {topic.name!r}: {self._plan.app!r} keeps its own state or dead letters there, which a foreign "
                    "record would damage; choose another topic"
                )
            self._plan.outputs.append(topic)
            await self._persist(lambda: self._own(tasks))
            known = self.destinations[topic.name]
        return known

    async def _persist(self, request: Callable[[], object]) -> dict[str, TopicInfo]:
        """Ask until the broker answers; say so while it does not."""
        pause, told = 0.1, False
        while True:
            try:
                found = await request()  # pyright: ignore[reportGeneralTypeIssues,reportUnknownVariableType]
            except (RpcError, RpcLost) as exc:
                if needs_a_person(exc):
                    raise
                self._say(f"the broker does not answer: {exc}")
                told = True
                await self._clock.sleep(pause)
                pause = min(pause * 1.5, 1.0)
                continue
            if told:
                self._say("")
            return found  # pyright: ignore[reportReturnType,reportUnknownVariableType]

    def max_bytes(self, topic: str) -> int:
        """What a record's value may have in this topic."""
        return limits_from(self.configs.get(topic, {})).max_bytes - 1024

    def tombstones_ms(self, topic: str) -> int:
        """For how long at least the topic's compaction keeps a deletion."""
        return int(self.configs.get(topic, {}).get("delete.retention.ms", "86400000"))

    def max_batch_bytes(self, topic: str) -> int:
        """What a batch of records may have in this topic."""
        return limits_from(self.configs.get(topic, {})).max_bytes

    def place(self, partitions: int) -> KeyPartitions:
        """Where keys go among so many partitions."""
        found = self._places.get(partitions)
        if found is None:
            found = self._places[partitions] = KeyPartitions(partitions)
            for place in self._places.values():
                place.limit_bytes = self._keys_bytes // len(self._places)
        return found

    @property
    def keys_bytes(self) -> int:
        """What is known of where keys go takes so much."""
        return sum(place.bytes for place in self._places.values())

    def partitions(self, names: Mapping[str, object]) -> dict[str, int]:
        return {name: self.known[name].partitions for name in names}
