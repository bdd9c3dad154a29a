"""A Kafka cluster in memory: topics, logs, the two coordinators, and what tests ask of them directly."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass

from semel.codes import Code
from semel.memory.batch import BATCH_OVERHEAD, MemoryRecord, record_size
from semel.memory.faults import Faults
from semel.memory.groups import GroupCoordinator
from semel.memory.journal import Journal
from semel.memory.log import PartitionLog
from semel.memory.refused import Refused
from semel.memory.timers import Timers
from semel.memory.transactions import TransactionCoordinator
from semel.port import TP, Clock, TopicInfo, TopicSpec

TOPIC_DEFAULTS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "compression.type": "producer",
    "delete.retention.ms": "86400000",
    "max.message.bytes": "1048588",
    "message.timestamp.after.max.ms": "3600000",
    "message.timestamp.before.max.ms": "9223372036854775807",
    "message.timestamp.type": "CreateTime",
    "min.cleanable.dirty.ratio": "0.5",
    "min.compaction.lag.ms": "0",
    "min.insync.replicas": "1",
    "retention.bytes": "-1",
    "retention.ms": "604800000",
    "segment.bytes": "1073741824",
    "segment.ms": "604800000",
    "unclean.leader.election.enable": "false",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Broker settings that a test may want otherwise: Kafka 4.1's defaults, but no wait before a first rebalance."""

    brokers: int = 1
    group_initial_rebalance_delay_ms: int = 0
    group_min_session_timeout_ms: int = 6_000
    group_max_session_timeout_ms: int = 1_800_000
    transaction_max_timeout_ms: int = 900_000
    transaction_sweep_ms: int = 10_000


class Topic:
    def __init__(self, spec: TopicSpec, topic_id: str, created: float, journal: Journal | None) -> None:
        self.name = spec.name
        self.id = topic_id
        self.created = created
        # Its last growth: when, and from how many partitions.
        self.grown: tuple[float, int] = (created, 0)
        self.configs: dict[str, str] = {**TOPIC_DEFAULTS, **spec.configs}
        self.logs = [PartitionLog(self.configs, TP(spec.name, p), journal) for p in range(spec.partitions)]


class MemoryCluster:
    """One cluster, shared by all clients of a test; all it draws comes from `rng`, all it waits for from `clock`."""

    def __init__(
        self,
        clock: Clock,
        *,
        rng: random.Random | None = None,
        settings: ClusterSettings | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.clock = clock
        self.settings = settings or ClusterSettings()
        self.rng = rng or random.Random(0)
        self.faults = Faults()
        self._journal = journal
        # What the cluster does is its own work, also where a worker's request sets it off.
        self.context = Context()
        self.timers = Timers(clock, self.context)
        self._topics: dict[str, Topic] = {}
        self._leaders: dict[TP, int] = {}
        self._moves: dict[tuple[str, str], int] = {}
        self.groups = GroupCoordinator(
            self.timers,
            self.rng,
            min_session_timeout_ms=self.settings.group_min_session_timeout_ms,
            max_session_timeout_ms=self.settings.group_max_session_timeout_ms,
            initial_rebalance_delay_ms=self.settings.group_initial_rebalance_delay_ms,
            exists=lambda tp: self.find(tp) is not None,
            journal=journal,
        )
        self.transactions = TransactionCoordinator(
            self.timers,
            self,
            max_timeout_ms=self.settings.transaction_max_timeout_ms,
            sweep_s=self.settings.transaction_sweep_ms / 1000,
            journal=journal,
        )

    # -- what a test does without a client

    def create_topic(self, name: str, partitions: int = 1, configs: Mapping[str, str] | None = None) -> None:
        self.create_topics([TopicSpec(name, partitions, 1, configs or {})])

    def add_partitions(self, name: str, partitions: int) -> None:
        """Grow a topic to so many partitions."""
        topic = self._topics[name]
        if partitions > len(topic.logs):
            topic.grown = self.timers.now(), len(topic.logs)
        while len(topic.logs) < partitions:
            self._leaders[TP(name, len(topic.logs))] = len(topic.logs) % self.settings.brokers
            topic.logs.append(PartitionLog(topic.configs, TP(name, len(topic.logs)), self._journal))

    def alter_topic(self, name: str, configs: Mapping[str, str]) -> None:
        self._topics[name].configs.update(configs)

    def write(
        self,
        tp: TP,
        records: Iterable[tuple[bytes | None, bytes | None]],
        *,
        timestamp: int | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> int:
        """Append (key, value) pairs as one batch outside any transaction; returns the first offset."""
        stamp = self.now_ms() if timestamp is None else timestamp
        batch = [MemoryRecord(stamp, key, value, tuple(headers)) for key, value in records]
        size = sum(record_size(i, 0, r.key, r.value, r.headers) for i, r in enumerate(batch))
        return self.log(tp).append_plain(batch, BATCH_OVERHEAD + size, self.now_ms())

    def compact(self, tp: TP) -> None:
        self.timers.run_due()
        self.log(tp).compact(self.now_ms())

    def committed(self, topic: str) -> list[list[MemoryRecord]]:
        """Per partition, every record of the topic that is committed, in the order of the log."""
        self.timers.run_due()
        return [log.committed() for log in self._topics[topic].logs]

    def log(self, tp: TP) -> PartitionLog:
        log = self.find(tp)
        if log is None:
            raise KeyError(tp)
        return log

    def move_leader(self, tp: TP, node: int) -> None:
        """Clients that still ask the old leader hear 6 (NOT_LEADER_OR_FOLLOWER)."""
        self._leaders[tp] = node

    def move_coordinator(self, kind: str, name: str, *, behind_s: float = 0.0) -> None:
        """`kind` is "group" or "transaction". Every client hears 16 (NOT_COORDINATOR) once, waiting ones now.

        A group is what its coordinator had written of it; for `behind_s` it answers with offsets of long ago.
        """
        self._moves[kind, name] = self.coordinator_moves(kind, name) + 1
        group = self.groups.group(name) if kind == "group" else None
        if group is not None:
            group.reload()
            self.groups.answer_former_offsets(name, behind_s)

    # -- what the client's side asks

    def now_ms(self) -> int:
        return int(self.clock.time() * 1000)

    def find(self, tp: TP) -> PartitionLog | None:
        topic = self._topics.get(tp.topic)
        return topic.logs[tp.partition] if topic is not None and 0 <= tp.partition < len(topic.logs) else None

    def leader(self, tp: TP) -> int | None:
        return self._leaders.get(tp)

    def coordinator_moves(self, kind: str, name: str) -> int:
        return self._moves.get((kind, name), 0)

    def topics(self) -> Mapping[str, Topic]:
        return self._topics

    def topic_info(self, name: str) -> TopicInfo | None:
        topic = self.known_topic(name)
        if topic is None:
            return None
        at, before = topic.grown
        heard = not before or self.timers.now() >= at + self.faults.metadata_delay_s()
        return TopicInfo(name, topic.id, len(topic.logs) if heard else before)

    def known_topic(self, name: str) -> Topic | None:
        """None also where the broker that happens to be asked has not heard of it yet: brokers learn of topics one by one."""
        topic = self._topics.get(name)
        return topic if topic is None or self.timers.now() >= topic.created + self.faults.metadata_delay_s() else None

    def create_topics(self, specs: Sequence[TopicSpec], *, validate_only: bool = False) -> None:
        for spec in specs:
            if spec.name in self._topics:
                continue
            if spec.partitions < 1:
                raise Refused(Code.INVALID_PARTITIONS, f"{spec.name}: {spec.partitions} partitions")
            if not 1 <= spec.replication_factor <= self.settings.brokers:
                raise Refused(
                    Code.INVALID_REPLICATION_FACTOR, f"{spec.name}: replication factor {spec.replication_factor}"
                )
            if validate_only:
                continue
            topic_id = f"{self.rng.getrandbits(128):032x}"
            self._topics[spec.name] = Topic(spec, topic_id, self.timers.now(), self._journal)
            for partition in range(spec.partitions):
                self._leaders[TP(spec.name, partition)] = partition % self.settings.brokers

    def delete_topics(self, names: Sequence[str]) -> None:
        for name in names:
            topic = self._topics.pop(name, None)
            if topic is None:
                continue
            for partition in range(len(topic.logs)):
                del self._leaders[TP(name, partition)]
            if self._journal is not None:
                self._journal.topic_deleted(name)
        self.groups.forget_topics(names)

    # -- what the transaction coordinator asks

    def write_marker(self, tp: TP, producer_id: int, epoch: int, *, commit: bool) -> None:
        log = self.find(tp)
        if log is not None:
            log.end_transaction(producer_id, epoch, commit=commit, now_ms=self.now_ms())

    def end_group_transaction(self, group: str, producer_id: int, *, commit: bool) -> None:
        self.groups.end_transaction(group, producer_id, commit=commit)

    def marker_delay_s(self) -> float:
        return self.faults.marker_delay_s()
