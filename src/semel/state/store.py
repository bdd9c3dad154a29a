"""The committed state of one worker in one RocksDB; the only file that knows rocksdict.

One database a worker, whatever the number of its partitions: one write buffer, one block cache, one write-ahead log,
and one atomic batch per commit. Rows, marks and meta are column families; keys begin with the partition, so that a
partition can be dropped or scanned by range. Nothing that is not committed on Kafka is ever written here.

The write-ahead log is on and not synced: a killed process loses nothing; a machine that loses power falls back to an
earlier commit, whole, and the changelog brings it forward.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Any

import orjson
from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
)

from semel.errors import StateDirectoryError

log = logging.getLogger("semel.store")

_ROW = Struct(">IH")
_BUCKET = Struct(">Iq")
_PARTITION = Struct(">I")
# Keys of the meta family that are no partition's.
_NUMBERS, _CHECK = b"tables", b"writable"
_FAMILIES = ("rows", "marks", "meta")
_MIB = 1 << 20
# How RocksDB and the system say that what stands on the disk is not what was written, or cannot be read at all.
_DAMAGE = ("Corruption", "Input/output error")


class StoreError(Exception):
    """RocksDB refused: a full or broken disk, mostly. The store must be opened again.

    `damaged`: what it holds cannot be relied on any more; opening it again is no help, it must be made anew.
    """

    def __init__(self, text: str, *, damaged: bool = False) -> None:
        super().__init__(text)
        self.damaged = damaged


class StoreBatch:
    """Writes that take effect together, once: writing it ends it."""

    __slots__ = ("_marks", "_meta", "_rows", "raw")

    def __init__(self, rows: Any, marks: Any, meta: Any) -> None:
        self.raw = WriteBatch(raw_mode=True)
        self._rows, self._marks, self._meta = rows, marks, meta

    def release(self) -> None:
        """Let go of the database: whoever keeps the batch, as the frames of an error do, would keep its lock."""
        self._rows = self._marks = self._meta = None

    def rows(self, prefix: bytes, changes: dict[bytes, bytes | None]) -> None:
        put, delete, family = self.raw.put, self.raw.delete, self._rows
        for key in sorted(changes):
            value = changes[key]
            if value is None:
                delete(prefix + key, family)
            else:
                put(prefix + key, value, family)

    def marks(self, prefix: bytes, changes: dict[bytes, bytes]) -> None:
        put, family = self.raw.put, self._marks
        for key in sorted(changes):
            put(prefix + key, changes[key], family)

    def drop_bucket(self, partition: int, bucket: int) -> None:
        prefix = bucket_prefix(partition, bucket)
        # Not the next bucket's: that of bucket -1, of an event of 1969, comes first.
        self.raw.delete_range(prefix, after_prefix(prefix) or b"\xff" * 13, self._marks)

    def meta(self, partition: int, meta: dict[str, Any]) -> None:
        self.raw.put(_PARTITION.pack(partition), orjson.dumps(meta), self._meta)

    def drop_partition(self, partition: int) -> None:
        """Forget a partition's rows, marks and meta."""
        begin, end = _PARTITION.pack(partition), _PARTITION.pack(partition + 1)
        self.raw.delete_range(begin, end, self._rows)
        self.raw.delete_range(begin, end, self._marks)
        self.raw.delete(begin, self._meta)


class Store:
    """Opened over a directory; StateDirectoryError where that fails, StoreError later.

    `cache_mb` bounds the block cache, `buffer_mb` all write buffers together. `found_damaged`: how often it was when it was
    opened, and was made anew.
    """

    def __init__(self, path: Path, *, cache_mb: int = 64, buffer_mb: int = 48) -> None:
        self.path = path
        self._cache_mb, self._buffer_mb = cache_mb, buffer_mb
        self.found_damaged = 0
        self._open()

    def _open(self) -> None:
        try:
            self._db = self._connect()
        except Exception as exc:
            if "Corruption" not in str(exc):
                raise self._not_opened(exc) from exc
            # Committed state lives in the changelogs; a broken local copy is only a copy.
            log.warning("the state in %s is damaged (%s): it is rebuilt from the changelogs", self.path, exc)
            self.found_damaged += 1
            self._remove()
            try:
                self._db = self._connect()
            except Exception as again:
                raise self._not_opened(again) from again
        db = self._db
        self._families = {name: db.get_column_family(name) for name in _FAMILIES}
        self._handles = {name: db.get_column_family_handle(name) for name in _FAMILIES}
        self.get_row = self._families["rows"].get
        self._get_mark: Any = self._families["marks"].get

    def _remove(self) -> None:
        try:
            shutil.rmtree(self.path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise self._not_opened(exc) from exc

    def _not_opened(self, exc: Exception) -> StateDirectoryError:
        return StateDirectoryError(
            f"the state in {self.path} cannot be opened ({exc}); free some space or make it writable, "
            "or remove it: it is rebuilt from the changelogs"
        )

    def _connect(self) -> Rdict:
        cache = Cache(self._cache_mb * _MIB)
        buffers = WriteBufferManager(self._buffer_mb * _MIB, False)

        def options() -> Options:
            table = BlockBasedOptions()
            table.set_bloom_filter(10, False)
            table.set_block_cache(cache)
            table.set_cache_index_and_filter_blocks(True)
            # Of blocks of 4 KiB each. Whole, those of a file of millions of rows are larger than a shard of the cache, and
            # would be read anew by each lookup: a thousand times its price.
            table.set_index_type(BlockBasedIndexType.two_level_index_search())
            table.set_partition_filters(True)
            table.set_metadata_block_size(4096)
            table.set_pin_top_level_index_and_filter(True)
            o = Options(raw_mode=True)
            o.create_if_missing(True)
            o.create_missing_column_families(True)
            o.set_block_based_table_factory(table)
            # A memtable filter makes the commonest question (a new dedup key: is it there?) a third of its price.
            o.set_memtable_prefix_bloom_ratio(0.1)
            o.set_memtable_whole_key_filtering(True)
            o.set_write_buffer_size(16 * _MIB)
            o.set_max_open_files(256)
            o.set_keep_log_file_num(2)
            o.set_max_total_wal_size(64 * _MIB)
            with contextlib.suppress(AttributeError):
                o.set_write_buffer_manager(buffers)
            return o

        self.path.parent.mkdir(parents=True, exist_ok=True)
        return Rdict(
            str(self.path),
            options(),
            column_families={name: options() for name in _FAMILIES},
            access_type=AccessType.read_write(),
        )

    def close(self) -> None:
        """Close every handle; RocksDB keeps its lock while one lives. Again is fine. StoreError where the disk refuses."""
        if not self._families:
            return
        self._families.clear()
        self._handles.clear()
        self.get_row = self._get_mark = _closed
        try:
            self._db.close()
        except Exception as exc:
            raise self.failed("close", exc) from exc

    def reopen(self, *, empty: bool = False) -> None:
        """Close and open again, after a StoreError; `empty`: without anything of what it held, because it is damaged."""
        with contextlib.suppress(StoreError):
            self.close()
        # The error's own frames may still hold handles of the old one, and with them RocksDB's lock.
        gc.collect()
        if empty:
            self._remove()
        self._open()

    # -- reading

    def get_marks(self, prefix: bytes, ids: Sequence[bytes]) -> list[bytes | None]:
        try:
            return self._get_mark([prefix + i for i in ids])
        except Exception as exc:
            raise self.failed("read from", exc) from exc

    def meta(self, partition: int) -> dict[str, Any] | None:
        raw = self._get_meta(_PARTITION.pack(partition))
        return None if raw is None else orjson.loads(raw)

    def _get_meta(self, key: bytes) -> Any:
        try:
            return self._family("meta").get(key)
        except Exception as exc:
            raise self.failed("read from", exc) from exc

    def table_numbers(self, names: Iterable[str]) -> dict[str, int]:
        """The numbers that rows of these tables are kept under. A table keeps its number for good; StoreError."""
        raw = self._get_meta(_NUMBERS)
        numbers: dict[str, int] = {} if raw is None else orjson.loads(raw)
        fresh = sorted(set(names) - set(numbers))
        for name in fresh:
            numbers[name] = max(numbers.values(), default=0) + 1
        if fresh:
            batch = self.batch()
            batch.raw.put(_NUMBERS, orjson.dumps(numbers), self._handles["meta"])
            self.write(batch)
        return numbers

    def scan_rows(self, prefix: bytes, start: bytes = b"", end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Rows of one table and partition in key order: `start` inclusive, `end` exclusive.

        All of one moment, that of the first step. StoreError where not all of them can be read.
        """
        return self._scan("rows", prefix, start, end)

    def scan_marks(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """(8 bytes of bucket + id, mark) in order."""
        return self._scan("marks", _PARTITION.pack(partition), b"", None)

    def scan_ids(self, prefix: bytes, beginning: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(id, mark) of one bucket, of the ids that begin so, in order."""
        return self._scan("marks", prefix, beginning, after_prefix(beginning))

    def _scan(self, family: str, prefix: bytes, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        options = ReadOptions()
        upper = prefix + end if end is not None else after_prefix(prefix)
        if upper is not None:
            options.set_iterate_upper_bound(upper)
        cut = len(prefix)
        rows: Any = self._family(family).iter(options)
        try:
            rows.seek(prefix + start)
            while rows.valid():
                yield rows.key()[cut:], rows.value()
                rows.next()
            # An iterator that meets a damaged block ends, as one that is at the end does.
            rows.status()
        except Exception as exc:
            raise self.failed("read from", exc) from exc

    def _family(self, name: str) -> Rdict:
        return self._families.get(name) or _closed()

    # -- writing

    def batch(self) -> StoreBatch:
        h = self._handles or _closed()
        return StoreBatch(h["rows"], h["marks"], h["meta"])

    def check_writable(self) -> None:
        """StoreError where it is not."""
        batch = self.batch()
        batch.raw.put(_CHECK, b"", self._handles["meta"])
        self.write(batch)

    def write(self, batch: StoreBatch) -> None:
        try:
            self._db.write(batch.raw)
        except Exception as exc:
            raise self.failed("write to", exc) from exc
        finally:
            batch.release()

    def failed(self, what: str, exc: Exception) -> StoreError:
        if isinstance(exc, StoreError):
            return exc
        reason = str(exc)
        return StoreError(
            f"RocksDB could not {what} {self.path}: {reason}", damaged=any(word in reason for word in _DAMAGE)
        )


def row_prefix(partition: int, table_number: int) -> bytes:
    return _ROW.pack(partition, table_number)


def bucket_prefix(partition: int, bucket: int) -> bytes:
    return _BUCKET.pack(partition, bucket)


def after_prefix(prefix: bytes) -> bytes | None:
    """The smallest key above every key that begins with `prefix`; None if there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


def _closed(*_: Any) -> Any:
    raise StoreError("the store is closed")
