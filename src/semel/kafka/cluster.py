"""What is known of the cluster: addresses of brokers, leaders of partitions, coordinators. Data only, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any

from semel.codes import Code
from semel.errors import ConfigError
from semel.kafka.connection import Address
from semel.port import TP

_DEFAULT_PORT = 9092


class Kind(IntEnum):
    """What a coordinator coordinates; the key type of FindCoordinator."""

    GROUP = 0
    TRANSACTION = 1


def addresses(bootstrap: str) -> tuple[Address, ...]:
    """Parses `host:port,host:port`, each with or without `kafka://`. ConfigError names what is malformed."""
    parsed: list[Address] = []
    for part in bootstrap.split(","):
        text = part.strip().removeprefix("kafka://").rstrip("/")
        host, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            host, port = text, str(_DEFAULT_PORT)
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"broker address {part.strip()!r} is not host:port (in {bootstrap!r})")
        parsed.append(Address(host, int(port)))
    return tuple(parsed)


class Cluster:
    """The cache between Metadata and FindCoordinator answers and the requests that need them."""

    def __init__(self) -> None:
        self.nodes: dict[int, Address] = {}
        self.controller = -1
        self._leaders: dict[str, dict[int, int]] = {}
        self._ids: dict[str, bytes] = {}
        self._refusals: dict[str, int] = {}
        self._coordinators: dict[tuple[Kind, str], int] = {}

    def learn(self, brokers: Iterable[Any], controller: int, topics: Iterable[Any]) -> None:
        """Take in the rows of a Metadata answer. An answer without brokers teaches no addresses."""
        nodes = {node: Address(host, port) for node, host, port, _ in brokers}
        if nodes:
            self.nodes = nodes
            self.controller = controller
        for error, name, topic_id, _, partitions, _ in topics:
            self.forget_topic(name)
            if error:
                self._refusals[name] = error
            else:
                self._ids[name] = topic_id
                self._leaders[name] = {partition: leader for _, partition, leader, *_ in partitions if leader >= 0}

    def leader(self, tp: TP) -> int | None:
        return self._leaders.get(tp.topic, {}).get(tp.partition)

    def topic_id(self, topic: str) -> bytes | None:
        return self._ids.get(topic)

    def why(self, topic: str) -> int:
        """The error code that explains a missing leader: the topic's own, else 5 (leader not available)."""
        return self._refusals.get(topic, Code.LEADER_NOT_AVAILABLE)

    def coordinator(self, kind: Kind, key: str) -> int | None:
        return self._coordinators.get((kind, key))

    def learn_coordinator(self, kind: Kind, key: str, node: int, address: Address) -> None:
        self.nodes[node] = address
        self._coordinators[kind, key] = node

    def forget_topic(self, topic: str) -> None:
        self._leaders.pop(topic, None)
        self._ids.pop(topic, None)
        self._refusals.pop(topic, None)

    def forget_coordinator(self, kind: Kind, key: str) -> None:
        self._coordinators.pop((kind, key), None)

    def forget_node(self, node: int) -> None:
        """A connection to it was lost: it may lead and coordinate nothing any more. Its address stays."""
        for leaders in self._leaders.values():
            for partition in [p for p, leader in leaders.items() if leader == node]:
                del leaders[partition]
        for where in [where for where, coordinator in self._coordinators.items() if coordinator == node]:
            del self._coordinators[where]
