from __future__ import annotations

from collections.abc import Mapping

from semel.local.properties import Node, render

ONE = [Node(1, 20001, 20002)]
THREE = [Node(i, 20000 + 2 * i, 20001 + 2 * i) for i in (1, 2, 3)]


def rendered(nodes: list[Node], extra: Mapping[str, str] | None = None) -> dict[str, str]:
    lines = render(nodes[-1], nodes, "logs", extra or {}).splitlines()
    names = [line.partition("=")[0] for line in lines]
    assert len(set(names)) == len(names)
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_every_listener_is_on_the_loopback() -> None:
    properties = rendered(THREE)
    addresses = f"{properties['listeners']},{properties['advertised.listeners']}".split(",")
    assert [address.split("//")[1].split(":")[0] for address in addresses] == ["127.0.0.1"] * 3


def test_the_controllers_of_a_cluster_know_each_other() -> None:
    assert rendered(THREE)["controller.quorum.voters"] == "1@127.0.0.1:20003,2@127.0.0.1:20005,3@127.0.0.1:20007"


def test_one_broker_keeps_one_replica_and_three_keep_three_with_two_in_sync() -> None:
    one, three = rendered(ONE), rendered(THREE)
    for name in ("default", "offsets.topic", "transaction.state.log"):
        assert (one[f"{name}.replication.factor"], three[f"{name}.replication.factor"]) == ("1", "3")
    assert (one["min.insync.replicas"], three["min.insync.replicas"]) == ("1", "2")


def test_topics_are_never_created_by_accident() -> None:
    assert rendered(ONE)["auto.create.topics.enable"] == "false"


def test_a_property_of_the_caller_wins() -> None:
    properties = rendered(ONE, {"num.io.threads": "9", "log.retention.ms": "1"})
    assert (properties["num.io.threads"], properties["log.retention.ms"]) == ("9", "1")
