"""The memory of one worker that knows a million dedup keys.

    python -m benchmarks.memory [--keys N] [--accounts N]

Payments with no redelivery, so that each is a key of its own; all within the window, so that none expires.
`--accounts` is the number of accounts they are spread over at random: a million of them makes 632,000 rows besides.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter
from typing import Any

from benchmarks import report
from benchmarks.audit import Truth, audit
from benchmarks.inputs import deliveries
from benchmarks.rig import Worker, place, published, through
from benchmarks.throughput import truth_of
from feeds.publish import publish

TARGET_MB = 400
IDLE_S = 5


def main() -> None:
    asked = _arguments().parse_args()
    truth = truth_of("payments", asked.keys, 1, asked.accounts)
    rounds = [_round(asked.keys, asked.accounts, truth) for _ in range(asked.rounds)]
    median = report.medians(rounds, ("start_mb", "rss_mb", "peak_mb", "anonymous_mb"))
    ok = all(not r["faults"] for r in rounds)
    report.finish(
        {
            "benchmark": "memory",
            "ok": ok,
            "keys": asked.keys,
            "accounts": asked.accounts,
            "target_mb": TARGET_MB,
            "median": median,
            "rounds": rounds,
        },
        f"{asked.keys:,} dedup keys: {median['rss_mb']} MB resident, peak {median['peak_mb']} MB "
        f"(target {TARGET_MB}); {median['start_mb']} MB before the first; "
        f"{'result right' if ok else 'RESULT WRONG: void'}",
    )


def _round(keys: int, accounts: int, truth: Truth) -> dict[str, Any]:
    with place() as at:
        counts: Counter[str] = Counter()
        records = deliveries("payments", keys, seed=1, share=0, accounts=accounts, counts=counts)
        total = published(publish(at.broker, "payments", records))
        with Worker("pipelines.payments", at) as worker:
            worker.wait("up", worker.view, poll_s=0.005)
            start = worker.memory()
            with Curve(worker) as curve:
                run = through(worker, total)
            time.sleep(IDLE_S)
            after = worker.memory()
            faults = audit(worker, at.broker, truth, counts)
    return {
        "load_average": at.load,
        "events_per_s": run.events_per_s,
        "start_mb": start.rss,
        "rss_mb": after.rss,
        "peak_mb": after.peak,
        "anonymous_mb": after.anonymous,
        "curve_mb": curve.thinned(),
        "faults": faults[:10],
    }


class Curve:
    """Resident memory once a second while the worker works."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.seen: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Curve:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            self.seen.append(self._worker.memory().rss)

    def thinned(self, most: int = 20) -> list[float]:
        return self.seen[:: max(1, len(self.seen) // most)]


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Memory of a worker.")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
