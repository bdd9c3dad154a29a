"""One database per worker against one per partition: the measurement behind the layout of `semel.state.store`.

    python -m benchmarks.store [--partitions 4 --partitions 256] [--keys 4000] [--rounds R]

Both layouts hold the same column families with the same options and share one block cache and one write buffer
manager; each is measured in a process of its own, alternating. A commit is what an epoch writes: 4,000 keys spread over
all partitions, half of them rows, half dedup marks, and the meta record of each partition. One database takes them in
one WriteBatch; one per partition takes as many batches as there are partitions, and is not atomic over them.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson
from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
)

from benchmarks import report
from benchmarks.rig import ROOT
from semel.state.store import Store, bucket_prefix, row_prefix

COMMITS = 250
FAMILIES = ("rows", "marks", "meta")
MIB = 1 << 20
CACHE_MB, BUFFER_MB = 64, 48
META: dict[str, Any] = {"v": 1, "logs": {"payments-balances-changelog": {"id": "x" * 22, "next": 123_456_789}}}

Writes = dict[int, tuple[dict[bytes, bytes | None], dict[bytes, bytes]]]


class Layout(Protocol):
    def commit(self, writes: Writes) -> None: ...
    def read(self, partition: int, key: bytes) -> Any: ...
    def close(self) -> None: ...


class OnePerWorker:
    """The store as it is."""

    def __init__(self, path: Path, partitions: int) -> None:
        self._store = Store(path / "one", cache_mb=CACHE_MB, buffer_mb=BUFFER_MB)

    def commit(self, writes: Writes) -> None:
        batch = self._store.batch()
        for partition, (rows, marks) in writes.items():
            batch.rows(row_prefix(partition, 1), rows)
            batch.marks(bucket_prefix(partition, 0), marks)
            batch.meta(partition, META)
        self._store.write(batch)

    def read(self, partition: int, key: bytes) -> Any:
        return self._store.get_row(row_prefix(partition, 1) + key)

    def close(self) -> None:
        self._store.close()


class OnePerPartition:
    """The layout that was not taken."""

    def __init__(self, path: Path, partitions: int) -> None:
        self._cache = Cache(CACHE_MB * MIB)
        self._buffers = WriteBufferManager(BUFFER_MB * MIB, False)
        self._stores = [
            Rdict(
                str(path / str(partition)),
                self._options(),
                column_families={name: self._options() for name in FAMILIES},
                access_type=AccessType.read_write(),
            )
            for partition in range(partitions)
        ]
        self._handles = [{name: db.get_column_family_handle(name) for name in FAMILIES} for db in self._stores]
        self._rows = [db.get_column_family("rows") for db in self._stores]

    def _options(self) -> Options:
        table = BlockBasedOptions()
        table.set_bloom_filter(10, False)
        table.set_block_cache(self._cache)
        table.set_cache_index_and_filter_blocks(True)
        table.set_index_type(BlockBasedIndexType.two_level_index_search())
        table.set_partition_filters(True)
        table.set_metadata_block_size(4096)
        table.set_pin_top_level_index_and_filter(True)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.create_missing_column_families(True)
        options.set_block_based_table_factory(table)
        options.set_memtable_prefix_bloom_ratio(0.1)
        options.set_memtable_whole_key_filtering(True)
        options.set_write_buffer_size(16 * MIB)
        options.set_max_open_files(256)
        options.set_keep_log_file_num(2)
        options.set_max_total_wal_size(64 * MIB)
        with contextlib.suppress(AttributeError):
            options.set_write_buffer_manager(self._buffers)
        return options

    def commit(self, writes: Writes) -> None:
        for partition, (rows, marks) in writes.items():
            batch, handles = WriteBatch(raw_mode=True), self._handles[partition]
            for key in sorted(rows):
                batch.put(b"\0\1" + key, rows[key], handles["rows"])
            for key in sorted(marks):
                batch.put(b"\0" * 8 + key, marks[key], handles["marks"])
            batch.put(b"meta", orjson.dumps(META), handles["meta"])
            self._stores[partition].write(batch)

    def read(self, partition: int, key: bytes) -> Any:
        return self._rows[partition].get(b"\0\1" + key)

    def close(self) -> None:
        self._handles.clear()
        self._rows.clear()
        for db in self._stores:
            db.close()


LAYOUTS: dict[str, type[OnePerWorker] | type[OnePerPartition]] = {
    "one per worker": OnePerWorker,
    "one per partition": OnePerPartition,
}


def main() -> None:
    asked = _arguments().parse_args()
    if asked.layout:
        sys.stdout.buffer.write(orjson.dumps(_measure(asked.layout, asked.partitions[0], asked.keys)))
        return
    rounds: list[dict[str, Any]] = []
    for number in range(asked.rounds):
        for partitions in asked.partitions or [4, 256]:
            for layout in LAYOUTS:
                rounds.append({"round": number + 1, "load_average": report.load_average()})
                rounds[-1].update(_in_a_process(layout, partitions, asked.keys))
                report.say(orjson.dumps(rounds[-1]).decode())
    names = ("open_ms", "reopen_ms", "commit_p50_ms", "commit_p99_ms", "commit_cpu_ms", "read_us", "rss_mb", "files")
    median: dict[str, dict[str, Any]] = {}
    for partitions in asked.partitions or [4, 256]:
        for layout in LAYOUTS:
            same = [r for r in rounds if (r["layout"], r["partitions"]) == (layout, partitions)]
            median[f"{layout}, {partitions} partitions"] = report.medians(same, names)
    ok = all(r["rows_right"] for r in rounds)
    report.finish(
        {"benchmark": "store", "ok": ok, "keys": asked.keys, "median": median, "rounds": rounds},
        "\n".join(
            f"{name}: commit p50 {m['commit_p50_ms']} p99 {m['commit_p99_ms']} ms, {m['commit_cpu_ms']} ms of CPU, "
            f"open {m['open_ms']} ms, {m['rss_mb']} MB"
            for name, m in median.items()
        ),
    )


def _in_a_process(layout: str, partitions: int, keys: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.store", "--layout", layout]
    command += ["--partitions", str(partitions), "--keys", str(keys)]
    return orjson.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)


def _measure(layout: str, partitions: int, keys: int) -> dict[str, Any]:
    rng = random.Random(1)
    epochs = [_epoch(rng, partitions, keys, number) for number in range(COMMITS)]
    before = _rss_mb()
    with tempfile.TemporaryDirectory(prefix="semel-store-", ignore_cleanup_errors=True) as folder:
        started = time.perf_counter()
        store: Layout = LAYOUTS[layout](Path(folder), partitions)
        opened = time.perf_counter() - started
        commits: list[float] = []
        used = time.process_time()
        for writes in epochs:
            started = time.perf_counter()
            store.commit(writes)
            commits.append(time.perf_counter() - started)
        used = time.process_time() - used
        rss, files = _rss_mb() - before, len(list(Path("/proc/self/fd").iterdir()))
        probes = [(p, key, value) for p, (rows, _) in epochs[0].items() for key, value in rows.items()]
        started = time.perf_counter()
        right = all(store.read(p, key) is not None for p, key, _ in probes)
        read = time.perf_counter() - started
        store.close()
        started = time.perf_counter()
        again: Layout = LAYOUTS[layout](Path(folder), partitions)
        reopened = time.perf_counter() - started
        right = right and _holds(again, epochs)
        again.close()
    commits.sort()
    return {
        "layout": layout,
        "partitions": partitions,
        "open_ms": round(opened * 1000, 1),
        "reopen_ms": round(reopened * 1000, 1),
        "commit_p50_ms": round(report.percentile(commits, 0.5) * 1000, 2),
        "commit_p99_ms": round(report.percentile(commits, 0.99) * 1000, 2),
        "commit_cpu_ms": round(used / COMMITS * 1000, 2),
        "read_us": round(read / len(probes) * 1e6, 2),
        "rss_mb": round(rss, 1),
        "files": files,
        "rows_right": right,
    }


def _epoch(rng: random.Random, partitions: int, keys: int, number: int) -> Writes:
    """Rows come again from 10,000 accounts, marks are new each time, as in the payments."""
    writes: Writes = {p: ({}, {}) for p in range(partitions)}
    for key in range(keys // 2):
        writes[key % partitions][0][b"acct-%07d" % rng.randrange(10_000)] = b"%d" % (number * keys + key)
        writes[rng.randrange(partitions)][1][b"pay-00000001-%09d" % (number * keys + key)] = rng.randbytes(33)
    return writes


def _holds(store: Layout, epochs: Sequence[Writes]) -> bool:
    """Every row has the value that was written last."""
    last = {(p, key): value for writes in epochs for p, (rows, _) in writes.items() for key, value in rows.items()}
    return all(store.read(p, key) == value for (p, key), value in last.items())


def _rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError("no VmRSS")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description="Layouts of the local store.")
    parser.add_argument("--partitions", type=int, action="append")
    parser.add_argument("--keys", type=int, default=4_000, help="per commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layout", choices=tuple(LAYOUTS), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
