"""Records on their way into a log: the batch of one partition, and how large Kafka's encoding of it would be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from semel.port import Producer

# Kafka's record batch, magic 2: the header, and what a record carries besides key, value and headers.
BATCH_OVERHEAD = 61
NO_PRODUCER = -1


class MemoryRecord(msgspec.Struct, array_like=True, gc=False):
    """One record; its offset is set when it is appended to a log."""

    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    offset: int = -1


class Batch(msgspec.Struct, array_like=True):
    """What a Produce request carries for one partition. `size` is in bytes of Kafka's own encoding."""

    producer_id: int
    epoch: int
    base_sequence: int
    size: int
    records: list[MemoryRecord]

    @property
    def last_sequence(self) -> int:
        return self.base_sequence + len(self.records) - 1


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)


def encode(batch: Batch) -> bytes:
    return _encoder.encode(batch)


def decode(data: bytes) -> Batch:
    return _decoder.decode(data)


def _varint_size(value: int) -> int:
    zigzag = (value << 1) ^ (value >> 63)
    return max(1, (zigzag.bit_length() + 6) // 7)


def _bytes_size(value: bytes | None) -> int:
    return 1 if value is None else _varint_size(len(value)) + len(value)


def record_size(
    offset_delta: int,
    timestamp_delta: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
) -> int:
    """Bytes of one record in Kafka's uncompressed encoding."""
    size = 1 + _varint_size(timestamp_delta) + _varint_size(offset_delta) + _bytes_size(key) + _bytes_size(value)
    size += _varint_size(len(headers))
    for name, content in headers:
        size += _bytes_size(name.encode()) + _bytes_size(content)
    return size + _varint_size(size)


def _check(timestamp: Any, key: Any, value: Any, headers: Any) -> None:
    """As the builder of Kafka's own batches refuses what is not bytes, or no text, or no time."""
    for given in (key, value):
        if given is not None and not isinstance(given, (bytes, bytearray, memoryview)):
            raise TypeError(f"a bytes-like object is required, not {type(given).__name__!r}")
    for name, content in headers:
        if type(name) is not str or not (content is None or isinstance(content, bytes)):
            raise TypeError(f"a header is a str and bytes, not {name!r} and {content!r:.80}")
    if not -(2**63) <= timestamp < 2**63:
        raise OverflowError("a timestamp is a number of 64 bits")


class MemoryBatchBuilder:
    """The port's `BatchBuilder`, filled by the rules of Kafka's own size."""

    def __init__(self, max_bytes: int, now_ms: Callable[[], int]) -> None:
        self._max_bytes = max_bytes
        self._now_ms = now_ms
        self._records: list[MemoryRecord] = []
        self._size = BATCH_OVERHEAD
        self._built = False

    def append(
        self,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
    ) -> bool:
        if timestamp is None:
            timestamp = self._now_ms()
        _check(timestamp, key, value, headers)
        records = self._records
        base = records[0].timestamp if records else timestamp
        size = record_size(len(records), timestamp - base, key, value, headers)
        if records and self._size + size > self._max_bytes:
            return False
        self._size += size
        records.append(MemoryRecord(timestamp, key, value, tuple(headers)))
        return True

    def fill(self, records: Sequence[tuple[Any, int | None, bytes | None, bytes | None, Any, int]], start: int) -> int:
        for nth, (_, timestamp, key, value, headers, _) in enumerate(records[start:], start):
            if not self.append(timestamp, key, value, headers):
                return nth
        return len(records)

    def count(self) -> int:
        return len(self._records)

    def build(self, producer: Producer, base_sequence: int) -> bytes:
        if self._built:
            raise ValueError("a batch is built once")
        self._built = True
        return encode(Batch(producer.id, producer.epoch, base_sequence, self._size, self._records))
