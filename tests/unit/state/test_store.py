"""The committed state: one RocksDB, atomic batches, and what happens when the disk is not as it should be."""

from __future__ import annotations

import contextlib
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semel.errors import StateDirectoryError
from semel.state.store import Store, StoreError, after_prefix, bucket_prefix, row_prefix
from tests.unit.rot import damage

MARK = bytes(33)


def rows_in(
    store: Store, partition: int, table: int, start: bytes = b"", end: bytes | None = None
) -> dict[bytes, bytes]:
    return dict(store.scan_rows(row_prefix(partition, table), start, end))


def put(store: Store, partition: int, table: int, changes: dict[bytes, bytes | None]) -> None:
    batch = store.batch()
    batch.rows(row_prefix(partition, table), changes)
    store.write(batch)


def test_rows_are_kept_by_partition_and_table_in_key_order(store: Store) -> None:
    put(store, 0, 1, {b"b": b"1", b"a": b"2", b"": b"3"})
    put(store, 0, 2, {b"a": b"other table"})
    put(store, 1, 1, {b"a": b"other partition"})
    assert list(store.scan_rows(row_prefix(0, 1))) == [(b"", b"3"), (b"a", b"2"), (b"b", b"1")]
    put(store, 0, 1, {b"a": None})
    assert rows_in(store, 0, 1) == {b"": b"3", b"b": b"1"}
    assert store.get_row(row_prefix(0, 1) + b"a") is None
    assert store.get_row(row_prefix(0, 2) + b"a") == b"other table"


def test_a_scan_takes_its_start_and_leaves_its_end(store: Store) -> None:
    put(store, 0, 1, {bytes([n]): b"" for n in (0, 5, 6, 7, 0xFF)})
    assert list(rows_in(store, 0, 1, b"\x05", b"\x07")) == [b"\x05", b"\x06"]
    assert list(rows_in(store, 0, 1, b"\x06\x00")) == [b"\x07", b"\xff"]
    assert rows_in(store, 0, 1, b"\x07", b"\x07") == {}


def test_a_scan_sees_the_rows_of_the_moment_it_began(store: Store) -> None:
    put(store, 0, 1, {b"a": b"1", b"b": b"1"})
    scan = store.scan_rows(row_prefix(0, 1))
    first = next(scan)
    put(store, 0, 1, {b"b": b"2", b"c": b"2"})
    assert [first, *scan] == [(b"a", b"1"), (b"b", b"1")]


def test_a_partition_is_forgotten_whole_and_no_other_is(store: Store) -> None:
    batch = store.batch()
    for partition in (6, 7, 8):
        batch.rows(row_prefix(partition, 1), {b"\xff" * 9: b"1"})
        batch.marks(bucket_prefix(partition, 5), {b"id": MARK})
        batch.marks(bucket_prefix(partition, -5), {b"id": MARK})
        batch.meta(partition, {"p": partition})
    store.write(batch)
    batch = store.batch()
    batch.drop_partition(7)
    store.write(batch)
    assert [store.meta(p) for p in (6, 7, 8)] == [{"p": 6}, None, {"p": 8}]
    assert [len(list(store.scan_rows(row_prefix(p, 1)))) for p in (6, 7, 8)] == [1, 0, 1]
    assert [len(list(store.scan_marks(p))) for p in (6, 7, 8)] == [2, 0, 2]


@pytest.mark.parametrize("bucket", [-(2**40), -2, -1, 0, 1, 255, 256, 2**40])
def test_a_bucket_of_marks_is_dropped_alone_also_one_from_before_1970(store: Store, bucket: int) -> None:
    around = [bucket - 1, bucket, bucket + 1]
    batch = store.batch()
    for b in around:
        batch.marks(bucket_prefix(3, b), {b"\xff\xff": MARK, b"": MARK})
    batch.marks(bucket_prefix(2, bucket), {b"id": MARK})
    batch.marks(bucket_prefix(4, bucket), {b"id": MARK})
    store.write(batch)
    batch = store.batch()
    batch.drop_bucket(3, bucket)
    store.write(batch)
    left = [store.get_marks(bucket_prefix(3, b), [b"\xff\xff", b""]) for b in around]
    assert left == [[MARK, MARK], [None, None], [MARK, MARK]]
    assert (
        store.get_marks(bucket_prefix(2, bucket), [b"id"])
        == store.get_marks(bucket_prefix(4, bucket), [b"id"])
        == [MARK]
    )


def test_a_batch_takes_effect_whole_when_it_is_written_and_not_before(store: Store) -> None:
    batch = store.batch()
    batch.rows(row_prefix(0, 1), {b"a": b"1"})
    batch.meta(0, {"next": 5})
    assert rows_in(store, 0, 1) == {}
    assert store.meta(0) is None
    store.write(batch)
    assert rows_in(store, 0, 1) == {b"a": b"1"}
    assert store.meta(0) == {"next": 5}


def test_what_was_written_is_there_after_a_close_and_after_a_reopen(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    put(store, 0, 1, {b"a": b"1"})
    store.reopen()
    put(store, 0, 1, {b"b": b"2"})
    store.close()
    again = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    assert rows_in(again, 0, 1) == {b"a": b"1", b"b": b"2"}
    again.close()


def test_a_batch_that_somebody_still_holds_does_not_keep_the_store_locked(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    batch = store.batch()
    batch.meta(0, {"next": 5})
    store.write(batch)
    store.close()
    again = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    assert again.meta(0) == {"next": 5}
    again.close()
    assert batch is not None


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get_row(b"x")
    for use in (
        lambda: store.get_marks(b"x", [b"y"]),
        lambda: store.meta(0),
        lambda: rows_in(store, 0, 1),
        store.batch,
        store.check_writable,
    ):
        with pytest.raises(StoreError, match="closed"):
            use()


def test_a_store_that_could_not_be_opened_again_can_be_closed_and_opened_later(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    put(store, 0, 1, {b"a": b"1"})
    (tmp_path / "db").rename(tmp_path / "aside")
    (tmp_path / "db").write_text("the device is gone")
    for _ in range(2):
        with pytest.raises(StateDirectoryError, match="cannot be opened"):
            store.reopen()
    store.close()
    store.close()
    (tmp_path / "db").unlink()
    (tmp_path / "aside").rename(tmp_path / "db")
    store.reopen()
    assert rows_in(store, 0, 1) == {b"a": b"1"}
    store.close()


def test_a_store_that_is_open_elsewhere_is_refused_with_a_way_out(store: Store) -> None:
    with pytest.raises(StateDirectoryError, match="cannot be opened"):
        Store(store.path, cache_mb=4, buffer_mb=4)


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").write_text("a file")
    with pytest.raises(StateDirectoryError, match=r"cannot be opened .* rebuilt from the changelogs"):
        Store(tmp_path / "db")


def test_a_broken_copy_is_thrown_away_because_the_changelogs_have_it_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    put(store, 0, 1, {b"a": b"1"})
    store.close()
    for manifest in (tmp_path / "db").glob("MANIFEST-*"):
        manifest.write_bytes(b"no manifest at all" * 10)
    again = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    assert rows_in(again, 0, 1) == {}
    put(again, 0, 1, {b"a": b"1"})
    assert rows_in(again, 0, 1) == {b"a": b"1"}
    again.close()


def test_a_disk_that_takes_no_writes_raises_a_store_error_until_it_is_mended(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    put(store, 0, 1, {b"before": b"1"})
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let a file grow, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, unlimited[1]))
    try:
        with pytest.raises(StoreError, match="could not write to"):
            put(store, 0, 1, {b"during": bytes(1 << 20)})
        with pytest.raises(StoreError):
            store.check_writable()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    store.reopen()
    store.check_writable()
    put(store, 0, 1, {b"after": b"2"})
    assert rows_in(store, 0, 1) == {b"before": b"1", b"after": b"2"}
    store.close()


@pytest.mark.parametrize(
    ("prefix", "after"),
    [(b"a", b"b"), (b"a\xff", b"b"), (b"\x00\xff\xff", b"\x01"), (b"\xff\xff", None), (b"", None)],
)
def test_after_prefix_is_the_first_key_beyond_it(prefix: bytes, after: bytes | None) -> None:
    assert after_prefix(prefix) == after


@pytest.fixture
def rotten(tmp_path: Path) -> Iterator[Store]:
    """What it holds was damaged while it was closed."""
    store = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    batch = store.batch()
    batch.rows(row_prefix(0, 1), {b"%05d" % n: bytes(100) for n in range(2_000)})
    batch.marks(bucket_prefix(0, 1), {b"%05d" % n: MARK for n in range(2_000)})
    batch.meta(0, {"next": 5})
    store.write(batch)
    store.table_numbers(["t"])
    store.close()
    for family in ("rows", "marks", "meta"):
        assert damage(tmp_path / "db", family)
    store = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    yield store
    with contextlib.suppress(StoreError):
        store.close()


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda s: s.get_marks(bucket_prefix(0, 1), [b"00001", b"00002"]), id="marks"),
        pytest.param(lambda s: list(s.scan_rows(row_prefix(0, 1))), id="a scan of rows"),
        pytest.param(lambda s: list(s.scan_marks(0)), id="a scan of marks"),
        pytest.param(lambda s: list(s.scan_ids(bucket_prefix(0, 1), b"0")), id="a scan of ids"),
        pytest.param(lambda s: s.meta(0), id="what a task stands at"),
        pytest.param(lambda s: s.table_numbers(["t"]), id="the numbers of tables"),
    ],
)
def test_whatever_reads_a_damaged_block_says_that_the_store_is_damaged(
    rotten: Store, read: Callable[[Store], object]
) -> None:
    with pytest.raises(StoreError, match="Corruption") as said:
        read(rotten)
    assert said.value.damaged


def test_a_scan_gives_the_rows_before_the_damage_and_never_ends_as_if_there_were_no_more(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    rng = random.Random(0)
    put(store, 0, 1, {b"%05d" % n: rng.randbytes(100) for n in range(2_000)})
    store.close()
    assert damage(tmp_path / "db", "rows", at=100_000) == 1
    store = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    found: list[bytes] = []
    with pytest.raises(StoreError, match="Corruption"):
        for key, _ in store.scan_rows(row_prefix(0, 1)):
            found.append(key)
    assert 0 < len(found) < 1_500
    assert found == [b"%05d" % n for n in range(len(found))]
    store.close()


def test_a_damaged_store_is_made_anew_empty_and_takes_what_it_is_given(rotten: Store) -> None:
    rotten.reopen()
    with pytest.raises(StoreError):
        rows_in(rotten, 0, 1)
    rotten.reopen(empty=True)
    rotten.check_writable()
    assert rows_in(rotten, 0, 1) == {}
    assert rotten.meta(0) is None
    assert rotten.table_numbers(["other"]) == {"other": 1}
    put(rotten, 0, 1, {b"a": b"1"})
    assert rows_in(rotten, 0, 1) == {b"a": b"1"}


def test_a_full_disk_is_no_damage(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", cache_mb=4, buffer_mb=4)
    assert not store.failed("write to", Exception("IO error: No space left on device: While appending")).damaged
    assert store.failed("read from", Exception("IO error: Input/output error: While pread")).damaged
    store.close()


def test_what_a_lookup_reads_does_not_grow_with_the_rows_there_are(tmp_path: Path) -> None:
    """Filters and indexes are read in blocks: whole, those of many rows find no room in the cache, and are read each time."""
    if not Path("/proc/self/io").exists():
        pytest.skip("what a process reads is counted on Linux only")
    store = Store(tmp_path / "db", cache_mb=1, buffer_mb=8)
    prefix, rows = row_prefix(1, 1), 600_000
    for first in range(0, rows, 20_000):
        batch = store.batch()
        # In no order, so that the files are merged into large ones.
        batch.rows(prefix, {b"%08d" % (n * 700_001 % rows): b"row" for n in range(first, first + 20_000)})
        store.write(batch)
    store.reopen()
    before, lookups = read_bytes(), 500
    for n in range(lookups):
        assert store.get_row(prefix + b"%08d?" % (n * rows // lookups)) is None
    assert (read_bytes() - before) / lookups < 32_000
    store.close()


def read_bytes() -> int:
    """By this process so far, from wherever."""
    return int(Path("/proc/self/io").read_text().split()[1])
