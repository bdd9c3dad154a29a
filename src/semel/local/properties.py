"""The configuration of a local broker: small, quick to start, and strict where production is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Node:
    """One broker of the cluster, which is also one of its controllers."""

    id: int
    port: int
    controller_port: int


def render(node: Node, nodes: Sequence[Node], log_dir: str, extra: Mapping[str, str]) -> str:
    """The text of `server.properties`; `extra` wins over every default."""
    merged = {**_identity(node, nodes, log_dir), **_behaviour(len(nodes)), **extra}
    return "".join(f"{name}={value}\n" for name, value in merged.items())


def _identity(node: Node, nodes: Sequence[Node], log_dir: str) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.id),
        "controller.quorum.voters": ",".join(f"{n.id}@{HOST}:{n.controller_port}" for n in nodes),
        "listeners": f"BROKER://{HOST}:{node.port},CONTROLLER://{HOST}:{node.controller_port}",
        "advertised.listeners": f"BROKER://{HOST}:{node.port}",
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "BROKER",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": log_dir,
    }


def _behaviour(brokers: int) -> dict[str, str]:
    replicas = str(min(brokers, 3))
    in_sync = "2" if brokers >= 3 else "1"
    # A killed broker may register again only when its old session is over. A single broker starves together
    # with its controller, so a short session cannot fence it by mistake; three of them on few cores can.
    session_timeout_ms = 3000 if brokers > 1 else 1500
    return {
        "broker.session.timeout.ms": str(session_timeout_ms),
        "broker.heartbeat.interval.ms": str(session_timeout_ms // 5),
        "controller.quorum.election.timeout.ms": "500",
        "controller.quorum.fetch.timeout.ms": "1500",
        # A worker must create its topics itself, as in production.
        "auto.create.topics.enable": "false",
        "num.partitions": "1",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        # Creating internal partitions is most of what the first group and the first transaction wait for.
        "offsets.topic.num.partitions": "5",
        "offsets.topic.replication.factor": replicas,
        # Compacted early, so that it is loaded at once: a load that takes as long as the old session of a killed broker
        # can end another load than its own (docs/decisions/group-offsets-behind.md).
        "offsets.topic.segment.bytes": "1048576",
        "transaction.state.log.num.partitions": "5",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "500",
        "group.max.session.timeout.ms": "1800000",
        "transaction.max.timeout.ms": "900000",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        # The default dedupe buffer alone, 128 MB, would be half of the heap.
        "log.cleaner.dedupe.buffer.size": "16777216",
        "log.cleaner.threads": "1",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "2",
        "num.recovery.threads.per.data.dir": "2",
    }
