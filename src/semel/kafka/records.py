"""Record batches: building the ones we send, reading the ones a fetch brought.

Both directions stand on aiokafka's C codecs. Per record, reading does no Python at all unless the
fetch began in the middle of a batch, or a batch holds more than is read at once.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, cast

from aiokafka import codec
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from semel.codes import Code
from semel.errors import ConfigError
from semel.kafka.decompression import bound_of, decompressed
from semel.kafka.tolerant import read_batch, read_each
from semel.port import Producer, Record, TooLarge

_CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_MAGIC = 2
_LOG_OVERHEAD = 12
_BATCH_LENGTH = struct.Struct(">i")
_ATTRIBUTES = struct.Struct(">h")
_COUNT = struct.Struct(">i")
_LENGTH_AT, _MAGIC_AT, _ATTRIBUTES_AT, _COUNT_AT, _HEADER_BYTES = 8, 16, 21, 57, 61
_COMPRESSION_BITS = 0x07
_NO_HEADERS: list[Any] = []

# What one read hands on of one partition, compressed batches decompressed: several times what a fetch asks for. Both
# bounds are passed by one batch, or one record, at most; the rest is for the next fetch.
ENOUGH_BYTES = 16 << 20
ENOUGH_RECORDS = 100_000


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

    def fill(self, records: Sequence[tuple[Any, int | None, bytes | None, bytes | None, Any, int]], start: int) -> int:
        append, count = self._append, self._count
        for _, timestamp, key, value, headers, _ in islice(records, start, None):
            if append(count, timestamp, key, value, list(headers) if headers else _NO_HEADERS) is None:
                break
            count += 1
        appended, self._count = count - self._count, count
        return start + appended

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
    most_bytes: int = ENOUGH_BYTES,
) -> tuple[list[Record], int, int]:
    """Records of a fetched record set from `offset` on, the position after them, and an error code or 0.

    `aborted` holds (producer id, first offset) of the aborted transactions that overlap the set; None
    reads uncommitted. Control records are left out either way. A batch cut off at the end is not looked at.
    A batch that cannot be read ends the set: what stood before it is returned, and only where nothing did
    is its code (2 corrupt, 76 unknown compression) the answer.

    What a few compressed bytes stand for is bounded: past `most_bytes` or `ENOUGH_RECORDS` the position is where the
    next read goes on, if need be within a batch; records beyond `decompression.bound_of` a batch are `TooLarge`.
    """
    records: list[Record] = []
    position, taken = offset, 0
    if not data:
        return records, position, 0
    transactions = _AbortedTransactions(aborted or ())
    batches = MemoryRecords(data)
    at = 0
    enough = min(most_bytes, ENOUGH_BYTES)
    try:
        while batches.has_next():
            # Typed as one of two classes by aiokafka; the legacy one (magic 0 and 1) has no producer.
            batch: Any = batches.next_batch()
            start, at = at, at + _LOG_OVERHEAD + _BATCH_LENGTH.unpack_from(data, at + _LENGTH_AT)[0]
            if not batch.validate_crc():
                raise CorruptRecordException
            if not transactions.hide(batch) and not batch.is_control_batch:
                content = _Content(batch, memoryview(data)[start:at])
                of_batch = content.records(offset, ENOUGH_RECORDS - len(records), enough - taken)
                records += of_batch
                taken += content.size
                if content.left:
                    return records, of_batch[-1].offset + 1, 0
            position = max(position, batch.next_offset)
            if position > offset and (taken >= enough or len(records) >= ENOUGH_RECORDS):
                break
    except UnsupportedCodecError:
        return records, position, 0 if position > offset else Code.UNSUPPORTED_COMPRESSION_TYPE
    except Exception:
        # Whatever the codec of a batch raises: it is this partition's, and no other's in the same answer.
        return records, position, 0 if position > offset else Code.CORRUPT_MESSAGE
    return records, position, 0


class _Content:
    """The records of one batch, decompressed. `size`: its bytes then; `left`: it holds more than were asked for."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch: Any = batch
        self._whole = True
        self.left = False
        compressed = data[_MAGIC_AT] == _MAGIC and batch.compression_type
        if compressed:
            body, self._whole = decompressed(data[_HEADER_BYTES:], compressed, bound_of(len(data)))
            plain = _uncompressed(data, body)
            self._batch, data = MemoryRecords(plain).next_batch(), memoryview(plain)
        self._data = data
        self._compressed = bool(compressed)
        self.size = len(data)

    def records(self, offset: int, most: int, most_bytes: int) -> list[Record]:
        """Those from `offset` on, one at least; `most` of them, where they come of few bytes."""
        if self._whole and (not self._compressed or (self.size <= most_bytes and self._count <= most)):
            try:
                records: list[Record] = list(self._batch)
            except UnicodeDecodeError:
                records = cast("list[Record]", read_batch(self._data, self._batch))
            return records if records and records[0].offset >= offset else [r for r in records if r.offset >= offset]
        return self._some(offset, most, most_bytes)

    @property
    def _count(self) -> int:
        return _COUNT.unpack_from(self._data, _COUNT_AT)[0]

    def _some(self, offset: int, most: int, most_bytes: int) -> list[Record]:
        taken: list[Record] = []
        size = 0
        for record in self._each():
            if record.offset < offset:
                continue
            if len(taken) >= most or (taken and size >= most_bytes):
                self.left = True
                break
            taken.append(record)
            size += len(record.key or b"") + len(record.value or b"")
        self.size = size
        return taken

    def _each(self) -> Iterator[Record]:
        """All there is of it: what the bytes hold, then a `TooLarge` for each record that they do not."""
        number, last = 0, self._batch.base_offset - 1
        if self._whole:
            try:
                for record in self._batch:
                    last = record.offset
                    yield record
                return
            except UnicodeDecodeError:
                yield from (cast("Record", r) for r in read_each(self._data, self._batch) if r.offset > last)
                return
        try:
            for record in read_each(self._data, self._batch):
                number, last = number + 1, record.offset
                yield cast("Record", record)
        except (ValueError, IndexError):
            pass
        why = f"decompressed, its batch is larger than {bound_of(0) >> 20} MiB; nothing of this record was read"
        for nth in range(self._count - number):
            yield TooLarge(last + 1 + nth, self._batch.max_timestamp, why)


def _uncompressed(data: memoryview, body: bytes) -> bytes:
    """The batch as it was before it was compressed; its checksum is that of what it was."""
    plain = bytearray(data[:_HEADER_BYTES])
    (attributes,) = _ATTRIBUTES.unpack_from(plain, _ATTRIBUTES_AT)
    _ATTRIBUTES.pack_into(plain, _ATTRIBUTES_AT, attributes & ~_COMPRESSION_BITS)
    _BATCH_LENGTH.pack_into(plain, _LENGTH_AT, _HEADER_BYTES + len(body) - _LOG_OVERHEAD)
    return bytes(plain) + body


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
