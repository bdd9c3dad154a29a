"""What the contract tests say often: a client, a topic, a transaction, a member, the code of a refusal."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import pytest

from semel.port import (
    EARLIEST,
    LATEST,
    TP,
    Broker,
    Clock,
    Fetched,
    FetchRequest,
    Joined,
    MemberIdRequired,
    Membership,
    Producer,
    RpcError,
    TopicSpec,
)

T = TypeVar("T")

FENCED = {47, 90}
PATIENCE_S = 20.0
# The last transaction's markers are not written yet, or a coordinator has only just been asked for.
PASSING = frozenset({14, 15, 16, 51})


class Rig:
    def __init__(self, new_client: Callable[[], Broker], clock: Clock, prefix: str) -> None:
        self.clock = clock
        self._new_client = new_client
        self._prefix = prefix
        self._numbers = itertools.count(1)
        self._clients: list[Broker] = []

    async def connect(self) -> Broker:
        client = self._new_client()
        self._clients.append(client)
        await client.start()
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.close()

    def name(self, what: str) -> str:
        return f"{self._prefix}-{what}-{next(self._numbers)}"

    async def topic(self, broker: Broker, partitions: int = 1, **configs: str) -> str:
        """A new topic; configs with _ for the dots."""
        name = self.name("topic")
        named = {key.replace("_", "."): value for key, value in configs.items()}
        await broker.create_topics([TopicSpec(name, partitions, 1, named)])
        # A leader is named before it knows of it.
        tps = [TP(name, partition) for partition in range(partitions)]
        await self.patiently(lambda: broker.list_offsets(tps, LATEST), frozenset({3, 5, 6}))
        return name

    async def partition(self, broker: Broker, **configs: str) -> TP:
        """The only partition of a new topic."""
        return TP(await self.topic(broker, 1, **configs), 0)

    async def patiently(self, call: Callable[[], Awaitable[T]], passing: frozenset[int] = PASSING) -> T:
        """Ask again while the answer is one that passes."""
        deadline = self.clock.monotonic() + PATIENCE_S
        while True:
            try:
                return await call()
            except RpcError as error:
                if error.code not in passing or self.clock.monotonic() > deadline:
                    raise
            await self.clock.sleep(0.01)

    async def until(self, holds: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S) -> float:
        """Wait until something holds; returns the seconds that took."""
        start = self.clock.monotonic()
        while not await holds():
            if self.clock.monotonic() - start > within_s:
                pytest.fail(f"did not come to hold within {within_s} s")
            await self.clock.sleep(0.02)
        return self.clock.monotonic() - start

    async def writer(self, broker: Broker, transactional_id: str | None = None, timeout_ms: int = 60_000) -> Writer:
        name = transactional_id or self.name("writer")
        producer = await self.patiently(lambda: broker.init_producer_id(name, timeout_ms))
        return Writer(self, broker, producer)

    async def join(
        self,
        broker: Broker,
        group: str,
        *,
        member_id: str = "",
        instance: str | None = None,
        metadata: bytes = b"metadata",
        session_timeout_ms: int = 10_000,
        rebalance_timeout_ms: int = 30_000,
    ) -> Joined:
        """JoinGroup, once more where the coordinator gives a member id first."""

        async def ask(member: str) -> Joined:
            return await self.patiently(
                lambda: broker.join_group(
                    group,
                    member,
                    instance,
                    metadata,
                    session_timeout_ms=session_timeout_ms,
                    rebalance_timeout_ms=rebalance_timeout_ms,
                )
            )

        try:
            return await ask(member_id)
        except MemberIdRequired as required:
            return await ask(required.member_id)

    async def member(
        self, broker: Broker, group: str, *, instance: str | None = None, session_timeout_ms: int = 10_000
    ) -> Membership:
        """The only member of a group, with the group stable."""
        joined = await self.join(broker, group, instance=instance, session_timeout_ms=session_timeout_ms)
        membership = Membership(group, joined.generation, joined.member_id, instance)
        await broker.sync_group(membership, {joined.member_id: b"all"})
        return membership

    async def produced(self, broker: Broker, tp: TP, *values: bytes) -> None:
        """A committed transaction with these values."""
        writer = await self.writer(broker)
        await writer.begin([tp])
        await writer.send(tp, *values)
        await writer.end(commit=True)
        # EndTxn is answered before its markers are written.
        await self.until(lambda: _no_open_transaction(broker, tp))

    async def fetch(
        self,
        broker: Broker,
        tp: TP,
        offset: int,
        *,
        committed: bool = True,
        max_wait_ms: int = 100,
        max_bytes: int = 1 << 20,
    ) -> Fetched:
        leaders = await broker.leaders([tp])
        answer = await broker.fetch(
            FetchRequest(leaders[tp], {tp: offset}, max_wait_ms, max_bytes, max_bytes, committed=committed)
        )
        return answer[tp]

    async def values(self, broker: Broker, tp: TP, *, committed: bool = True) -> list[bytes | None]:
        """All values from the first offset to where a reader now comes to stand."""
        offset = (await broker.list_offsets([tp], EARLIEST))[tp]
        end = (await broker.list_offsets([tp], LATEST, committed=committed))[tp]
        found: list[bytes | None] = []
        while offset < end:
            fetched = await self.fetch(broker, tp, offset, committed=committed)
            assert fetched.error == 0
            assert fetched.next_offset > offset
            found += [record.value for record in fetched.records]
            offset = fetched.next_offset
        return found


async def _no_open_transaction(broker: Broker, tp: TP) -> bool:
    return not (await broker.open_transactions([tp]))[tp]


class Writer:
    """A producer with its sequences."""

    def __init__(self, rig: Rig, broker: Broker, producer: Producer) -> None:
        self.broker = broker
        self.producer = producer
        self.sequences: dict[TP, int] = {}
        self._rig = rig

    async def begin(self, tps: Sequence[TP], group: str | None = None) -> None:
        if tps:
            await self._rig.patiently(lambda: self.broker.add_partitions(self.producer, tps))
        if group is not None:
            await self._rig.patiently(lambda: self.broker.add_offsets(self.producer, group))

    def batch(
        self, *values: bytes | None, key: bytes | None = b"key", timestamp: int | None = None, base: int
    ) -> bytes:
        builder = self.broker.batch_builder(1 << 20)
        for value in values:
            assert builder.append(timestamp, key, value, [])
        return builder.build(self.producer, base)

    async def send(
        self, tp: TP, *values: bytes | None, key: bytes | None = b"key", timestamp: int | None = None
    ) -> int:
        base = self.sequences.get(tp, 0)
        batch = self.batch(*values, key=key, timestamp=timestamp, base=base)
        bases = await self._rig.patiently(lambda: self.broker.produce(self.producer, {tp: batch}))
        self.sequences[tp] = base + len(values)
        return bases[tp]

    async def offsets(self, membership: Membership, offsets: Mapping[TP, int]) -> None:
        await self._rig.patiently(lambda: self.broker.commit_offsets(self.producer, membership, offsets))

    async def end(self, *, commit: bool) -> None:
        await self._rig.patiently(lambda: self.broker.end_txn(self.producer, commit=commit))


async def code_of(call: Awaitable[object]) -> int:
    """The error code a call is answered with, 0 for none."""
    try:
        await call
    except RpcError as error:
        return error.code
    return 0
