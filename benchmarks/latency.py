"""How long an event takes, from the moment it is sent to the moment a reader of committed records has its result.

    python -m benchmarks.latency --rate 1000 --rate 5000 --seconds 60

Open loop: events are sent at their moments, whatever became of those before them, by a process of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks import report
from benchmarks.audit import partitions
from benchmarks.rig import ROOT, Failed, Place, Worker, place, published
from feeds.publish import create_topic

TARGET_P99_MS, TARGET_RATE = 150, 1000
SINK = "settlements"
# Left out of the figures: code that warms up, and the first turns of the group.
WARM_UP_S = 5
# No event takes longer than this after the last one was sent, or it counts as lost.
LATEST_S = 30


def main() -> None:
    asked = _arguments().parse_args()
    rates = asked.rate or [1000]
    found = {str(rate): [_round(rate, asked.seconds, n + 1) for n in range(asked.rounds)] for rate in rates}
    rounds = [r for rs in found.values() for r in rs]
    median = {rate: report.medians(rs, ("p50_ms", "p99_ms", "p99_9_ms", "max_ms")) for rate, rs in found.items()}
    report.finish(
        {
            "benchmark": "latency",
            "ok": all(not r["faults"] for r in rounds),
            "target": {"rate": TARGET_RATE, "p99_ms": TARGET_P99_MS},
            "median": median,
            "rounds": rounds,
        },
        "latency p50 / p99 / p99.9 ms: "
        + "; ".join(f"{r} events/s {m['p50_ms']} / {m['p99_ms']} / {m['p99_9_ms']}" for r, m in median.items())
        + f" (target p99 {TARGET_P99_MS} at {TARGET_RATE})",
    )


def _round(rate: int, seconds: int, number: int) -> dict[str, Any]:
    events = rate * (seconds + WARM_UP_S)
    with place() as at:
        published(create_topic(at.broker, "payments", 4))
        with Worker("pipelines.payments", at) as worker:
            worker.wait_ready()
            received = asyncio.run(_listen(at, rate, events))
            view = worker.view() or {}
    ids = Counter(orjson.loads(value)["id"] for _, _, value in received)
    faults = [f"{events - len(ids)} lost"] * (len(ids) < events) + ["doubled"] * (len(received) > len(ids))
    begin = min(sent for sent, _, _ in received) + WARM_UP_S * 1000
    latencies = sorted(came - sent for sent, came, _ in received if sent >= begin)
    figures = {
        "rate": rate,
        "load_average": at.load,
        "events": len(latencies),
        **{
            name: round(report.percentile(latencies, share), 1)
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p99_9_ms", 0.999), ("max_ms", 1.0))
        },
        "commits": view["commits"]["commits"],
        "commit_p50_ms": view["commits"]["p50_ms"],
        "faults": faults,
    }
    report.say(f"round {number} at {rate}/s: p50 {figures['p50_ms']} p99 {figures['p99_ms']} ms, load {at.load}")
    return figures


async def _listen(at: Place, rate: int, events: int) -> list[tuple[int, float, bytes]]:
    """Sent (ms), received (ms) and value of every committed result while the load runs."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=at.broker, isolation_level="read_committed", enable_auto_commit=False,
        auto_offset_reset="earliest",
    )  # fmt: skip
    await consumer.start()
    consumer.assign([TopicPartition(SINK, p) for p in await partitions(at.broker, SINK)])
    received: list[tuple[int, float, bytes]] = []
    load = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.inputs", "payments", "--broker", at.broker, "--share", "0",
        "--rate", str(rate), "--events", str(events), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    saying = asyncio.create_task(load.communicate())
    try:
        ends: float | None = None
        while len(received) < events:
            batches = await consumer.getmany(timeout_ms=200)
            now = time.time() * 1000
            for batch in batches.values():
                received += [(r.timestamp, now, r.value) for r in batch]
            if saying.done():
                if load.returncode:
                    raise Failed(f"the load broke off: {saying.result()[1].decode()[-1000:]}")
                ends = ends or time.monotonic() + LATEST_S
                if time.monotonic() > ends:
                    break
        # Whatever comes now came twice.
        for batch in (await consumer.getmany(timeout_ms=1000)).values():
            received += [(r.timestamp, time.time() * 1000, r.value) for r in batch]
        return received
    finally:
        if load.returncode is None:
            load.kill()
        await saying
        await consumer.stop()


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description="Latency, end to end.")
    parser.add_argument("--rate", type=int, action="append", metavar="N", help="events/s; may be given several times")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
