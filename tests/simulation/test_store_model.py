"""The store's model does what the real store does."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from semel.state.store import Store, StoreBatch, StoreError, bucket_prefix, row_prefix
from tests.simulation.store_model import Disk, ModelBatch, ModelStore

partitions = st.integers(0, 2)
tables = st.integers(1, 2)
buckets = st.integers(-1, 2)
keys = st.binary(max_size=2) | st.sampled_from([b"\xff", b"\xff\xff"])
values = st.binary(max_size=3)
rows = st.dictionaries(keys, st.none() | values, max_size=4)
marks = st.dictionaries(keys, values, max_size=4)


class BothStores(RuleBasedStateMachine):
    """Every write to both, every read from both."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "db"
        self.real: Any = Store(path, cache_mb=1, buffer_mb=1)
        self.model: Any = ModelStore(Disk(), path)
        self.batches: tuple[Any, Any] = (self.real.batch(), self.model.batch())

    def teardown(self) -> None:
        self.batches = ()  # type: ignore[assignment]
        self.real.close()
        self.folder.cleanup()

    @rule(partition=partitions, table=tables, changes=rows)
    def write_rows(self, partition: int, table: int, changes: dict[bytes, bytes | None]) -> None:
        for batch in self.batches:
            batch.rows(row_prefix(partition, table), changes)

    @rule(partition=partitions, bucket=buckets, changes=marks)
    def write_marks(self, partition: int, bucket: int, changes: dict[bytes, bytes]) -> None:
        for batch in self.batches:
            batch.marks(bucket_prefix(partition, bucket), changes)

    @rule(partition=partitions, bucket=buckets)
    def drop_bucket(self, partition: int, bucket: int) -> None:
        for batch in self.batches:
            batch.drop_bucket(partition, bucket)

    @rule(partition=partitions, at=st.integers(0, 9))
    def write_meta(self, partition: int, at: int) -> None:
        for batch in self.batches:
            batch.meta(partition, {"at": at, "logs": {"a": {"next": at}}})

    @rule(partition=partitions)
    def drop_partition(self, partition: int) -> None:
        for batch in self.batches:
            batch.drop_partition(partition)

    @rule(names=st.lists(st.sampled_from(["a", "b", "c"]), max_size=3))
    def number_tables(self, names: list[str]) -> None:
        assert self.real.table_numbers(names) == self.model.table_numbers(names)

    @rule(reopen=st.booleans())
    def commit(self, reopen: bool) -> None:
        real, model = self.batches
        self.real.write(real)
        self.model.write(model)
        self.batches = ()  # type: ignore[assignment]
        del real
        if reopen:
            self.real.reopen()
            self.model.reopen()
        self.real.check_writable()
        self.model.check_writable()
        self.batches = (self.real.batch(), self.model.batch())

    @rule(partition=partitions, table=tables, start=keys, end=st.none() | keys)
    def scan(self, partition: int, table: int, start: bytes, end: bytes | None) -> None:
        prefix = row_prefix(partition, table)
        assert list(self.real.scan_rows(prefix, start, end)) == list(self.model.scan_rows(prefix, start, end))

    @rule(partition=partitions, table=tables, bucket=buckets, ids=st.lists(keys, min_size=1, max_size=4))
    def look_up(self, partition: int, table: int, bucket: int, ids: list[bytes]) -> None:
        prefix = bucket_prefix(partition, bucket)
        assert self.real.get_marks(prefix, ids) == self.model.get_marks(prefix, ids)
        assert list(self.real.scan_ids(prefix, ids[0])) == list(self.model.scan_ids(prefix, ids[0]))
        for key in ids:
            row = row_prefix(partition, table) + key
            assert self.real.get_row(row) == self.model.get_row(row)

    @invariant()
    def the_rest_is_alike(self) -> None:
        for partition in range(3):
            assert self.real.meta(partition) == self.model.meta(partition)
            assert list(self.real.scan_marks(partition)) == list(self.model.scan_marks(partition))


BothStores.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestTheModelDoesWhatTheStoreDoes = BothStores.TestCase


def test_the_model_has_all_that_others_use_of_the_store() -> None:
    for real, model in ((Store, ModelStore), (StoreBatch, ModelBatch)):
        public = {name for name, _ in inspect.getmembers(real, inspect.isfunction) if not name.startswith("_")}
        assert public - {name for name, _ in inspect.getmembers(model)} == set()


def test_a_closed_model_refuses_as_a_closed_store_does(tmp_path: Path) -> None:
    for store in (Store(tmp_path / "db"), ModelStore(Disk(), tmp_path)):
        store.close()
        for use in (lambda s=store: s.get_row(b""), lambda s=store: s.meta(0), store.batch):
            try:
                use()
            except StoreError as refused:
                assert "closed" in str(refused)
            else:
                raise AssertionError(f"{type(store).__name__} answered though it is closed")


def test_after_a_loss_of_power_the_model_is_what_it_was_some_commits_before(tmp_path: Path) -> None:
    disk = Disk()
    store = ModelStore(disk, tmp_path)
    for value in (b"1", b"2", b"3"):
        batch = store.batch()
        batch.rows(b"p", {b"k": value, value: value})
        store.write(batch)
    assert disk.lose_power(2) == 2
    assert list(store.scan_rows(b"p")) == [(b"1", b"1"), (b"k", b"1")]
