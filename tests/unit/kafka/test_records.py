from __future__ import annotations

import random
import struct
import tracemalloc

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from semel.codes import Code
from semel.errors import ConfigError
from semel.kafka import decompression, records
from semel.kafka.records import Batch, codec_number
from semel.port import Producer, TooLarge

ABORT, COMMIT = 0, 1
CONTROL = 0x20


def sealed(data: bytes | bytearray, base_offset: int) -> bytes:
    """As the broker stores a batch: at its offset, the checksum over what was changed."""
    changed = bytearray(data)
    struct.pack_into(">q", changed, 0, base_offset)
    struct.pack_into(">I", changed, 17, calc_crc32c(bytes(changed[21:])))
    return bytes(changed)


def batch(base_offset: int, count: int, producer: int = 7, compression: str | None = None) -> bytes:
    building = Batch(1 << 20, codec_number(compression))
    for i in range(count):
        assert building.append(1000 + i, b"k%d" % (base_offset + i), b"v" * 20, [("h", b"x"), ("none", None)])
    return sealed(building.build(Producer("t", producer, 3), 0), base_offset)


def plain(base_offset: int, count: int) -> bytes:
    building = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for i in range(count):
        building.append(i, 1000, b"p", b"v", [])
    return sealed(building.build(), base_offset)


def marker(offset: int, kind: int, producer: int = 7) -> bytes:
    building = DefaultRecordBatchBuilder(2, 0, 1, producer, 3, -1, 1000)
    building.append(0, 1000, struct.pack(">HH", 0, kind), struct.pack(">HI", 0, 0), [])
    data = building.build()
    data[22] |= CONTROL
    return sealed(data, offset)


def offsets(found: list[records.Record]) -> list[int]:
    return [record.offset for record in found]


def test_a_built_batch_reads_back_with_keys_times_and_headers() -> None:
    found, position, error = records.read(batch(40, 3), 40, aborted=())
    assert (offsets(found), position, error) == ([40, 41, 42], 43, 0)
    assert [(r.key, r.value, r.timestamp) for r in found[:2]] == [(b"k40", b"v" * 20, 1000), (b"k41", b"v" * 20, 1001)]
    assert list(found[0].headers) == [("h", b"x"), ("none", None)]


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_every_compression_reads_back_and_is_smaller(compression: str) -> None:
    compressed = batch(0, 200, compression=compression)
    assert len(compressed) < len(batch(0, 200)) / 2
    found, position, error = records.read(compressed, 0, aborted=())
    assert (len(found), position, error, found[-1].key) == (200, 200, 0, b"k199")


def test_the_producer_and_its_sequence_stand_in_the_batch() -> None:
    building = Batch(1000, 0)
    building.append(1, None, None, [])
    data = building.build(Producer("t", 11, 5), 42)
    assert struct.unpack_from(">qhii", data, 43) == (11, 5, 42, 1)
    assert data[22] & 0x10  # transactional


def test_a_full_batch_refuses_a_record_unchanged_and_a_first_record_always_fits() -> None:
    building = Batch(300, 0)
    assert building.append(1, b"k", b"v" * 1000, [])
    assert not building.append(1, b"k", b"v", [])
    assert building.count() == 1
    found, position, _ = records.read(building.build(Producer("t", 1, 0), 0), 0, aborted=())
    assert (len(found), position) == (1, 1)


def test_records_below_the_offset_asked_for_are_left_out() -> None:
    found, position, _ = records.read(batch(10, 5) + batch(15, 5), 13, aborted=())
    assert (offsets(found), position) == ([13, 14, 15, 16, 17, 18, 19], 20)


def test_a_batch_that_is_cut_off_is_not_looked_at() -> None:
    found, position, error = records.read(batch(0, 3) + batch(3, 3)[:-1], 0, aborted=())
    assert (offsets(found), position, error) == ([0, 1, 2], 3, 0)
    assert records.read(batch(0, 3)[:50], 0, aborted=()) == ([], 0, 0)


@pytest.mark.parametrize("nothing", [None, b""])
def test_the_position_stays_where_nothing_was_fetched(nothing: bytes | None) -> None:
    assert records.read(nothing, 5, aborted=()) == ([], 5, 0)


@pytest.mark.parametrize("aborted", [(), None], ids=["committed", "uncommitted"])
def test_control_records_are_left_out_and_the_position_is_after_them(aborted: tuple[()] | None) -> None:
    found, position, _ = records.read(batch(0, 2) + marker(2, COMMIT), 0, aborted=aborted)
    assert (offsets(found), position) == ([0, 1], 3)


def test_aborted_records_are_left_out_until_the_marker_ends_their_transaction() -> None:
    log = (
        batch(0, 2, producer=7)
        + batch(2, 2, producer=8)
        + marker(4, ABORT, 7)
        + batch(5, 2, producer=7)
        + marker(7, COMMIT, 7)
        + marker(8, COMMIT, 8)
        + batch(9, 1, producer=7)
        + marker(10, ABORT, 7)
    )
    # The broker sends them in no promised order.
    aborted = [(7, 9), (7, 0)]
    found, position, _ = records.read(log, 0, aborted=aborted)
    assert (offsets(found), position) == ([2, 3, 5, 6], 11)
    assert offsets(records.read(log, 0, aborted=None)[0]) == [0, 1, 2, 3, 5, 6, 9]


def test_a_transaction_that_began_before_the_fetch_is_left_out_too() -> None:
    found, position, _ = records.read(batch(10, 2) + marker(12, ABORT) + plain(13, 1), 10, aborted=[(7, 3)])
    assert (offsets(found), position) == ([13], 14)


def test_records_outside_transactions_stand_between_aborted_ones() -> None:
    found, position, _ = records.read(batch(0, 1) + plain(1, 2) + batch(3, 1), 0, aborted=[(7, 0)])
    assert (offsets(found), position) == ([1, 2], 4)


def test_a_batch_emptied_by_compaction_moves_the_position() -> None:
    emptied = bytearray(batch(5, 3)[:61])
    struct.pack_into(">i", emptied, 8, 61 - 12)
    struct.pack_into(">i", emptied, 57, 0)
    found, position, error = records.read(sealed(emptied, 5) + batch(8, 1), 5, aborted=())
    assert (offsets(found), position, error) == ([8], 9, 0)


def test_a_marker_emptied_by_compaction_hides_nothing_and_is_passed() -> None:
    emptied = bytearray(marker(1, ABORT)[:61])
    struct.pack_into(">i", emptied, 8, 61 - 12)
    struct.pack_into(">i", emptied, 57, 0)
    found, position, error = records.read(batch(0, 1, 8) + sealed(emptied, 1), 0, aborted=[(7, 0)])
    assert (offsets(found), position, error) == ([0], 2, 0)


def test_a_corrupt_batch_ends_the_set_and_is_the_answer_once_it_comes_first() -> None:
    broken = bytearray(batch(3, 3))
    broken[-1] ^= 0xFF
    found, position, error = records.read(batch(0, 3) + bytes(broken), 0, aborted=())
    assert (offsets(found), position, error) == ([0, 1, 2], 3, 0)
    assert records.read(bytes(broken), 3, aborted=()) == ([], 3, Code.CORRUPT_MESSAGE)


def test_a_batch_of_the_old_format_reads_too() -> None:
    building = LegacyRecordBatchBuilder(1, 0, 1000)
    building.append(0, 1234, b"k", b"v")
    found, position, error = records.read(bytes(building.build()), 0, aborted=())
    assert (offsets(found), position, error) == ([0], 1, 0)
    assert (found[0].key, found[0].timestamp, list(found[0].headers)) == (b"k", 1234, [])


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
def test_a_header_name_that_is_not_utf_8_stops_nothing(compression: str | None) -> None:
    building = DefaultRecordBatchBuilder(2, codec_number(compression), 1, 7, 3, 0, 1 << 20)
    good = [("plain", b"1"), ("h\N{LATIN SMALL LETTER E WITH ACUTE}", None)]
    for i in range(100):
        building.append(i, 1000 + i, b"k" if i else None, b"value" * 10, good)
    as_read_in_c, *_ = records.read(sealed(building.build(), 20), 20, aborted=())

    # The same batch with one byte of the first header name spoilt.
    building = DefaultRecordBatchBuilder(2, 0, 1, 7, 3, 0, 1 << 20)
    for i in range(100):
        building.append(i, 1000 + i, b"k" if i else None, b"value" * 10, good)
    spoilt = building.build()
    spoilt[spoilt.index(b"plain")] = 0xFF
    if compression:
        from aiokafka import codec

        body = bytes(getattr(codec, f"{compression}_encode")(bytes(spoilt[61:])))
        spoilt[61:] = body
        spoilt[22] |= codec_number(compression)
        struct.pack_into(">i", spoilt, 8, len(spoilt) - 12)
    found, position, error = records.read(batch(10, 10) + sealed(spoilt, 20), 19, aborted=())
    assert (position, error, len(found)) == (120, 0, 101)
    assert list(found[1].headers) == [("\\xfflain", b"1"), good[1]]
    for mine, theirs in zip(found[2:], as_read_in_c[1:], strict=True):
        assert (mine.offset, mine.timestamp, mine.key, mine.value, list(mine.headers)) == (
            theirs.offset,
            theirs.timestamp,
            theirs.key,
            theirs.value,
            list(theirs.headers),
        )


def test_an_unknown_compression_is_refused_by_name() -> None:
    assert codec_number(None) == codec_number("none") == 0
    with pytest.raises(ConfigError, match="'brotli' is unknown; use one of none, gzip, snappy, lz4, zstd"):
        codec_number("brotli")


# -- a few bytes that stand for many


def packed(compression: str, *values: bytes, base_offset: int = 0) -> bytes:
    building = DefaultRecordBatchBuilder(2, codec_number(compression), 0, -1, -1, -1, 1 << 31)
    for i, value in enumerate(values):
        assert building.append(i, 1000, b"k", value, []) is not None
    return sealed(building.build(), base_offset)


@pytest.fixture
def small_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch may hold a million bytes."""
    monkeypatch.setattr(decompression, "BOUND_BYTES", 1_000_000)


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_a_record_beyond_the_bound_is_never_decompressed_whole(compression: str, small_bound: None) -> None:
    bomb = packed(compression, b"small", b"0" * 30_000_000, b"behind it")
    tracemalloc.start()
    try:
        found, position, error = records.read(batch(0, 2) + sealed(bomb, 2), 0, aborted=())
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (offsets(found), position, error) == ([0, 1, 2, 3, 4], 5, 0)
    assert found[2].value == b"small"
    assert [type(r) is TooLarge for r in found] == [False, False, False, True, True]
    assert (found[3].key, found[3].value, found[3].timestamp) == (None, None, 1000)
    assert most < 20_000_000


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_a_batch_that_grows_by_no_more_than_it_may_is_read_whole(compression: str, small_bound: None) -> None:
    values = [random.Random(n).randbytes(300_000) for n in range(5)]
    found, position, error = records.read(packed(compression, *values), 0, aborted=())
    assert ([r.value for r in found], position, error) == (values, 5, 0), "compressed it is no smaller"


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_a_damaged_batch_is_damaged_and_no_bomb(compression: str) -> None:
    whole = packed(compression, b"0" * 10_000)
    damaged = bytearray(whole)
    damaged[61:] = bytes(len(damaged) - 61)
    assert records.read(sealed(damaged, 0), 0, aborted=()) == ([], 0, Code.CORRUPT_MESSAGE)


@pytest.mark.parametrize("odd", [False, True], ids=["", "with odd header names"])
def test_what_holds_more_than_enough_is_read_in_parts_and_nothing_is_passed_over(
    odd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "ENOUGH_BYTES", 5_000)
    monkeypatch.setattr(records, "ENOUGH_RECORDS", 30)
    building = DefaultRecordBatchBuilder(2, codec_number("zstd"), 0, -1, -1, -1, 1 << 20)
    for i in range(100):
        building.append(i, 1000, b"k", b"v" * (i % 7) * 100, [("h", b"x")])
    log = batch(0, 5) + sealed(building.build(), 5) + batch(105, 5) + packed("gzip", *[b""] * 70, base_offset=110)
    if odd:
        real = records.MemoryRecords

        class Refusing:
            def __init__(self, data: bytes) -> None:
                self._real = real(data)

            def __getattr__(self, name: str) -> object:
                return getattr(self._real, name)

            def next_batch(self) -> object:
                return RefusesNames(self._real.next_batch())

        monkeypatch.setattr(records, "MemoryRecords", Refusing)
    seen: list[int] = []
    position, reads = 0, 0
    while position < 180:
        found, after, error = records.read(log, position, aborted=())
        assert error == 0 and after > position
        assert len(found) <= 30 + 5
        seen += offsets(found)
        position, reads = after, reads + 1
    assert seen == list(range(180))
    assert reads >= 8


class RefusesNames:
    """A batch whose tenth record's header name the C codec refuses."""

    def __init__(self, batch: object) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> object:
        return getattr(self._batch, name)

    def __iter__(self) -> object:
        for number, record in enumerate(self._batch):
            if number == 9:
                b"\xff".decode()
            yield record


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_batches_beyond_the_bytes_asked_for_are_left_for_the_next_time(compression: str | None) -> None:
    data = b"".join(batch(n * 10, 10, compression=compression) for n in range(4))
    position, seen = 0, list[int]()
    while position < 40:
        found, after, error = records.read(data, position, aborted=(), most_bytes=300)
        assert error == 0 and position < after <= position + 20
        seen += offsets(found)
        position = after
    assert seen == list(range(40))
    assert records.read(data, 0, aborted=(), most_bytes=10_000)[1] == 40
    assert records.read(data, 0, aborted=(), most_bytes=1)[1] in (1, 10), (
        "one record of what was compressed, else a batch"
    )
