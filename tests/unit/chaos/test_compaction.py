"""Which events compaction may take: those that a later one of their key stands for."""

from __future__ import annotations

import random

import pytest

from semel.chaos.compaction import superseded
from semel.port import TP
from semel.testing.broker import MemoryCluster
from semel.testing.clock import VirtualClock


def test_the_last_event_of_each_key_stays() -> None:
    assert superseded({1: b"a", 2: b"b", 5: b"a", 9: b"c"}) == {1}
    assert superseded({5: b"a", 1: b"a", 3: b"a"}) == {1, 3}
    assert superseded({}) == set()


@pytest.mark.parametrize("seed", range(20))
async def test_it_is_what_the_in_memory_broker_takes(seed: int) -> None:
    rng = random.Random(seed)
    cluster = MemoryCluster(VirtualClock())
    cluster.create_topic("payments", 1, {"cleanup.policy": "compact"})
    for _ in range(rng.randint(1, 40)):
        cluster.write(TP("payments", 0), [(b"%d" % rng.randrange(6), b"x") for _ in range(rng.randint(1, 3))])
    before = {record.offset: record.key for record in cluster.committed("payments")[0]}
    cluster.compact(TP("payments", 0))
    left = {record.offset for record in cluster.committed("payments")[0]}
    assert before.keys() - left == superseded(before), seed
