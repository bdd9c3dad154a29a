"""What a lookup costs in a store of few keys and in one of many: rows and dedup marks, those that are there and others.

    python -m benchmarks.lookups [--keys 100000 --keys 4000000] [--lookups 20000] [--rounds R]

The store is a worker's own, with the caches that it has by default. Keys are written in no order, as ids come. The first
question of each event, whether its id was there before, is mostly the one for a mark that is not there.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from semel.state.store import Store, bucket_prefix, row_prefix

COMMIT_KEYS = 5_000
ROWS, MARKS = row_prefix(0, 1), bucket_prefix(0, 0)


def main() -> None:
    asked = _arguments().parse_args()
    sizes = asked.keys or [100_000, 4_000_000]
    rounds = [
        {"keys": keys, **_round(keys, asked.lookups, seed), "load_average": report.load_average()}
        for seed in range(asked.rounds)
        for keys in sizes
    ]
    names = ("row_us", "no_row_us", "mark_us", "no_mark_us", "faults")
    median = {str(keys): report.medians([r for r in rounds if r["keys"] == keys], names) for keys in sizes}
    ok = all(not r["faults"] for r in rounds)
    report.finish(
        {"benchmark": "lookups", "lookups": asked.lookups, "ok": ok, "median": median, "rounds": rounds},
        "; ".join(
            f"{int(keys):,} keys: CPU of a row {m['row_us']} µs, of none {m['no_row_us']}, of a mark {m['mark_us']}, of none "
            f"{m['no_mark_us']}"
            for keys, m in median.items()
        ),
    )


def _round(keys: int, lookups: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    order = list(range(keys))
    rng.shuffle(order)
    with tempfile.TemporaryDirectory(prefix="semel-benchmark-") as folder:
        store = Store(Path(folder) / "db")
        for first in range(0, keys, COMMIT_KEYS):
            names = [b"%010d" % n for n in order[first : first + COMMIT_KEYS]]
            batch = store.batch()
            batch.rows(ROWS, dict.fromkeys(names, b"x" * 40))
            batch.marks(MARKS, dict.fromkeys(names, b"x" * 16))
            store.write(batch)
        there = [b"%010d" % rng.randrange(keys) for _ in range(lookups)]
        absent = [name + b"?" for name in there]
        figures, faults = dict[str, float](), 0
        for kind, look in (("row", _rows), ("mark", _marks)):
            for name, wanted, is_there in ((kind, there, True), (f"no_{kind}", absent, False)):
                began = time.thread_time()
                values = look(store, wanted)
                figures[f"{name}_us"] = round((time.thread_time() - began) / lookups * 1e6, 2)
                faults += sum((value is not None) is not is_there for value in values)
        store.close()
    return {**figures, "faults": faults}


def _rows(store: Store, keys: list[bytes]) -> list[bytes | None]:
    return [store.get_row(ROWS + key) for key in keys]


def _marks(store: Store, keys: list[bytes]) -> list[bytes | None]:
    """As a batch of events asks."""
    return [mark for n in range(0, len(keys), 250) for mark in store.get_marks(MARKS, keys[n : n + 250])]


def _arguments() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.lookups", description=__doc__)
    arguments.add_argument("--keys", type=int, action="append", help="in the store; again for another store")
    arguments.add_argument("--lookups", type=int, default=20_000)
    arguments.add_argument("--rounds", type=int, default=3)
    return arguments


if __name__ == "__main__":
    main()
