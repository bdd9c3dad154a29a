"""The port's calls of a transaction: one producer, fenced by its id, its group and its generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semel.codes import Code
from semel.kafka import apis
from semel.kafka.client import Calls, by_topic, in_parallel, partitions_by_topic
from semel.kafka.cluster import Kind
from semel.kafka.records import Batch
from semel.kafka.wire import Answer, Call
from semel.port import TP, BatchBuilder, Membership, Producer

_ACKS_ALL = -1
_UNKNOWN_EPOCH = -1


class TransactionCalls(Calls):
    _codec: int

    def batch_builder(self, max_bytes: int) -> BatchBuilder:
        return Batch(max_bytes, self._codec)

    async def init_producer_id(self, transactional_id: str, timeout_ms: int) -> Producer:
        answer = await self._to_coordinator(
            Kind.TRANSACTION, transactional_id, apis.INIT_PRODUCER_ID(transactional_id, timeout_ms, -1, -1)
        )
        _, code, producer_id, epoch = answer
        self._check_producer(apis.INIT_PRODUCER_ID.name, code, transactional_id)
        return Producer(transactional_id, producer_id, epoch)

    async def add_partitions(self, producer: Producer, tps: Sequence[TP]) -> None:
        call = apis.ADD_PARTITIONS(*producer, partitions_by_topic(tps))
        _, topics = await self._to_coordinator(Kind.TRANSACTION, producer.transactional_id, call)
        self._client.check(
            call.api.name, _partition_rows(topics), coordinator=(Kind.TRANSACTION, producer.transactional_id)
        )

    async def add_offsets(self, producer: Producer, group: str) -> None:
        call = apis.ADD_OFFSETS(*producer, group)
        _, code = await self._to_coordinator(Kind.TRANSACTION, producer.transactional_id, call)
        self._check_producer(call.api.name, code, producer.transactional_id)

    async def produce(self, producer: Producer, batches: Mapping[TP, bytes]) -> dict[TP, int]:
        deadline = self._client.deadline()
        name = apis.PRODUCE.name
        # The broker gives up before we do: its REQUEST_TIMED_OUT says more than silence.
        timeout_ms = self._client.rpc_timeout_ms * 3 // 4

        async def ask(node: int, part: Mapping[TP, bytes]) -> dict[TP, int]:
            call = apis.PRODUCE(producer.transactional_id, _ACKS_ALL, timeout_ms, by_topic(part))
            topics, _ = await self._client.ask(node, call, deadline)
            rows = [
                (TP(topic, partition), code, offset, _reason(record_errors, text))
                for topic, partitions in topics
                for partition, code, offset, _, _, record_errors, text in partitions
            ]
            self._client.check(
                name, ((tp, code, text) for tp, code, _, text in rows if code != Code.DUPLICATE_SEQUENCE_NUMBER)
            )
            return {tp: -1 if code else offset for tp, code, offset, _ in rows}

        split = await self._client.by_leader(name, batches, deadline)
        answers = await in_parallel(name, [ask(node, part) for node, part in split.items()])
        return {tp: offset for answer in answers for tp, offset in answer.items()}

    async def commit_offsets(self, producer: Producer, membership: Membership, offsets: Mapping[TP, int]) -> None:
        if membership.generation < 0 or not membership.member_id:
            raise ValueError(f"offsets are committed only under a generation and a member id, not under {membership}")
        rows = {tp: (offset, _UNKNOWN_EPOCH, "") for tp, offset in offsets.items()}
        call = apis.TXN_OFFSET_COMMIT(
            producer.transactional_id,
            membership.group,
            producer.id,
            producer.epoch,
            membership.generation,
            membership.member_id,
            membership.instance_id,
            [(topic, [(p, *row) for p, row in partitions]) for topic, partitions in by_topic(rows)],
        )
        _, topics = await self._to_coordinator(Kind.GROUP, membership.group, call)
        self._client.check(call.api.name, _partition_rows(topics), coordinator=(Kind.GROUP, membership.group))

    async def find_writer(self, transactional_id: str) -> None:
        client = self._client
        await client.find_coordinator(Kind.TRANSACTION, transactional_id, client.deadline())

    async def end_txn(self, producer: Producer, *, commit: bool) -> None:
        call = apis.END_TXN(*producer, commit)
        _, code = await self._to_coordinator(Kind.TRANSACTION, producer.transactional_id, call)
        self._check_producer(call.api.name, code, producer.transactional_id)

    async def _to_coordinator(self, kind: Kind, key: str, call: Call) -> Answer:
        return await self._client.ask_coordinator(kind, key, call, self._client.deadline())

    def _check_producer(self, api: str, code: int, transactional_id: str) -> None:
        self._client.check(api, [(None, code, None)], coordinator=(Kind.TRANSACTION, transactional_id))


def _partition_rows(
    topics: Sequence[tuple[str, Sequence[tuple[int, int]]]],
) -> list[tuple[TP | None, int, str | None]]:
    return [(TP(topic, partition), code, None) for topic, partitions in topics for partition, code in partitions]


def _reason(record_errors: Sequence[tuple[int, str | None]], text: str | None) -> str | None:
    messages = [f"record {index}: {message}" for index, message in record_errors if message]
    return "; ".join([*([text] if text else []), *messages[:3]]) or None
