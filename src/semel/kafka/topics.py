"""The port's calls about topics: metadata, creation, deletion, configuration, trimming."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from semel.codes import Code
from semel.kafka import apis
from semel.kafka.client import Calls, by_topic, in_parallel, looked_up, rights_of
from semel.kafka.wire import Answer
from semel.port import TP, Right, RpcError, RpcLost, TopicInfo, TopicSpec
from semel.runtime import looptime

_TOPIC_RESOURCE = 2
_POLL_S = 0.02
_NO_ID = bytes(16)


class TopicCalls(Calls):
    async def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        return await self._topics(names, self._client.deadline())

    async def broker_count(self) -> int:
        _, brokers, *_ = await self._client.metadata((), self._client.deadline())
        return len(brokers)

    async def create_topics(self, specs: Sequence[TopicSpec], *, validate_only: bool = False) -> None:
        """Returns once the topics show in the metadata, or the RPC bound has passed: controllers answer before that."""
        deadline = self._client.deadline()
        call = apis.CREATE_TOPICS([_row(spec) for spec in specs], self._broker_timeout_ms, validate_only)
        _, results = await self._client.ask(await self._controller(call.api.name, deadline), call, deadline)
        self._check_topics(
            call.api.name, [(name, code, text) for name, code, text in results], Code.TOPIC_ALREADY_EXISTS
        )
        if not validate_only:
            names = [spec.name for spec in specs]
            await self._until(lambda topics: all(name in topics for name in names), names, deadline)

    async def create_partitions(self, name: str, partitions: int) -> None:
        """Returns once they show in the metadata, or the RPC bound has passed."""
        deadline = self._client.deadline()
        known = (await self._topics([name], deadline)).get(name)
        if known is not None and known.partitions >= partitions:
            return
        call = apis.CREATE_PARTITIONS([(name, partitions, None)], self._broker_timeout_ms, False)
        _, results = await self._client.ask(await self._controller(call.api.name, deadline), call, deadline)
        self._client.cluster.forget_topic(name)
        grown = partial(
            self._until, lambda topics: name in topics and topics[name].partitions >= partitions, [name], deadline
        )
        try:
            self._check_topics(call.api.name, [(topic, code, text) for topic, code, text in results])
        except RpcError as exc:
            # Another one has just done it, or we have, and the answer was lost.
            if exc.code != Code.INVALID_PARTITIONS or not await grown():
                raise
            return
        await grown()

    async def delete_topics(self, topics: Sequence[TopicInfo]) -> None:
        """Returns once the topics are gone from the metadata, or the RPC bound has passed."""
        deadline = self._client.deadline()
        # The name of one that has no id is all there is; what was made since under it is deleted for it.
        rows = [(None, bytes.fromhex(t.id)) if t.has_id else (t.name, _NO_ID) for t in topics]
        names = {bytes.fromhex(t.id): t.name for t in topics if t.has_id}
        call = apis.DELETE_TOPICS(rows, self._broker_timeout_ms)
        _, results = await self._client.ask(await self._controller(call.api.name, deadline), call, deadline)
        for topic in topics:
            self._client.cluster.forget_topic(topic.name)
        self._check_topics(
            call.api.name,
            [(names.get(topic_id) or name, code, text) for name, topic_id, code, text in results],
            Code.UNKNOWN_TOPIC_ID,
            Code.UNKNOWN_TOPIC_OR_PARTITION,
        )
        await self._until(
            lambda known: all(t.name not in known or known[t.name].id != t.id for t in topics),
            [topic.name for topic in topics],
            deadline,
        )

    async def topic_configs(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        deadline = self._client.deadline()
        call = apis.DESCRIBE_CONFIGS([(_TOPIC_RESOURCE, name, None) for name in names], False)
        _, resources = await looked_up(call.api.name, self._client.ask_any(call, deadline))
        self._check_topics(call.api.name, [(name, code, text) for code, text, _, name, _ in resources])
        return {
            name: {key: value for key, value, *_ in configs if value is not None}
            for _, _, _, name, configs in resources
        }

    async def delete_records(self, before: Mapping[TP, int]) -> None:
        deadline = self._client.deadline()
        name = apis.DELETE_RECORDS.name

        async def ask(node: int, offsets: Mapping[TP, int]) -> Answer:
            call = apis.DELETE_RECORDS(by_topic(offsets), self._broker_timeout_ms)
            return await self._client.ask(node, call, deadline)

        split = await self._client.by_leader(name, before, deadline)
        answers = await in_parallel(name, [ask(node, offsets) for node, offsets in split.items()])
        self._client.check(
            name,
            (
                (TP(topic, partition), code, None)
                for _, topics in answers
                for topic, partitions in topics
                for partition, _, code in partitions
            ),
        )

    async def topic_rights(self, names: Sequence[str]) -> dict[str, frozenset[Right]]:
        rows = (await self._client.metadata(names, self._client.deadline(), rights=True))[4]
        self._check_topics(
            apis.METADATA.name,
            [(name, code, None) for code, name, *_ in rows if code == Code.TOPIC_AUTHORIZATION_FAILED],
        )
        told = {name: rights_of(operations) for code, name, _, _, _, operations in rows if not code}
        return {name: rights for name, rights in told.items() if rights is not None}

    @property
    def _broker_timeout_ms(self) -> int:
        """How long the broker may take: less than we wait, so that its own timeout still reaches us as an answer."""
        return self._client.rpc_timeout_ms * 3 // 4

    async def _topics(self, names: Sequence[str] | None, deadline: float) -> dict[str, TopicInfo]:
        _, _, _, _, rows, _ = await self._client.metadata(names, deadline)
        known: dict[str, TopicInfo] = {}
        for code, name, topic_id, _, partitions, _ in rows:
            if code != Code.UNKNOWN_TOPIC_OR_PARTITION:
                self._check_topics(apis.METADATA.name, [(name, code, None)])
                known[name] = TopicInfo(name, topic_id.hex(), len(partitions))
        return known

    async def _controller(self, api: str, deadline: float) -> int:
        if self._client.cluster.controller < 0:
            await looked_up(api, self._client.metadata((), deadline))
        return self._client.cluster.controller

    def _check_topics(self, api: str, rows: Collection[tuple[str, int, str | None]], *harmless: int) -> None:
        if any(code == Code.NOT_CONTROLLER for _, code, _ in rows):
            self._client.cluster.controller = -1
        self._client.check(
            api,
            (
                (None, code, f"topic {name}{f': {text}' if text else ''}")
                for name, code, text in rows
                if code not in harmless
            ),
        )

    async def _until(
        self, holds: Callable[[dict[str, TopicInfo]], bool], names: Sequence[str], deadline: float
    ) -> bool:
        """Whether it came to hold."""
        while looptime.now() + _POLL_S < deadline:
            try:
                known = await self._topics(names, deadline)
            except (RpcError, RpcLost):
                return False
            if holds(known):
                return True
            await asyncio.sleep(_POLL_S)
        return False


def _row(spec: TopicSpec) -> tuple[Any, ...]:
    leave_assignment_to_the_cluster: tuple[()] = ()
    configs = list(spec.configs.items())
    return spec.name, spec.partitions, spec.replication_factor, leave_assignment_to_the_cluster, configs
