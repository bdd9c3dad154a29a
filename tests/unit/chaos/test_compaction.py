"""Which events compaction may take, those that a later one of their key stands for; and what a run keeps of them before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.chaos.compaction import Archive, ArchivedRecord, superseded
from semel.memory.cluster import MemoryCluster
from semel.port import TP
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


# -- what is kept

PAYMENTS = TP("payments", 0)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Archive]:
    made = Archive(tmp_path / "input.sqlite", "payments")
    yield made
    made.close()


def record(
    offset: int, value: bytes | None = b"{}", headers: tuple[tuple[str, bytes | None], ...] = ()
) -> ArchivedRecord:
    return ArchivedRecord(offset, 1_700_000_000_000 + offset, b"key", value, headers)


def test_records_come_back_as_they_were_by_offset(kept: Archive) -> None:
    odd = [record(3, None), record(4, b"\x00\xff", (("id", b"\xff\x00"), ("none", None), ("id", b""))), record(9, b"")]
    kept.keep(0, odd[:2], 6)
    kept.keep(0, odd[2:], 10)
    assert kept.between(PAYMENTS, 0, 100) == odd
    assert kept.between(PAYMENTS, 4, 9) == [odd[1]]
    assert kept.upto == {0: 10}


def test_partitions_and_topics_are_not_taken_for_each_other(kept: Archive) -> None:
    kept.keep(0, [record(1)], 2)
    kept.keep(1, [record(1, b"other")], 2)
    kept.may_be_unread[1] |= {1}
    assert kept.between(TP("payments", 1), 0, 9) == [record(1, b"other")]
    assert kept.between(TP("payments", 2), 0, 9) == kept.between(TP("settlements", 0), 0, 9) == []
    assert [list(kept.unread(TP(t, p), 0, 9)) for t, p in (("payments", 0), ("payments", 1), ("settlements", 1))] == [
        [],
        [1],
        [],
    ]


def test_what_may_be_unread_is_said_in_order_and_only_where_it_is_asked_for(kept: Archive) -> None:
    kept.may_be_unread[0] |= {7, 3, 11}
    kept.may_be_unread[0] |= {5, 3}
    assert list(kept.unread(PAYMENTS, 0, 100)) == [3, 5, 7, 11]
    assert list(kept.unread(PAYMENTS, 4, 11)) == [5, 7]


def test_a_file_of_an_earlier_run_is_not_read(kept: Archive, tmp_path: Path) -> None:
    kept.keep(0, [record(1)], 2)
    again = Archive(tmp_path / "input.sqlite", "payments")
    assert again.between(PAYMENTS, 0, 9) == []
    again.close()
