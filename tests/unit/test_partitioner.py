"""Partitions of keys: as Java's default partitioner, so that every client agrees."""

from __future__ import annotations

import random

import pytest
from aiokafka.partitioner import murmur2 as aiokafka_murmur2

from semel.partitioner import KeyPartitions, murmur2, partition_of


# From Kafka's own UtilsTest.testMurmur2, as signed 32-bit integers there.
@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_answers_what_kafkas_own_test_expects(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF


def test_murmur2_agrees_with_aiokafka_on_keys_of_every_length() -> None:
    draw = random.Random(20260101)
    for length in [*range(70), 255, 256, 1023, 4097]:
        for _ in range(5):
            key = draw.randbytes(length)
            assert murmur2(key) == aiokafka_murmur2(key) & 0xFFFFFFFF, key.hex()


def test_a_partition_is_the_positive_hash_modulo_their_number() -> None:
    for n in range(1000):
        key = f"key-{n}".encode()
        assert partition_of(key, 7) == (aiokafka_murmur2(key) & 0x7FFFFFFF) % 7


def test_remembered_partitions_are_right_and_bounded() -> None:
    place = KeyPartitions(5, limit=10)
    for n in range(1000):
        key = str(n % 23).encode()
        assert place(key) == partition_of(key, 5)
        assert len(place._known) <= 10


def test_what_is_remembered_of_keys_is_bounded_in_bytes() -> None:
    place = KeyPartitions(5, limit_bytes=10_000)
    for n in range(200):
        key = b"%d" % n * 300
        assert place(key) == partition_of(key, 5)
        assert place.bytes <= 10_000
    assert place.bytes > 0
