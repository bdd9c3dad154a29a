"""Requests: what is asked of each leader at once."""

from __future__ import annotations

from semel.port import TP
from semel.stages.fetch.requests import PARTITION_LEAST_BYTES, Wanted, requests

P0, P1, P2 = (TP("payments", p) for p in range(3))
MIB = 1 << 20


def test_each_leader_is_asked_once_for_all_its_partitions_in_the_order_given() -> None:
    wanted = [Wanted(P2, "id", 7, MIB), Wanted(P0, "id", 5, MIB), Wanted(P1, "id", 9, MIB)]
    made = requests(wanted, {P0: 1, P1: 2, P2: 1}, share_bytes=4 * MIB, answer_bytes=16 * MIB)
    assert [(r.node, list(r.offsets.items())) for r in made] == [(1, [(P2, 7), (P0, 5)]), (2, [(P1, 9)])]
    assert all(r.committed and r.purpose == "source" for r in made)


def test_a_partition_without_a_leader_is_left_out() -> None:
    assert requests([Wanted(P0, "id", 5, MIB)], {}, share_bytes=MIB, answer_bytes=MIB) == []


def test_of_each_partition_the_smallest_share_is_asked_for_and_no_answer_is_larger_than_it_may_be() -> None:
    wanted = [Wanted(P0, "id", 0, MIB), Wanted(P1, "id", 0, MIB // 4)]
    [request] = requests(wanted, {P0: 1, P1: 1}, share_bytes=4 * MIB, answer_bytes=16 * MIB)
    assert (request.partition_max_bytes, request.max_bytes) == (MIB // 4, MIB // 2)
    [request] = requests(wanted, {P0: 1, P1: 1}, share_bytes=MIB // 8, answer_bytes=MIB // 8)
    assert (request.partition_max_bytes, request.max_bytes) == (MIB // 8, MIB // 8)


def test_so_little_is_asked_for_at_least() -> None:
    [request] = requests([Wanted(P0, "id", 0, 1)], {P0: 1}, share_bytes=1, answer_bytes=MIB)
    assert (request.partition_max_bytes, request.max_bytes) == (PARTITION_LEAST_BYTES, PARTITION_LEAST_BYTES)
