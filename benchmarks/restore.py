"""How long a worker with an empty state directory takes until it runs.

    python -m benchmarks.restore [--rows N] [--job rows|payments]

The changelogs are filled by a worker first, which is then stopped and its state directory deleted. `rows` has one
table and nothing else: exactly N rows. `payments` restores N dedup marks and, besides, every change of the balances
that compaction has not removed yet.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson

from benchmarks import report
from benchmarks.audit import rows
from benchmarks.inputs import deliveries
from benchmarks.jobs.rows import SOURCE
from benchmarks.rig import STALLED_S, Failed, Worker, place, published, through
from feeds import payments
from feeds.publish import publish
from feeds.record import Record
from feeds.truth import PaymentsTruth, compare

TARGET_S, TARGET_ROWS = 10, 1_000_000
# The module, the pipeline's name, its source and its table.
JOBS = {
    "rows": ("benchmarks.jobs.rows", "rows", SOURCE, "rows"),
    "payments": ("pipelines.payments", "payments", "payments", "balances"),
}


def main() -> None:
    asked = _arguments().parse_args()
    rounds = [_round(asked.job, asked.rows, n + 1) for n in range(asked.rounds)]
    ok = all(not r["faults"] for r in rounds)
    names = ("seconds", "restore_seconds", "records", "records_per_s", "peak_mb", "again_seconds")
    median = report.medians(rounds, names)
    report.finish(
        {
            "benchmark": "restore",
            "job": asked.job,
            "rows": asked.rows,
            "ok": ok,
            "target": {"rows": TARGET_ROWS, "seconds": TARGET_S},
            "median": median,
            "rounds": rounds,
        },
        f"{asked.job}: {median['records']:,.0f} records restored in {median['restore_seconds']} s "
        f"({median['records_per_s']:,.0f}/s), running {median['seconds']} s after the process began "
        f"(target {TARGET_S} s); {'rows right' if ok else 'ROWS WRONG: void'}",
    )


def _round(job: str, count: int, number: int) -> dict[str, Any]:
    module, name, topic, table = JOBS[job]
    truth: dict[str, Any] = {}
    with place() as at:
        if job == "rows":
            total = published(publish(at.broker, topic, _one_a_row(count, truth)))
        else:
            counts: Counter[str] = Counter()
            total = published(publish(at.broker, topic, deliveries(job, count, seed=1, share=0, counts=counts)))
            truth = PaymentsTruth(payment for payment, _ in payments.events(count, 1)).tables[table]
        with Worker(module, at) as first:
            through(first, total)
        shutil.rmtree(at.folder / "state" / name)
        with Worker(module, at) as worker:
            figures = _until_running(worker)
            figures["peak_mb"] = worker.memory().peak
            found = compare(table, truth, dict(rows(worker, table)))
        with Worker(module, at) as again:
            figures["again_seconds"] = _until_running(again)["seconds"]
    report.say(f"round {number}: {figures['restore_seconds']} s of restore, load {at.load}")
    return {"load_average": at.load, **figures, "faults": [str(f) for f in found[:10]]}


def _one_a_row(count: int, truth: dict[str, Any]) -> Iterator[Record]:
    """Payments keyed by their id, so that each has a row of its own."""
    for payment, at_ms in payments.events(count, 1):
        truth[payment["id"]] = payment["amount"]
        yield Record(payment["id"].encode(), orjson.dumps(payment), at_ms)


def _until_running(worker: Worker) -> dict[str, Any]:
    """`seconds` from the start of the process until every partition runs; `restore_seconds` of them from the first
    sight of a partition that is being restored."""
    began = time.monotonic()
    restoring: float | None = None
    records = 0
    while True:
        view, now = worker.view(), time.monotonic()
        tasks = view["tasks"] if view else []
        if tasks and restoring is None:
            restoring = now
        records = max(records, sum(t["to_restore"] for t in tasks))
        if restoring is not None and len(tasks) == 4 and all(t["state"] == "running" for t in tasks):
            spent = now - restoring
            return {
                "seconds": round(now - began, 2),
                "restore_seconds": round(spent, 2),
                "records": records,
                "records_per_s": round(records / spent) if spent > 0 else 0,
            }
        if now - began > STALLED_S:
            raise Failed(f"not all partitions run after {STALLED_S:g} s. {worker.log_end()}")
        time.sleep(0.02)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restore", description="Time of a restore.")
    parser.add_argument("--rows", type=int, default=TARGET_ROWS)
    parser.add_argument("--job", choices=tuple(JOBS), default="rows")
    parser.add_argument("--rounds", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
