"""The memory of one worker against its budget, where what comes in is large, much, or slow to be taken.

    python -m benchmarks.budget [--budget-mib N] [--scale S] [CASE ...]

Each case has a broker and a worker of its own. `over_mb` is what the worker took at most beyond what it took before the
first event: the budget is for that, and beside it RocksDB has bounds of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from aiokafka import AIOKafkaProducer

from benchmarks import report
from benchmarks.jobs.budget import SOURCE
from benchmarks.memory import Curve
from benchmarks.rig import Failed, Place, Worker, place, through
from feeds.publish import create_topic

Event = tuple[str, dict[str, Any]]
READERS = 10
ROWS = 20_000
# Its block cache of 64 MiB and its write buffers of 48 MiB.
ROCKSDB_MB = 118


class Case(NamedTuple):
    """`say`: what it is. `events(n)`: n of them. `readers`: of a whole table, slow ones, beside the events."""

    say: str
    count: int
    events: Callable[[int], Iterator[Event]]
    partitions: int = 4
    readers: int = 0


def _plain(count: int, keys: int = 997, **more: Any) -> Iterator[Event]:
    for n in range(count):
        key = f"k{n % keys}"
        yield key, {"key": key, **more}


CASES = {
    "large-events": Case("0.95 MB events, 5 ms each", 3_000, lambda n: _plain(n, pad="x" * 950_000, sleep_ms=5)),
    "partitions": Case("200 partitions of 2 kB events", 300_000, lambda n: _plain(n, pad="x" * 2_000), partitions=200),
    "large-results": Case("100 kB results", 20_000, lambda n: _plain(n, result_bytes=100_000)),
    "rejects": Case("100,000 rejects of 1 kB", 100_000, lambda n: _plain(n, pad="x" * 1_000, reject=True)),
    "slow-readers": Case(
        f"{READERS} slow readers of a table", 200_000, lambda n: _plain(n, keys=ROWS), readers=READERS
    ),
}


def main() -> None:
    asked = _arguments().parse_args()
    cases = {name: CASES[name] for name in asked.cases or CASES}
    rows = {name: _run(case, max(1, int(case.count * asked.scale)), asked.budget_mib) for name, case in cases.items()}
    for name, row in rows.items():
        report.say(f"{name:14} {cases[name].say:32} start {row['start_mb']:6} MB  peak {row['peak_mb']:6} MB  "
                   f"over {row['over_mb']:6} MB of {asked.budget_mib} MiB  {row['events_per_s']} events/s")  # fmt: skip
    ok = all(row["within"] and not row["unanswered"] for row in rows.values())
    report.finish(
        {"benchmark": "budget", "ok": ok, "budget_mib": asked.budget_mib, "cases": rows},
        "every case within its budget" if ok else "A CASE IS OVER ITS BUDGET, or had commits that got no answer",
    )


def _run(case: Case, count: int, budget_mib: int) -> dict[str, Any]:
    report.say(f"{case.say}: {count:,} events")
    with place() as at, ExitStack() as stack:
        asyncio.run(_publish(at, case.events(count), case.partitions))
        settings = {"MEMORY_BUDGET_BYTES": budget_mib << 20}
        worker = stack.enter_context(Worker("benchmarks.jobs.budget", at, settings=settings))
        worker.wait("up", worker.view, poll_s=0.005)
        start = worker.memory()
        for _ in range(case.readers):
            stack.enter_context(_SlowReader(worker.url))
        with Curve(worker) as curve:
            run = through(worker, count)
            after = worker.memory()
        dead = run.view["counts"]["dead"]
        if dead != (count if "reject" in next(case.events(1))[1] else 0):
            raise Failed(f"{dead} of {count} events are in the dead letters. {worker.log_end()}")
    over = round(after.peak - start.rss, 1)
    return {
        "load_average": at.load,
        **run.figures(),
        "unanswered": run.view["commits"]["unknown"],
        "start_mb": start.rss,
        "peak_mb": after.peak,
        "over_mb": over,
        "within": over <= (budget_mib << 20) / 1e6 + ROCKSDB_MB,
        "curve_mb": curve.thinned(),
    }


async def _publish(at: Place, events: Iterator[Event], partitions: int) -> None:
    await create_topic(at.broker, SOURCE, partitions)
    producer = AIOKafkaProducer(
        bootstrap_servers=at.broker,
        enable_idempotence=True,
        max_batch_size=1_000_000,
        max_request_size=4_000_000,
        linger_ms=20,
    )
    await producer.start()
    try:
        for key, event in events:
            await producer.send(SOURCE, orjson.dumps(event), key=key.encode())
        await producer.flush()
    finally:
        await producer.stop()


class _SlowReader:
    """Asks for a table again and again, and takes a kilobyte of the answer every 20 ms."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.is_set():
            try:
                with socket.create_connection((self._address.hostname, self._address.port or 80), timeout=5) as there:
                    there.sendall(
                        b"GET /tables/counted?limit=1000 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
                    )
                    while not self._over.is_set() and there.recv(1024):
                        time.sleep(0.02)
            except OSError:
                time.sleep(0.1)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budget", description="Memory of a worker against its budget."
    )
    parser.add_argument("--budget-mib", type=int, default=128)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of events")
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))
    return parser


if __name__ == "__main__":
    main()
