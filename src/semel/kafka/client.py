"""Which broker a request goes to, and what its failure makes stale.

Every method of the port is one logical request with one deadline, in loop time: looking up a leader or a
coordinator and opening a connection spend the same budget as waiting for the answer.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import TypeVar

from semel.codes import STALE_COORDINATOR, STALE_METADATA, describe, is_fenced, severity
from semel.kafka import apis
from semel.kafka.cluster import Cluster, Kind, addresses
from semel.kafka.connection import Address, Connections
from semel.kafka.security import Security
from semel.kafka.wire import Answer, Call
from semel.port import TP, Right, RpcError, RpcLost
from semel.runtime import looptime
from semel.throttles import Throttles

_NO_TOPIC_ID = bytes(16)

V = TypeVar("V")


class Client:
    def __init__(self, bootstrap: str, *, client_id: str, rpc_timeout_ms: int, security: Security | None) -> None:
        self.rpc_timeout_ms = rpc_timeout_ms
        self.cluster = Cluster()
        self.throttles = Throttles(lambda: asyncio.get_running_loop().time())
        self._bootstrap = addresses(bootstrap)
        self._client_id = client_id
        self._options = (security or Security()).connection_options()
        self._connections: dict[Address, Connections] = {}
        self._unreachable: set[Address] = set()
        self._lookup = asyncio.Lock()
        self._closed = False

    async def start(self) -> None:
        await self.metadata((), self.deadline())

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(connections.close() for connections in self._connections.values()))

    def deadline(self, extra_ms: int = 0) -> float:
        return looptime.now() + (self.rpc_timeout_ms + extra_ms) / 1000

    # -- asking

    async def ask(self, node: int, call: Call, deadline: float) -> Answer:
        """Ask one broker. After a lost request the broker leads and coordinates nothing that we know of."""
        if node not in self.cluster.nodes:
            await looked_up(call.api.name, self.metadata((), deadline))
        address = self.cluster.nodes.get(node)
        if address is None:
            self.cluster.forget_node(node)
            raise RpcLost(call.api.name, f"broker {node} is not in the cluster's metadata", sent=False)
        try:
            return await self._connections_to(address).ask(call, deadline)
        except RpcLost:
            self.cluster.forget_node(node)
            raise

    async def ask_coordinator(self, kind: Kind, key: str, call: Call, deadline: float) -> Answer:
        node = self.cluster.coordinator(kind, key)
        if node is None:
            node = await looked_up(call.api.name, self.find_coordinator(kind, key, deadline))
        return await self.ask(node, call, deadline)

    async def ask_any(self, call: Call, deadline: float) -> Answer:
        """Ask whichever broker answers first: those connected, then those known, then the bootstrap addresses.

        One that asked us to wait comes after those that did not, and its wait takes no time from the others.
        """
        reasons: list[str] = []
        candidates = self._candidates(call.api.name)
        for left, address in zip(range(len(candidates) - 1, -1, -1), candidates, strict=True):
            # One that hangs may take half of what is left, so that the next still has its turn.
            now = looptime.now()
            until = deadline if left == 0 else now + (deadline - now) / 2
            deadline += self.throttles.wait_s(call.api.name, address)
            try:
                answer = await self._connections_to(address).ask(call, until)
            except RpcLost as lost:
                self._unreachable.add(address)
                reasons.append(lost.detail)
                continue
            self._unreachable.discard(address)
            return answer
        raise RpcLost(call.api.name, "; ".join(reasons), sent=False)

    # -- finding out

    async def metadata(self, topics: Sequence[str] | None, deadline: float, *, rights: bool = False) -> Answer:
        """Fresh Metadata of these topics (None: all), which the cache learns; with what we may do with them where asked."""
        wanted = None if topics is None else [(_NO_TOPIC_ID, name) for name in topics]
        answer = await self.ask_any(apis.METADATA(wanted, False, False, rights), deadline)
        _, brokers, _, controller, rows, _ = answer
        self.cluster.learn(brokers, controller, rows)
        return answer

    async def leaders(self, tps: Iterable[TP], deadline: float) -> dict[TP, int]:
        """Leaders from the cache, after one look at the metadata of topics where one is missing."""
        tps = list(tps)
        missing = {tp.topic for tp in tps if self.cluster.leader(tp) is None}
        if missing:
            async with looptime.timeout_at(deadline), self._lookup:
                # Somebody else's look while we waited may have found them.
                missing = {tp.topic for tp in tps if self.cluster.leader(tp) is None}
                if missing:
                    await self.metadata(sorted(missing), deadline)
        known = {tp: self.cluster.leader(tp) for tp in tps}
        return {tp: leader for tp, leader in known.items() if leader is not None}

    async def by_leader(self, api: str, values: Mapping[TP, V], deadline: float) -> dict[int, dict[TP, V]]:
        """Split what is meant for partitions by their leaders. RpcError where one has none: the topic's code, or 5."""
        leaders = await looked_up(api, self.leaders(values, deadline))
        self.check(api, ((tp, self.cluster.why(tp.topic), None) for tp in values if tp not in leaders))
        split: defaultdict[int, dict[TP, V]] = defaultdict(dict)
        for tp, value in values.items():
            split[leaders[tp]][tp] = value
        return dict(split)

    async def find_coordinator(self, kind: Kind, key: str, deadline: float) -> int:
        answer = await self.ask_any(apis.FIND_COORDINATOR(key, int(kind)), deadline)
        _, code, text, node, host, port = answer
        if code:
            raise RpcError("FindCoordinator", code, describe(code, text))
        self.cluster.learn_coordinator(kind, key, node, Address(host, port))
        return node

    # -- judging

    def check(
        self,
        api: str,
        rows: Iterable[tuple[TP | None, int, str | None]],
        *,
        coordinator: tuple[Kind, str] | None = None,
    ) -> None:
        """Raises RpcError with the worst code of an answer's rows, after forgetting what all of them make stale."""
        bad = [row for row in rows if row[1]]
        if not bad:
            return
        for tp, code, _ in bad:
            if code in STALE_METADATA and tp is not None:
                self.cluster.forget_topic(tp.topic)
            if code in STALE_COORDINATOR and coordinator is not None:
                self.cluster.forget_coordinator(*coordinator)
        tp, code, text = max(bad, key=lambda row: severity(row[1]))
        raise RpcError(api, code, describe(code, text, at=None if tp is None else f"{tp.topic}-{tp.partition}"))

    # -- connections

    def _connections_to(self, address: Address) -> Connections:
        connections = self._connections.get(address)
        if connections is None:
            connections = Connections(
                address, self._client_id, self._options, throttles=self.throttles, closed=self._closed
            )
            self._connections[address] = connections
        return connections

    def _candidates(self, api: str) -> list[Address]:
        known = list(self.cluster.nodes.values())
        random.shuffle(known)
        connected = [address for address in known if self._connections_to(address).any_open]
        in_order = list(dict.fromkeys([*connected, *known, *self._bootstrap]))
        return sorted(in_order, key=lambda at: (self.throttles.wait_s(api, at), at in self._unreachable))


async def looked_up(api: str, lookup: Awaitable[V]) -> V:
    """The result of a lookup; where it is lost, the request it was for is lost too, and never left."""
    try:
        return await lookup
    except RpcLost as lost:
        detail = lost.detail if lost.api == api else f"{lost.api}: {lost.detail}"
        raise RpcLost(api, detail, sent=False) from lost
    except TimeoutError:
        raise RpcLost(api, "its broker was not found in time", sent=False) from None


async def in_parallel(api: str, requests: Iterable[Awaitable[V]]) -> list[V]:
    """The answers of one method's requests to several brokers, once all have ended.

    If some failed, raises the worst: fenced, else lost, else refused. A loss counts as sent if any request was.
    """
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if not failures:
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    for failure in failures:
        if not isinstance(failure, RpcError | RpcLost):
            raise failure
    lost = [failure for failure in failures if isinstance(failure, RpcLost)]
    errors = [failure for failure in failures if isinstance(failure, RpcError)]
    refused = max(errors, key=lambda error: severity(error.code), default=None)
    if refused is not None and (not lost or is_fenced(refused.code)):
        raise refused
    sent = len(lost) < len(outcomes) or any(loss.sent for loss in lost)
    raise RpcLost(api, "; ".join(loss.detail for loss in lost), sent=sent)


def by_topic(values: Mapping[TP, V]) -> list[tuple[str, list[tuple[int, V]]]]:
    """Per topic its partitions and their values, as request rows nest them."""
    rows: defaultdict[str, list[tuple[int, V]]] = defaultdict(list)
    for tp, value in values.items():
        rows[tp.topic].append((tp.partition, value))
    return list(rows.items())


def partitions_by_topic(tps: Iterable[TP]) -> list[tuple[str, list[int]]]:
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for tp in tps:
        rows[tp.topic].append(tp.partition)
    return list(rows.items())


# Kafka's numbers of operations, each a bit of an answer.
_RIGHTS: dict[int, Right] = {
    3: "Read", 4: "Write", 5: "Create", 6: "Delete", 7: "Alter", 8: "Describe", 10: "DescribeConfigs", 11: "AlterConfigs",
}  # fmt: skip
_NOT_SAID = -(1 << 31)


def rights_of(operations: int) -> frozenset[Right] | None:
    """What the bits of authorized operations stand for; None where the broker does not say."""
    if operations == _NOT_SAID:
        return None
    return frozenset(right for number, right in _RIGHTS.items() if operations >> number & 1)


class Calls:
    """The base of each group of the port's methods: they share one client."""

    _client: Client
