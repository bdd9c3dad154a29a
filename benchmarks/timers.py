"""Outputs that are due within one second, while many more are pending: how late they are, and whether each is there once.

    python -m benchmarks.timers [--due 50000] [--pending 1000000] [--named] [--rounds R]

`--pending` outputs that are due in a day are set first, then `--due` of which the times are spread over one second: the first
comes when all of them are set. Lateness is the worker's own: from when an output was due until its epoch was committed.
`--named`: all have a name, and those that are due were set for the next day before, and are replaced.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import urlopen

import orjson
from aiokafka import AIOKafkaConsumer

from benchmarks import report
from benchmarks.jobs.timers import SINK, SOURCE
from benchmarks.rig import Worker, place, published
from feeds.publish import publish
from feeds.record import Record

TARGET_DUE, TARGET_PENDING, TARGET_S = 50_000, 10_000_000, 1.0
DAY_MS = 86_400_000
# Before the first is due, all of them have to be set.
SETTING_S = 40.0


def main() -> None:
    asked = _arguments().parse_args()
    rounds = [_round(asked.due, asked.pending, asked.named, n + 1) for n in range(asked.rounds)]
    median = report.medians(rounds, ("p99_s_at_most", "mean_s", "last_s", "peak_mb"))
    ok = all(not r["faults"] for r in rounds)
    report.finish(
        {
            "benchmark": "timers",
            "due": asked.due,
            "pending": asked.pending,
            "named": asked.named,
            "ok": ok,
            "target": {"due": TARGET_DUE, "pending": TARGET_PENDING, "p99_s": TARGET_S},
            "median": median,
            "rounds": rounds,
        },
        f"{asked.due:,} due in one second, {asked.pending:,} more pending: p99 at most {median['p99_s_at_most']} s late, mean "
        f"{median['mean_s']} s, peak {median['peak_mb']} MB (target {TARGET_S} s); {'each once' if ok else 'WRONG: void'}",
    )


def _round(due: int, pending: int, named: bool, number: int) -> dict[str, Any]:
    with place() as at:
        now_ms = int(time.time() * 1000)
        published(publish(at.broker, SOURCE, _orders("later", pending, named, lambda n: now_ms + DAY_MS + n)))
        if named:
            published(publish(at.broker, SOURCE, _orders("due", due, named, lambda n: now_ms + DAY_MS + n)))
        set_first = pending + due * named
        with Worker("benchmarks.jobs.timers", at) as worker:
            worker.wait("what is pending", lambda: _pending(worker) == set_first, within_s=3_600, poll_s=1.0)
            begin_ms = int((time.time() + SETTING_S) * 1000)
            published(publish(at.broker, SOURCE, _orders("due", due, named, lambda n: begin_ms + n * 1000 // due)))
            set_by = time.time()
            worker.wait("all that are due", lambda: _sent(worker) >= due, within_s=SETTING_S + 120, poll_s=0.2)
            last_s = time.time() - begin_ms / 1000 - 1
            buckets, mean_s = _lateness(worker)
            left, peak = _pending(worker), worker.memory().peak
        ids = asyncio.run(_read(at.broker))
    wanted = Counter(f"due-{n}" for n in range(due))
    faults = [f"{(wanted - ids).total()} lost"] * bool(wanted - ids) + [f"{(ids - wanted).total()} too many"] * bool(
        ids - wanted
    )
    faults += ["set too late"] * (set_by > begin_ms / 1000) + [f"{left} pending"] * (left != pending)
    p99 = next((bound for bound, count in buckets if count >= due * 0.99), float("inf"))
    figures = {
        "p99_s_at_most": p99,
        "mean_s": round(mean_s, 3),
        "last_s": round(last_s, 2),
        "peak_mb": peak,
        "buckets": buckets,
    }
    report.say(f"round {number}: p99 at most {p99} s, mean {figures['mean_s']} s, peak {peak} MB, load {at.load}")
    return {"load_average": at.load, **figures, "faults": faults}


def _orders(name: str, count: int, named: bool, due_ms: Callable[[int], int]) -> Iterator[Record]:
    now_ms = int(time.time() * 1000)
    for n in range(count):
        value = orjson.dumps({"id": f"{name}-{n}", "due_ms": due_ms(n), "named": named})
        yield Record(f"{name}-{n}".encode(), value, now_ms)


def _tasks(worker: Worker) -> list[dict[str, Any]]:
    view = worker.view()
    return view["tasks"] if view else []


def _pending(worker: Worker) -> int:
    return sum(task["timers"] for task in _tasks(worker))


def _metrics(worker: Worker) -> str:
    with urlopen(f"{worker.url}/metrics", timeout=10) as answer:
        return answer.read().decode()


def _sent(worker: Worker) -> float:
    return sum(float(n) for n in re.findall(r"^semel_timers_sent_total\{.*\} (\S+)$", _metrics(worker), re.MULTILINE))


def _lateness(worker: Worker) -> tuple[list[tuple[float, float]], float]:
    """How many were at most so late, by bound, and the mean."""
    said = _metrics(worker)
    found = re.findall(r'^semel_timers_lateness_seconds_bucket\{le="([^"]+)".*\} (\S+)$', said, re.MULTILINE)
    total, seconds = (
        float(re.findall(rf"^semel_timers_lateness_seconds_{name}\{{.*\}} (\S+)$", said, re.MULTILINE)[0])
        for name in ("count", "sum")
    )
    return [(float(le), float(n)) for le, n in found], seconds / max(1.0, total)


async def _read(broker: str) -> Counter[str]:
    """The ids of all that were sent."""
    consumer = AIOKafkaConsumer(
        SINK, bootstrap_servers=broker.removeprefix("kafka://"), isolation_level="read_committed",
        auto_offset_reset="earliest", group_id=None,
    )  # fmt: skip
    ids: Counter[str] = Counter()
    async with consumer:
        while batches := await consumer.getmany(timeout_ms=3_000, max_records=20_000):
            ids.update(orjson.loads(record.value or b"{}")["id"] for records in batches.values() for record in records)
    return ids


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timers", description="How late timers are.")
    parser.add_argument("--due", type=int, default=TARGET_DUE, help="outputs due within one second")
    parser.add_argument("--pending", type=int, default=1_000_000, help="outputs that are due in a day")
    parser.add_argument("--named", action="store_true", help="replaced under a name before they are due")
    parser.add_argument("--rounds", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()
