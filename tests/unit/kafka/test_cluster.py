from __future__ import annotations

import pytest

from semel.errors import ConfigError
from semel.kafka.cluster import Cluster, Kind, addresses
from semel.kafka.connection import Address
from semel.port import TP

BROKERS = [(1, "a", 9001, None), (2, "b", 9002, None)]


def topic(name: str, *leaders: int, error: int = 0) -> tuple[object, ...]:
    return error, name, bytes(16), False, [(0, p, leader, 5, [1], [1], []) for p, leader in enumerate(leaders)], 0


def known() -> Cluster:
    cluster = Cluster()
    cluster.learn(BROKERS, 2, [topic("t", 1, 2, -1), topic("u", 2)])
    cluster.learn_coordinator(Kind.GROUP, "g", 1, Address("a", 9001))
    cluster.learn_coordinator(Kind.TRANSACTION, "g", 2, Address("b", 9002))
    return cluster


def test_a_leader_is_known_per_partition_and_none_elected_is_no_leader() -> None:
    cluster = known()
    assert [cluster.leader(TP("t", p)) for p in range(4)] == [1, 2, None, None]
    assert cluster.controller == 2
    assert cluster.nodes[2] == Address("b", 9002)


def test_a_lost_broker_leads_and_coordinates_nothing_but_keeps_its_address() -> None:
    cluster = known()
    cluster.forget_node(2)
    assert [cluster.leader(tp) for tp in (TP("t", 0), TP("t", 1), TP("u", 0))] == [1, None, None]
    assert cluster.coordinator(Kind.TRANSACTION, "g") is None
    assert cluster.coordinator(Kind.GROUP, "g") == 1
    assert 2 in cluster.nodes


def test_group_and_transactional_id_of_one_name_have_coordinators_of_their_own() -> None:
    cluster = known()
    cluster.forget_coordinator(Kind.GROUP, "g")
    assert cluster.coordinator(Kind.GROUP, "g") is None
    assert cluster.coordinator(Kind.TRANSACTION, "g") == 2


def test_a_refused_topic_explains_its_missing_leader_until_it_is_back() -> None:
    cluster = known()
    cluster.learn(BROKERS, 2, [topic("t", error=29)])
    assert (cluster.leader(TP("t", 0)), cluster.why("t")) == (None, 29)
    cluster.learn(BROKERS, 2, [topic("t", 1)])
    assert (cluster.leader(TP("t", 0)), cluster.why("t")) == (1, 5)


def test_an_answer_without_brokers_teaches_no_addresses() -> None:
    cluster = known()
    cluster.learn([], -1, [])
    assert set(cluster.nodes) == {1, 2}
    assert cluster.controller == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", [("localhost", 9092)]),
        ("kafka://h:1", [("h", 1)]),
        ("kafka://h:1, kafka://i:2/", [("h", 1), ("i", 2)]),
        ("h:1,i:2", [("h", 1), ("i", 2)]),
        ("[::1]:9094,[::1]", [("::1", 9094), ("::1", 9092)]),
    ],
)
def test_bootstrap_addresses_are_read_with_and_without_scheme(text: str, expected: list[tuple[str, int]]) -> None:
    assert list(addresses(text)) == [Address(*pair) for pair in expected]


@pytest.mark.parametrize("text", ["", "h:", "h:x", "h:70000", ":9092", "a:1,,b:2"])
def test_a_malformed_address_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is not host:port"):
        addresses(text)


def test_an_address_prints_as_it_is_written() -> None:
    assert [str(address) for address in addresses("h:1,[::1]:2")] == ["h:1", "[::1]:2"]
