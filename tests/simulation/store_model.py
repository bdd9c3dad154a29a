"""The store's model: what RocksDB does for `semel.state.store.Store`, in dictionaries, with disks that can be broken.

It must do what the real store does; `test_store_model.py` holds one against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from struct import Struct
from typing import Any

import orjson

from semel.state.store import StoreError, after_prefix, bucket_prefix

_PARTITION = Struct(">I")
_NUMBERS = b"tables"
ROWS, MARKS, META = range(3)

# (family, key, value or None)
Change = tuple[int, bytes, bytes | None]


class Disk:
    """What outlives the process: three families of keys, and the latest batches, in case the power fails."""

    def __init__(self) -> None:
        self.families: tuple[dict[bytes, bytes], dict[bytes, bytes], dict[bytes, bytes]] = ({}, {}, {})
        # (family, key) of what cannot be read any more; whoever writes it again lays the new value over the damage.
        self.rotten: set[tuple[int, bytes]] = set()
        self._undo: list[list[Change]] = []

    def apply(self, changes: Iterable[Change]) -> None:
        undo: list[Change] = []
        for family, key, value in changes:
            rows = self.families[family]
            self.rotten.discard((family, key))
            undo.append((family, key, rows.get(key)))
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        self._undo.append(undo)
        del self._undo[:-20]

    def lose_power(self, batches: int) -> int:
        """Fall back to an earlier commit, whole, as a write-ahead log does that was not synced. How many were lost."""
        lost = 0
        while self._undo and lost < batches:
            for family, key, value in reversed(self._undo.pop()):
                if value is None:
                    self.families[family].pop(key, None)
                else:
                    self.families[family][key] = value
            lost += 1
        return lost

    def rot(self, rng: Random, keys: int) -> int:
        """Some blocks change while nobody looks: what they hold can be neither read nor passed over. How many keys."""
        there = sorted((family, key) for family, rows in enumerate(self.families) for key in rows)
        damaged = rng.sample(there, min(keys, len(there)))
        self.rotten.update(damaged)
        return len(damaged)

    def clear(self) -> None:
        """All of it is thrown away."""
        for rows in self.families:
            rows.clear()
        self.rotten.clear()
        self._undo.clear()


def meta_key(partition: int) -> bytes:
    return _PARTITION.pack(partition)


def table_numbers(disk: Disk) -> dict[str, int]:
    found = disk.families[META].get(_NUMBERS)
    return {} if found is None else orjson.loads(found)


class ModelBatch:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.changes: list[Change] = []

    def rows(self, prefix: bytes, changes: dict[bytes, bytes | None]) -> None:
        self.changes += [(ROWS, prefix + key, value) for key, value in changes.items()]

    def marks(self, prefix: bytes, changes: dict[bytes, bytes]) -> None:
        self.changes += [(MARKS, prefix + key, value) for key, value in changes.items()]

    def drop_bucket(self, partition: int, bucket: int) -> None:
        self._delete(MARKS, bucket_prefix(partition, bucket))

    def meta(self, partition: int, meta: dict[str, Any]) -> None:
        self.changes.append((META, _PARTITION.pack(partition), orjson.dumps(meta)))

    def numbers(self, numbers: dict[str, int]) -> None:
        self.changes.append((META, _NUMBERS, orjson.dumps(numbers)))

    def drop_partition(self, partition: int) -> None:
        prefix = _PARTITION.pack(partition)
        self._delete(ROWS, prefix)
        self._delete(MARKS, prefix)
        self.changes.append((META, prefix, None))

    def release(self) -> None:
        """Nothing is held on to."""

    def _delete(self, family: int, prefix: bytes) -> None:
        """What is there, and what this batch has put there before."""
        there = {key for key in self._disk.families[family] if key.startswith(prefix)}
        there |= {key for f, key, _ in self.changes if f == family and key.startswith(prefix)}
        self.changes += [(family, key, None) for key in sorted(there)]


class ModelStore:
    """As `Store`, over a `Disk`."""

    found_damaged = 0

    def __init__(self, disk: Disk, path: Path) -> None:
        self.path = path
        self._disk = disk
        self.reopen()

    def close(self) -> None:
        self.get_row: Callable[[bytes], bytes | None] = _closed
        self._open = False

    def reopen(self, *, empty: bool = False) -> None:
        if empty:
            self._disk.clear()
        self.get_row = self._get_row
        self._open = True

    def _get_row(self, key: bytes) -> bytes | None:
        return self._read(ROWS, key)

    def _read(self, family: int, key: bytes) -> bytes | None:
        if (family, key) in self._disk.rotten:
            raise StoreError("Corruption: block checksum mismatch", damaged=True)
        return self._family(family).get(key)

    def _family(self, number: int) -> dict[bytes, bytes]:
        if not self._open:
            _closed()
        return self._disk.families[number]

    # -- reading

    def get_marks(self, prefix: bytes, ids: Sequence[bytes]) -> list[bytes | None]:
        self._family(MARKS)
        return [self._read(MARKS, prefix + i) for i in ids]

    def meta(self, partition: int) -> dict[str, Any] | None:
        found = self._read(META, _PARTITION.pack(partition))
        return None if found is None else orjson.loads(found)

    def table_numbers(self, names: Iterable[str]) -> dict[str, int]:
        self._read(META, _NUMBERS)
        numbers = table_numbers(self._disk)
        fresh = sorted(set(names) - set(numbers))
        for name in fresh:
            numbers[name] = max(numbers.values(), default=0) + 1
        if fresh:
            batch = self.batch()
            batch.numbers(numbers)
            self.write(batch)
        return numbers

    def scan_rows(self, prefix: bytes, start: bytes = b"", end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        upper = prefix + end if end is not None else after_prefix(prefix)
        return self._scan(ROWS, prefix, start, upper)

    def scan_marks(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        prefix = _PARTITION.pack(partition)
        return self._scan(MARKS, prefix, b"", after_prefix(prefix))

    def scan_ids(self, prefix: bytes, beginning: bytes) -> Iterator[tuple[bytes, bytes]]:
        end = after_prefix(beginning)
        return self._scan(MARKS, prefix, beginning, prefix + end if end is not None else after_prefix(prefix))

    def _scan(self, family: int, prefix: bytes, start: bytes, upper: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        lower, cut = prefix + start, len(prefix)
        found = sorted((k, v) for k, v in self._family(family).items() if k >= lower and (upper is None or k < upper))
        for key, value in found:
            self._read(family, key)
            yield key[cut:], value

    # -- writing

    def batch(self) -> ModelBatch:
        if not self._open:
            _closed()
        return ModelBatch(self._disk)

    def check_writable(self) -> None:
        self.write(self.batch())

    def write(self, batch: ModelBatch) -> None:
        if not self._open:
            _closed()
        self._disk.apply(batch.changes)

    def failed(self, what: str, exc: Exception) -> StoreError:
        return exc if isinstance(exc, StoreError) else StoreError(f"the model could not {what} {self.path}: {exc}")


def _closed(*_: Any) -> Any:
    raise StoreError("the store is closed")
