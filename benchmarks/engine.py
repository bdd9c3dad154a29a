"""What the engine itself costs per event: CPU of its thread, with a cluster that answers at once from memory.

    python -m benchmarks.engine payments [--events N] [--rounds R] [--profile FILE]

No broker, no socket, no other process: the figure hardly moves on a machine that others use too, so it is the one to
watch while the hot path is changed. Decoding of fetched batches, the store, the encoding of the batches to be sent and
the cut of an epoch are the real ones; only what lies behind the port is not. The best round counts: everything else that
a machine does makes CPU time longer, never shorter.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import importlib
import logging
import os
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from benchmarks import report
from benchmarks.inputs import deliveries
from benchmarks.rig import Failed
from feeds.record import Record
from semel.kafka import records as kafka_records
from semel.memory.broker import MemoryBroker
from semel.memory.cluster import MemoryCluster
from semel.partitioner import partition_of
from semel.pipeline import Pipeline
from semel.port import TP, Fetched, FetchRequest, Producer
from semel.runtime.clock import SystemClock, SystemRandomness
from semel.runtime.settings import EngineSettings
from semel.state.store import Store
from semel.testing.worker import MemoryWorker

PARTITIONS = 4
# As large as what the intake asks of a partition at once.
BATCH_BYTES = 500_000


class Log:
    """The source topic, encoded once, as batches of (first offset, offset after the last, bytes) per partition."""

    def __init__(self, topic: str, stream: Iterable[Record]) -> None:
        self.topic = topic
        self.total = 0
        self.batches: dict[TP, list[tuple[int, int, bytes]]] = {TP(topic, p): [] for p in range(PARTITIONS)}
        open_batches: dict[TP, list[Record]] = defaultdict(list)
        sizes: Counter[TP] = Counter()
        for record in stream:
            tp = TP(topic, partition_of(record.key, PARTITIONS))
            open_batches[tp].append(record)
            sizes[tp] += len(record.key) + len(record.value) + 20
            if sizes[tp] > BATCH_BYTES:
                self._close(tp, open_batches.pop(tp))
                del sizes[tp]
        for tp, rest in open_batches.items():
            self._close(tp, rest)

    def _close(self, tp: TP, found: Sequence[Record]) -> None:
        before = self.batches[tp]
        first = before[-1][1] if before else 0
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 2 * BATCH_BYTES)
        for nth, record in enumerate(found):
            builder.append(nth, record.timestamp_ms, record.key, record.value, [])
        data = builder.build()
        # The base offset is the broker's to set, and no part of the checksum.
        data[:8] = first.to_bytes(8, "big")
        before.append((first, first + len(found), bytes(data)))
        self.total += len(found)


class ReplayBroker(MemoryBroker):
    """The source from `log`, everything sent counted and forgotten; groups and transactions as in memory."""

    def __init__(self, cluster: MemoryCluster, log: Log) -> None:
        super().__init__(cluster)
        self._log = log
        self._ends: Counter[TP] = Counter()

    async def fetch(self, request: FetchRequest) -> dict[TP, Fetched]:
        await asyncio.sleep(0)
        answer: dict[TP, Fetched] = {}
        for tp, offset in request.offsets.items():
            batches = self._log.batches.get(tp)
            if batches is None:
                raise Failed(f"{tp} was to be restored: the state directory is not empty")
            end = batches[-1][1] if batches else 0
            data = next((raw for _, after, raw in batches if after > offset), None)
            found, position, error = kafka_records.read(data, offset, aborted=())
            answer[tp] = Fetched(found, position, end, end, 0, error)
        if not any(a.records for a in answer.values()):
            await asyncio.sleep(request.max_wait_ms / 1000)
        return answer

    async def produce(self, producer: Producer, batches: Mapping[TP, bytes]) -> dict[TP, int]:
        await asyncio.sleep(0)
        bases: dict[TP, int] = {}
        for tp, data in batches.items():
            bases[tp] = self._ends[tp]
            self._ends[tp] += int.from_bytes(data[57:61], "big")
        return bases

    def batch_builder(self, max_bytes: int) -> Any:
        return kafka_records.Batch(max_bytes, 0)


def main() -> None:
    asked = _arguments().parse_args()
    counts: Counter[str] = Counter()
    log = Log(asked.input, deliveries(asked.input, asked.events, seed=1, share=asked.share, counts=counts))
    pipeline: Pipeline = importlib.import_module(f"pipelines.{asked.input}").pipeline
    # A worker's log costs what it costs, wherever it goes.
    logging.basicConfig(filename=os.devnull, level=logging.INFO)
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    rounds: list[dict[str, Any]] = []
    for number in range(asked.rounds):
        rounds.append({"load_average": report.load_average(), **asyncio.run(_round(pipeline, log, asked.profile))})
        report.say(f"round {number + 1}: {rounds[-1]['cpu_us_per_event']} us of CPU an event")
    best = min(r["cpu_us_per_event"] for r in rounds)
    right = all(r["counts"]["out"] == rounds[0]["counts"]["out"] for r in rounds)
    right = right and all(r["counts"]["conflicts"] == counts["conflict"] for r in rounds)
    report.finish(
        {"benchmark": "engine", "input": asked.input, "ok": right, "best_cpu_us_per_event": best, "rounds": rounds},
        f"{asked.input}: the engine takes {best} us of CPU an event, at best",
    )


async def _round(pipeline: Pipeline, log: Log, profile: Path | None) -> dict[str, Any]:
    clock = SystemClock()
    cluster = MemoryCluster(clock, rng=random.Random(1))
    cluster.create_topic(log.topic, PARTITIONS)
    with tempfile.TemporaryDirectory(prefix="semel-engine-") as folder:
        store = Store(Path(folder) / "db")
        broker = ReplayBroker(cluster, log)
        worker = MemoryWorker("w1", pipeline.plan(), broker, store, clock, SystemRandomness(), EngineSettings())
        engine = worker.engine
        profiler = cProfile.Profile(time.thread_time) if profile else None
        started = time.thread_time()
        if profiler is not None:
            profiler.enable()
        while (done := sum(t.committed.counts.get("in", 0) for t in engine.tasks.values())) < log.total:
            if worker.over:
                raise Failed(f"the engine ended: {await worker.gone()!r}")
            await asyncio.sleep(0.05)
        used = time.thread_time() - started
        if profiler is not None and profile is not None:
            profiler.disable()
            profiler.dump_stats(profile)
        counted: Counter[str] = Counter()
        for task in engine.tasks.values():
            counted.update(task.committed.counts)
        commits = int(engine.stats["commits"])
        engine.stop()
        if (error := await worker.gone()) is not None:
            raise error
    return {
        "events": done,
        "cpu_us_per_event": round(used / done * 1e6, 2),
        "commits": commits,
        "counts": dict(counted),
    }


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description="CPU of the engine alone.")
    parser.add_argument("input", choices=("payments", "flights"))
    parser.add_argument("--events", type=int, default=200_000, help="before redeliveries")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.2, help="of events to redeliver, 0 to 1")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="cProfile statistics of the last round")
    return parser


if __name__ == "__main__":
    main()
