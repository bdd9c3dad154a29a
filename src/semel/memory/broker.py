"""The port's `Broker` in memory: one client's connection to a `MemoryCluster`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

from semel.codes import STALE_COORDINATOR, STALE_METADATA, Code, severity
from semel.memory.batch import MemoryBatchBuilder, decode
from semel.memory.cluster import MemoryCluster
from semel.memory.connection import Connection
from semel.memory.log import PartitionLog
from semel.memory.refused import Refused
from semel.port import (
    EARLIEST,
    LATEST,
    NO_TOPIC_ID,
    TP,
    BatchBuilder,
    Fetched,
    FetchRequest,
    GroupInfo,
    Joined,
    Membership,
    OpenTransaction,
    Producer,
    Right,
    TopicInfo,
    TopicSpec,
)
from semel.throttles import Throttles


class MemoryBroker:
    """One client. `name` is what `cluster.faults` knows it by: a worker that restarts is another client. `source_wait_ms`:
    for how long polls of the source wait for a record, else as long as they say.

    Its calls take effect one turn of the event loop after they are made, its answers arrive one turn later. A call
    whose request is delayed beyond `rpc_timeout_ms` is lost to the client and takes effect all the same when it
    arrives.
    """

    def __init__(
        self,
        cluster: MemoryCluster,
        name: str = "client",
        *,
        rpc_timeout_ms: int = 2_000,
        source_wait_ms: int | None = None,
    ) -> None:
        self.cluster = cluster
        self.name = name
        self._source_wait_ms = source_wait_ms
        self._connection = Connection(cluster, name, rpc_timeout_ms / 1000, self._forget)
        self._leaders: dict[TP, int] = {}
        self._coordinators: dict[tuple[str, str], int] = {}
        self._rebalance_s: dict[str, float] = {}

    @property
    def throttles(self) -> Throttles:
        return self._connection.throttles

    async def start(self) -> None:
        await self._connection.open()

    async def close(self) -> None:
        """Calls still waiting are lost."""
        self._connection.close()

    # -- topics

    async def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        def apply() -> dict[str, TopicInfo]:
            topics: dict[str, TopicInfo] = {}
            for name in self.cluster.topics() if names is None else names:
                if names is not None:
                    self._may(name, "Describe")
                info = self.cluster.topic_info(name)
                if info is not None:
                    topics[name] = info
                    self._learn_leaders([TP(name, partition) for partition in range(info.partitions)])
            return topics

        return await self._connection.call("Metadata", {"names": names}, apply)

    async def broker_count(self) -> int:
        return await self._connection.call("Metadata", {"names": ()}, lambda: self.cluster.settings.brokers)

    async def create_topics(self, specs: Sequence[TopicSpec], *, validate_only: bool = False) -> None:
        await self._connection.call(
            "CreateTopics",
            {"specs": specs, "validate_only": validate_only},
            lambda: self.cluster.create_topics(specs, validate_only=validate_only),
        )

    async def create_partitions(self, name: str, partitions: int) -> None:
        def apply() -> None:
            if self.cluster.known_topic(name) is None:
                raise Refused(Code.UNKNOWN_TOPIC_OR_PARTITION, f"topic {name}")
            self.cluster.add_partitions(name, partitions)

        await self._connection.call("CreatePartitions", {"name": name, "partitions": partitions}, apply)

    async def delete_topics(self, topics: Sequence[TopicInfo]) -> None:
        def apply() -> None:
            known = self.cluster.topics()
            self.cluster.delete_topics([t.name for t in topics if t.name in known and known[t.name].id == t.id])

        await self._connection.call("DeleteTopics", {"names": [t.name for t in topics]}, apply)

    async def topic_configs(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        def apply() -> dict[str, dict[str, str]]:
            configs: dict[str, dict[str, str]] = {}
            for name in names:
                topic = self.cluster.known_topic(name)
                if topic is None:
                    raise Refused(Code.UNKNOWN_TOPIC_OR_PARTITION, f"topic {name}")
                configs[name] = dict(topic.configs)
            return configs

        return await self._connection.call("DescribeConfigs", {"names": names}, apply)

    async def delete_records(self, before: Mapping[TP, int]) -> None:
        def apply() -> None:
            for tp, offset in before.items():
                self._led(tp).delete_before(offset)

        await self._connection.call("DeleteRecords", {"before": before}, apply)

    # -- rights

    async def topic_rights(self, names: Sequence[str]) -> dict[str, frozenset[Right]]:
        def apply() -> dict[str, frozenset[Right]]:
            denies = self.cluster.faults.denies
            for name in names:
                self._may(name, "Describe")
            there = [name for name in names if self.cluster.topic_info(name) is not None]
            return {name: frozenset(right for right in get_args(Right) if not denies(name, right)) for name in there}

        return await self._connection.call("Metadata", {"names": names, "rights": True}, apply)

    async def group_rights(self, group: str) -> frozenset[Right] | None:
        def apply() -> frozenset[Right]:
            self._coordinator("group", group)
            return frozenset(("Read", "Describe", "Delete"))

        return await self._connection.call("DescribeGroups", {"group": group}, apply)

    async def find_writer(self, transactional_id: str) -> None:
        await self._connection.call("FindCoordinator", {"key": transactional_id}, lambda: None)

    # -- logs

    async def leaders(self, tps: Sequence[TP]) -> dict[TP, int]:
        if any(tp not in self._leaders for tp in tps):
            await self._connection.call(
                "Metadata", {"names": sorted({tp.topic for tp in tps})}, lambda: self._learn_leaders(tps)
            )
        return {tp: self._leaders[tp] for tp in tps if tp in self._leaders}

    async def fetch(self, request: FetchRequest) -> dict[TP, Fetched]:
        if request.purpose == "source" and self._source_wait_ms is not None:
            request = replace(request, max_wait_ms=self._source_wait_ms)

        async def apply() -> dict[TP, Fetched]:
            deadline = self.cluster.timers.now() + request.max_wait_ms / 1000
            while True:
                answer, taken = self._read(request)
                if taken or any(fetched.error for fetched in answer.values()):
                    return answer
                logs = [log for log in map(self.cluster.find, request.offsets) if log is not None]
                if not await self._connection.changed(logs, deadline):
                    return answer

        args = {
            "node": request.node,
            "wants": request.offsets,
            "committed": request.committed,
            "purpose": request.purpose,
        }
        answer = await self._connection.call("Fetch", args, apply)
        for tp, fetched in answer.items():
            if fetched.error in STALE_METADATA:
                self._leaders.pop(tp, None)
        return answer

    async def list_offsets(self, tps: Sequence[TP], at: int, *, committed: bool = False) -> dict[TP, int]:
        def offset(log: PartitionLog) -> int:
            if at == EARLIEST:
                return log.log_start
            if at == LATEST:
                return log.last_stable_offset if committed else log.end
            return log.offset_at(at, committed=committed)

        args = {"tps": tps, "at": at, "committed": committed}

        def apply() -> dict[TP, int]:
            for tp in tps:
                self._may(tp.topic, "Describe")
            return {tp: offset(self._led(tp)) for tp in tps}

        return await self._connection.call("ListOffsets", args, apply)

    async def open_transactions(self, tps: Sequence[TP]) -> dict[TP, tuple[OpenTransaction, ...]]:
        def of(tp: TP) -> tuple[OpenTransaction, ...]:
            name_of = self.cluster.transactions.name_of
            open_here = self._led(tp).open_transactions()
            return tuple(OpenTransaction(name_of(holder), holder, start) for holder, start in open_here.items())

        return await self._connection.call("DescribeProducers", {"tps": tps}, lambda: {tp: of(tp) for tp in tps})

    # -- transactions

    def batch_builder(self, max_bytes: int) -> BatchBuilder:
        return MemoryBatchBuilder(max_bytes, self.cluster.now_ms)

    async def init_producer_id(self, transactional_id: str, timeout_ms: int) -> Producer:
        def apply() -> Producer:
            self._coordinator("transaction", transactional_id)
            return self.cluster.transactions.init_producer_id(transactional_id, timeout_ms)

        args = {"transactional_id": transactional_id, "timeout_ms": timeout_ms}
        return await self._connection.call("InitProducerId", args, apply)

    async def add_partitions(self, producer: Producer, tps: Sequence[TP]) -> None:
        def apply() -> None:
            self._coordinator("transaction", producer.transactional_id)
            for tp in tps:
                self._may(tp.topic, "Write")
                if self.cluster.find(tp) is None:
                    raise Refused(Code.UNKNOWN_TOPIC_OR_PARTITION, f"no partition {tp.topic}-{tp.partition}")
            self.cluster.transactions.add_partitions(producer, tps)

        await self._connection.call("AddPartitionsToTxn", {"producer": producer, "tps": tps}, apply)

    async def add_offsets(self, producer: Producer, group: str) -> None:
        def apply() -> None:
            self._coordinator("transaction", producer.transactional_id)
            self.cluster.transactions.add_group(producer, group)

        await self._connection.call("AddOffsetsToTxn", {"producer": producer, "group": group}, apply)

    async def produce(self, producer: Producer, batches: Mapping[TP, bytes]) -> dict[TP, int]:
        def apply() -> dict[TP, int]:
            bases: dict[TP, int] = {}
            worst: Refused | None = None
            for tp, data in batches.items():
                try:
                    bases[tp] = self._append(producer, tp, data)
                except Refused as error:
                    detail = f"{tp.topic}-{tp.partition}: {error.detail}"
                    if worst is None or severity(error.code) > severity(worst.code):
                        worst = Refused(error.code, detail)
            if worst is not None:
                raise worst
            return bases

        return await self._connection.call("Produce", {"producer": producer, "batches": batches}, apply)

    async def commit_offsets(self, producer: Producer, membership: Membership, offsets: Mapping[TP, int]) -> None:
        if membership.generation < 0 or not membership.member_id:
            raise ValueError(f"an unfenced commit: {membership}")

        def apply() -> None:
            self._coordinator("group", membership.group)
            for tp in offsets:
                self._may(tp.topic, "Read")
            self.cluster.transactions.verify(producer, group=membership.group)
            self.cluster.groups.commit_in_transaction(producer, membership, offsets)

        args = {"producer": producer, "membership": membership, "offsets": offsets}
        await self._connection.call("TxnOffsetCommit", args, apply)

    async def end_txn(self, producer: Producer, *, commit: bool) -> None:
        def apply() -> None:
            self._coordinator("transaction", producer.transactional_id)
            self.cluster.transactions.end(producer, commit=commit)

        await self._connection.call("EndTxn", {"producer": producer, "commit": commit}, apply)

    # -- the group

    async def join_group(
        self,
        group: str,
        member_id: str,
        instance_id: str | None,
        metadata: bytes,
        *,
        session_timeout_ms: int,
        rebalance_timeout_ms: int,
        topics: Sequence[str] = (),
    ) -> Joined:
        self._rebalance_s[group] = rebalance_timeout_ms / 1000

        async def apply() -> Joined:
            self._coordinator("group", group)
            future = self.cluster.groups.join(
                group,
                member_id,
                instance_id,
                metadata,
                session_timeout_ms=session_timeout_ms,
                rebalance_timeout_ms=rebalance_timeout_ms,
                client=self.name,
            )
            return await self._connection.answer(future, rebalance_timeout_ms / 1000)

        args = {
            "group": group,
            "member_id": member_id,
            "instance_id": instance_id,
            "metadata": metadata,
            "topics": tuple(topics),
        }
        return await self._connection.call("JoinGroup", args, apply)

    async def sync_group(self, membership: Membership, assignments: Mapping[str, bytes]) -> bytes:
        async def apply() -> bytes:
            self._coordinator("group", membership.group)
            future = self.cluster.groups.sync(membership, assignments)
            return await self._connection.answer(future, self._rebalance_s.get(membership.group, 60.0))

        return await self._connection.call("SyncGroup", {"membership": membership, "assignments": assignments}, apply)

    async def heartbeat(self, membership: Membership) -> None:
        def apply() -> None:
            self._coordinator("group", membership.group)
            self.cluster.groups.heartbeat(membership)

        await self._connection.call("Heartbeat", {"membership": membership}, apply)

    async def leave_group(self, membership: Membership) -> None:
        def apply() -> None:
            self._coordinator("group", membership.group)
            self.cluster.groups.leave(membership)

        await self._connection.call("LeaveGroup", {"membership": membership}, apply)

    async def describe_group(self, group: str) -> GroupInfo:
        def apply() -> GroupInfo:
            self._coordinator("group", group)
            return self.cluster.groups.describe(group)

        return await self._connection.call("DescribeGroups", {"group": group}, apply)

    async def stable_offsets(self, group: str, tps: Sequence[TP]) -> dict[TP, int]:
        def apply() -> dict[TP, int]:
            self._coordinator("group", group)
            return self.cluster.groups.answered_offsets(group, tps)

        return await self._connection.call("OffsetFetch", {"group": group, "tps": tps}, apply)

    async def set_group_offsets(self, group: str, offsets: Mapping[TP, int]) -> None:
        def apply() -> None:
            self._coordinator("group", group)
            self.cluster.groups.set_offsets(group, offsets)

        await self._connection.call("OffsetCommit", {"group": group, "offsets": offsets}, apply)

    # -- at the brokers

    def _forget(self, code: int) -> None:
        """What an error makes stale."""
        if code in STALE_METADATA:
            self._leaders.clear()
        if code in STALE_COORDINATOR:
            self._coordinators.clear()

    def _learn_leaders(self, tps: Sequence[TP]) -> None:
        for tp in tps:
            node = self.cluster.leader(tp)
            if node is None or self.cluster.faults.denies(tp.topic, "Describe"):
                self._leaders.pop(tp, None)
            else:
                self._leaders[tp] = node

    def _led(self, tp: TP) -> PartitionLog:
        """The log, if we ask its leader."""
        log = self.cluster.find(tp)
        if log is None:
            raise Refused(Code.UNKNOWN_TOPIC_OR_PARTITION, f"no partition {tp.topic}-{tp.partition}")
        node = self.cluster.leader(tp)
        if self._leaders.setdefault(tp, -1 if node is None else node) != node:
            raise Refused(Code.NOT_LEADER_OR_FOLLOWER, f"{tp.topic}-{tp.partition} is led by {node}")
        return log

    def _coordinator(self, kind: str, name: str) -> None:
        moves = self.cluster.coordinator_moves(kind, name)
        if self._coordinators.setdefault((kind, name), moves) != moves:
            raise Refused(Code.NOT_COORDINATOR, f"the coordinator of {name} moved")

    def _may(self, topic: str, right: str) -> None:
        if self.cluster.faults.denies(topic, right):
            raise Refused(Code.TOPIC_AUTHORIZATION_FAILED, f"{right} on topic {topic}")

    def _append(self, producer: Producer, tp: TP, data: bytes) -> int:
        self._may(tp.topic, "Write")
        log = self._led(tp)
        batch = decode(data)
        if not log.has_open(batch.producer_id, batch.epoch):
            writer = Producer(producer.transactional_id, batch.producer_id, batch.epoch)
            self.cluster.transactions.verify(writer, tp=tp)
        return log.append(batch, self.cluster.now_ms())

    def _read(self, request: FetchRequest) -> tuple[dict[TP, Fetched], int]:
        answer: dict[TP, Fetched] = {}
        left, taken = request.max_bytes, 0
        for tp, offset in request.offsets.items():
            log = self.cluster.find(tp)
            if self.cluster.faults.denies(tp.topic, "Read"):
                answer[tp] = Fetched([], offset, -1, -1, -1, error=Code.TOPIC_AUTHORIZATION_FAILED)
            elif log is None:
                answer[tp] = Fetched([], offset, -1, -1, -1, error=Code.UNKNOWN_TOPIC_OR_PARTITION)
            elif self.cluster.leader(tp) != request.node:
                answer[tp] = Fetched([], offset, -1, -1, -1, error=Code.NOT_LEADER_OR_FOLLOWER)
            elif request.topic_ids.get(tp.topic) not in (None, NO_TOPIC_ID, self.cluster.topics()[tp.topic].id):
                answer[tp] = Fetched([], offset, -1, -1, -1, error=Code.UNKNOWN_TOPIC_ID)
            else:
                answer[tp], size = log.read(
                    offset,
                    committed=request.committed,
                    max_bytes=min(left, request.partition_max_bytes),
                    at_least_one=not taken,
                )
                taken += size
                left -= size
        return answer, taken
