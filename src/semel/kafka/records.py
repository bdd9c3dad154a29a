"""Record batches: building the ones we send, reading the ones a fetch brought.

Both directions stand on aiokafka's C codecs. Per record, reading does no Python at all unless the
fetch began in the middle of a batch.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, cast

from aiokafka import codec
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from semel.errors import ConfigError
from semel.kafka.tolerant import read_batch
from semel.port import Producer, Record

CORRUPT_MESSAGE = 2
UNSUPPORTED_COMPRESSION_TYPE = 76

_CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_MAGIC = 2
_LOG_OVERHEAD = 12
_BATCH_LENGTH = struct.Struct(">i")


def codec_number(compression: str | None) -> int:
    """The number of a compression type in a batch's attributes. ConfigError if unknown or its library is missing."""
    if compression is None or compression == "none":
        return 0
    number = _CODECS.get(compression)
    if number is None:
        raise ConfigError(f"compression {compression!r} is unknown; use one of none, {', '.join(_CODECS)}")
    if not getattr(codec, f"has_{compression}")():
        raise ConfigError(f"compression {compression!r} needs a library that is not installed: install cramjam")
    return number


class Batch:
    """A `BatchBuilder`: one transactional batch on aiokafka's C builder. Sizes are before compression."""

    __slots__ = ("_append", "_builder", "_count")

    def __init__(self, max_bytes: int, codec_number: int) -> None:
        self._builder = DefaultRecordBatchBuilder(_MAGIC, codec_number, 1, -1, -1, 0, max_bytes)
        self._append = self._builder.append
        self._count = 0

    def append(
        self,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
    ) -> bool:
        if self._append(self._count, timestamp, key, value, list(headers)) is None:
            return False
        self._count += 1
        return True

    def count(self) -> int:
        return self._count

    def build(self, producer: Producer, base_sequence: int) -> bytes:
        self._builder.set_producer_state(producer.id, producer.epoch, base_sequence)
        return bytes(self._builder.build())


def read(
    data: bytes | None,
    offset: int,
    *,
    aborted: Sequence[tuple[int, int]] | None,
) -> tuple[list[Record], int, int]:
    """Records of a fetched record set from `offset` on, the position after them, and an error code or 0.

    `aborted` holds (producer id, first offset) of the aborted transactions that overlap the set; None
    reads uncommitted. Control records are left out either way. A batch cut off at the end is not looked at.
    A batch that cannot be read ends the set: what stood before it is returned, and only where nothing did
    is its code (2 corrupt, 76 unknown compression) the answer.
    """
    records: list[Record] = []
    position = offset
    if not data:
        return records, position, 0
    transactions = _AbortedTransactions(aborted or ())
    batches = MemoryRecords(data)
    at = 0
    try:
        while batches.has_next():
            # Typed as one of two classes by aiokafka; the legacy one (magic 0 and 1) has no producer.
            batch: Any = batches.next_batch()
            start, at = at, at + _LOG_OVERHEAD + _BATCH_LENGTH.unpack_from(data, at + 8)[0]
            if not batch.validate_crc():
                raise CorruptRecordException
            if not transactions.hide(batch) and not batch.is_control_batch:
                found = _records(batch, data, start, at)
                if found and found[0].offset < offset:
                    found = [record for record in found if record.offset >= offset]
                records += found
            position = max(position, batch.next_offset)
    except UnsupportedCodecError:
        return records, position, 0 if position > offset else UNSUPPORTED_COMPRESSION_TYPE
    except (CorruptRecordException, ValueError, IndexError):
        return records, position, 0 if position > offset else CORRUPT_MESSAGE
    return records, position, 0


def _records(batch: Any, data: bytes, start: int, end: int) -> list[Record]:
    try:
        return cast("list[Record]", list(batch))
    except UnicodeDecodeError:
        return cast("list[Record]", read_batch(data[start:end], batch))


class _AbortedTransactions:
    """Which batches an aborted transaction wrote. Asks to see every batch of the set, in order."""

    def __init__(self, transactions: Sequence[tuple[int, int]]) -> None:
        self._ahead = sorted(transactions, key=_first_offset, reverse=True)
        self._open: set[int] = set()

    def hide(self, batch: Any) -> bool:
        while self._ahead and self._ahead[-1][1] < batch.next_offset:
            self._open.add(self._ahead.pop()[0])
        if batch.producer_id not in self._open:
            return False
        if not batch.is_control_batch:
            return batch.is_transactional
        marker = next(batch, None)  # compaction can empty a control batch
        if marker is not None and ControlRecord.parse(marker.key) == ABORT_MARKER:
            self._open.discard(batch.producer_id)
        return True


def _first_offset(transaction: tuple[int, int]) -> int:
    return transaction[1]
