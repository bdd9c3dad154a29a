"""Which partition a key belongs to: murmur2, as Java's default partitioner (KIP-480 leaves keyed records to it)."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

_words: dict[int, Callable[[bytes], tuple[int, ...]]] = {}
# Longer keys are rare, and there are many lengths.
_KEPT_WORDS = 256
_MASK = 0xFFFFFFFF
_M = 0x5BD1E995


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 of `data`, unsigned (org.apache.kafka.common.utils.Utils.murmur2)."""
    length = len(data)
    words = length >> 2
    unpack = _words.get(words)
    if unpack is None:
        unpack = Struct(f"<{words}I").unpack_from
        if words <= _KEPT_WORDS:
            _words[words] = unpack
    h = 0x9747B28C ^ length
    for k in unpack(data):
        k = (k * _M) & _MASK
        h = ((h * _M) & _MASK) ^ (((k ^ (k >> 24)) * _M) & _MASK)
    tail = length & 3
    if tail:
        start = words << 2
        if tail == 3:
            h ^= data[start + 2] << 16
        if tail >= 2:
            h ^= data[start + 1] << 8
        h = ((h ^ data[start]) * _M) & _MASK
    h = ((h ^ (h >> 13)) * _M) & _MASK
    return h ^ (h >> 15)


def partition_of(key: bytes, partitions: int) -> int:
    return (murmur2(key) & 0x7FFFFFFF) % partitions


# What a key takes in a dict beside its own bytes.
_KEY_BYTES = 120


class KeyPartitions:
    """Remembers the partitions of keys seen lately: hashing in Python costs a microsecond, keys repeat.

    Bounded by `limit` keys and by `limit_bytes`; past one of them the memory starts over. `bytes`: what it takes now.
    """

    __slots__ = ("_known", "bytes", "limit", "limit_bytes", "partitions")

    def __init__(self, partitions: int, limit: int = 100_000, *, limit_bytes: int = 10 << 20) -> None:
        self.partitions = partitions
        self.limit = limit
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._known: dict[bytes, int] = {}

    def __call__(self, key: bytes) -> int:
        partition = self._known.get(key)
        if partition is None:
            size = _KEY_BYTES + len(key)
            if len(self._known) >= self.limit or self.bytes + size > self.limit_bytes:
                self._known.clear()
                self.bytes = 0
            self.bytes += size
            partition = self._known[key] = partition_of(key, self.partitions)
        return partition
