"""What chaos does to the disk under a worker's state."""

from __future__ import annotations

from pathlib import Path

import pytest

from semel.chaos import disks
from semel.state.store import Store, StoreError


def test_damage_is_found_by_whatever_reads_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", cache_mb=2, buffer_mb=2)
    batch = store.batch()
    batch.rows(b"p", {b"key-%05d" % n: b"value" * 20 for n in range(5_000)})
    store.write(batch)
    store.close()
    # What lay in the log is written to a table file when the store is opened next.
    Store(tmp_path / "db", cache_mb=2, buffer_mb=2).close()
    assert disks.damage(tmp_path, 1) > 0
    with pytest.raises(StoreError):
        damaged = Store(tmp_path / "db", cache_mb=2, buffer_mb=2)
        for _ in damaged.scan_rows(b"p"):
            pass


def test_a_store_without_table_files_is_not_damaged(tmp_path: Path) -> None:
    assert disks.damage(tmp_path, 1) == 0
