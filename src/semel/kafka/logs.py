"""The port's calls about logs: leaders, fetching, offsets, and who holds a partition's stable offset back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from semel.codes import STALE_METADATA, Code
from semel.kafka import apis, records
from semel.kafka.client import Calls, by_topic, in_parallel, looked_up, partitions_by_topic
from semel.kafka.wire import Answer
from semel.port import TP, Fetched, FetchRequest, OpenTransaction, RpcError, RpcLost, TooLarge, record_bytes

_CONSUMER = -1
_NO_SESSION, _FINAL_EPOCH = 0, -1
_UNKNOWN_EPOCH = -1
_UNKNOWN_OFFSET = -1
# How many times as large as it was on the wire a partition's part of an answer may become: beyond, batches are left unread.
_DECOMPRESSED = 8


class LogCalls(Calls):
    async def leaders(self, tps: Sequence[TP]) -> dict[TP, int]:
        return await looked_up(apis.METADATA.name, self._client.leaders(tps, self._client.deadline()))

    async def fetch(self, request: FetchRequest) -> dict[TP, Fetched]:
        asked_for, most_of_each = request.offsets, request.partition_max_bytes
        deadline = self._client.deadline(request.max_wait_ms)
        ids = await self._topic_ids(request, deadline)
        if all(map(any, ids.values())):
            api, meant, last_epoch = apis.FETCH, ids, (_UNKNOWN_EPOCH,)
        else:
            # Brokers that give topics no ids ask for names.
            api, meant, last_epoch = apis.FETCH_BY_NAME, {name: name for name in ids}, ()
        names = {topic: name for name, topic in meant.items()}
        fetched: dict[TP, Fetched] = {}
        rows: dict[TP, tuple[int, ...]] = {}
        for tp, offset in asked_for.items():
            if tp.topic in ids:
                rows[tp] = (_UNKNOWN_EPOCH, offset, *last_epoch, _UNKNOWN_OFFSET, most_of_each)
            else:
                fetched[tp] = Fetched([], offset, -1, -1, -1, self._client.cluster.why(tp.topic))
        if not rows:
            return fetched
        call = api(
            _CONSUMER,
            request.max_wait_ms,
            1,
            request.max_bytes,
            int(request.committed),
            _NO_SESSION,
            _FINAL_EPOCH,
            [(meant[topic], [(p, *row) for p, row in partitions]) for topic, partitions in by_topic(rows)],
            [],
            "",
        )
        _, code, _, topics = await self._client.ask(request.node, call, deadline)
        self._client.check(call.api.name, [(None, code, None)])
        left = request.max_bytes
        for asked_as, partitions in topics:
            topic = names[asked_as]
            for partition, error, high_watermark, stable, log_start, aborted, _, data in partitions:
                tp = TP(topic, partition)
                asked = asked_for[tp]
                if error:
                    if error in STALE_METADATA:
                        self._client.cluster.forget_topic(topic)
                    fetched[tp] = Fetched([], asked, high_watermark, stable, log_start, error)
                elif left <= 0:
                    # What was compressed fills the answer: the others are asked for again.
                    fetched[tp] = Fetched([], asked, high_watermark, stable, log_start)
                else:
                    most = min(left, most_of_each * _DECOMPRESSED)
                    rows_read, position, error = records.read(
                        data, asked, aborted=(aborted or ()) if request.committed else None, most_bytes=most
                    )
                    if request.purpose == "restore" and any(type(row) is TooLarge for row in rows_read):
                        rows_read, position, error = [], asked, Code.CORRUPT_MESSAGE
                    size = record_bytes(rows_read)
                    left -= size
                    fetched[tp] = Fetched(rows_read, position, high_watermark, stable, log_start, error, size)
        return fetched

    async def _topic_ids(self, request: FetchRequest, deadline: float) -> dict[str, bytes]:
        """Those that are meant; where a topic's is not known, whichever one has its name now."""
        cluster, ids = self._client.cluster, {name: bytes.fromhex(id) for name, id in request.topic_ids.items()}
        unknown = [tp for tp in request.offsets if tp.topic not in ids]
        if any(cluster.topic_id(tp.topic) is None for tp in unknown):
            await looked_up(apis.METADATA.name, self._client.leaders(unknown, deadline))
        for tp in unknown:
            topic_id = cluster.topic_id(tp.topic)
            if topic_id is not None:
                ids[tp.topic] = topic_id
        return ids

    async def list_offsets(self, tps: Sequence[TP], at: int, *, committed: bool = False) -> dict[TP, int]:
        deadline = self._client.deadline()
        name = apis.LIST_OFFSETS.name

        async def ask(node: int, times: Mapping[TP, int]) -> Answer:
            return await self._client.ask(node, apis.LIST_OFFSETS(_CONSUMER, int(committed), by_topic(times)), deadline)

        split = await self._client.by_leader(name, dict.fromkeys(tps, at), deadline)
        answers = await in_parallel(name, [ask(node, times) for node, times in split.items()])
        rows = [
            (TP(topic, partition), code, offset)
            for _, topics in answers
            for topic, partitions in topics
            for partition, code, _, offset in partitions
        ]
        self._client.check(name, ((tp, code, None) for tp, code, _ in rows))
        return {tp: offset for tp, _, offset in rows}

    async def open_transactions(self, tps: Sequence[TP]) -> dict[TP, tuple[OpenTransaction, ...]]:
        """One whose coordinator does not answer stays unnamed: `transactional_id` is None."""
        deadline = self._client.deadline()
        name = apis.DESCRIBE_PRODUCERS.name

        async def ask(node: int, partitions: Mapping[TP, None]) -> Answer:
            return await self._client.ask(node, apis.DESCRIBE_PRODUCERS(partitions_by_topic(partitions)), deadline)

        split = await self._client.by_leader(name, dict.fromkeys(tps), deadline)
        answers = await in_parallel(name, [ask(node, partitions) for node, partitions in split.items()])
        rows = [(TP(topic, row[0]), row) for _, topics in answers for topic, partitions in topics for row in partitions]
        self._client.check(name, ((tp, code, text) for tp, (_, code, text, _) in rows))
        holders: defaultdict[TP, dict[int, int]] = defaultdict(dict)
        for tp, (_, _, _, producers) in rows:
            for producer_id, _, _, _, _, start in producers:
                if start >= 0:
                    holders[tp][producer_id] = start
        names = await self._names({producer for held in holders.values() for producer in held}, deadline)
        return {
            tp: tuple(
                OpenTransaction(names.get(producer), producer, start)
                for producer, start in sorted(holders[tp].items(), key=lambda held: held[1])
            )
            for tp in tps
        }

    async def _names(self, producer_ids: set[int], deadline: float) -> dict[int, str]:
        """Transactional ids of producers, from every coordinator that answers."""
        if not producer_ids:
            return {}
        call = apis.LIST_TRANSACTIONS([], sorted(producer_ids))

        async def ask(node: int) -> Answer | None:
            try:
                return await self._client.ask(node, call, deadline)
            except (RpcError, RpcLost):
                return None

        await looked_up(call.api.name, self._client.metadata((), deadline))
        answers = await in_parallel(call.api.name, [ask(node) for node in list(self._client.cluster.nodes)])
        return {
            producer: transactional_id
            for answer in answers
            if answer is not None
            for transactional_id, producer, _ in answer[3]
        }
