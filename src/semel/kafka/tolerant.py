"""A record batch read in Python, for what aiokafka's C codec does not do: header names that are not UTF-8, and the
beginning of a batch whose rest is not there.

Kafka says header names are UTF-8, but no broker checks it, and some clients send any bytes. Refusing such
a batch would stop its partition for ever.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from aiokafka.record.util import decode_varint

_FIRST_TIMESTAMP = struct.Struct(">q")
_HEADER_BYTES = 61
_TIMESTAMPS_AT = 27
_MAX_TIMESTAMP_AT = 35
_COUNT_AT = 57


class TolerantRecord(NamedTuple):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def read_batch(data: memoryview, batch: Any) -> list[TolerantRecord]:
    """The records of the one batch in `data`, not compressed, which `batch` describes. Odd bytes of a header's name
    become `\\xNN`."""
    return list(read_each(data, batch))


def read_each(data: memoryview, batch: Any) -> Iterator[TolerantRecord]:
    """The same one by one. ValueError or IndexError at the first that is not all there."""
    (first_timestamp,) = _FIRST_TIMESTAMP.unpack_from(data, _TIMESTAMPS_AT)
    (max_timestamp,) = _FIRST_TIMESTAMP.unpack_from(data, _MAX_TIMESTAMP_AT)
    (count,) = struct.unpack_from(">i", data, _COUNT_AT)
    reader = _Reader(bytearray(data[_HEADER_BYTES:]))
    appended = batch.timestamp_type == 1
    for _ in range(count):
        reader.varint()  # length
        reader.at += 1  # attributes
        timestamp = first_timestamp + reader.varint()
        offset = batch.base_offset + reader.varint()
        key, value = reader.field(), reader.field()
        headers = [(reader.name(), reader.field()) for _ in range(reader.varint())]
        yield TolerantRecord(offset, max_timestamp if appended else timestamp, key, value, headers)


class _Reader:
    def __init__(self, buffer: bytearray) -> None:
        self.buffer = buffer
        self.at = 0

    def varint(self) -> int:
        value, self.at = decode_varint(self.buffer, self.at)
        return value

    def field(self) -> bytes | None:
        length = self.varint()
        if length < 0:
            return None
        start, self.at = self.at, self.at + length
        if self.at > len(self.buffer):
            raise ValueError("a record field reaches beyond its batch")
        return bytes(self.buffer[start : self.at])

    def name(self) -> str:
        return (self.field() or b"").decode("utf-8", "backslashreplace")
