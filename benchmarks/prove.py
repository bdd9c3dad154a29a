"""What `semel prove` costs per event: the laws over a finished history of a ledger, with a broker that reads from memory.

    python -m benchmarks.prove [--events N] [--share S] [--partitions P]

Source, marks and outputs are encoded as Kafka keeps them and decoded as they are fetched; only the network is left out.
The history is one of a pipeline with dedup: every event has a mark and an output with lineage, redeliveries have none. The
verdict has to be clean, or the figure says nothing. Memory is that of the whole process above what it had before proving,
the logs that the broker keeps not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from agents.settle import Payment, Settlement, settle
from benchmarks import report
from semel import Dedup, Pipeline, Topic
from semel.kafka import records as kafka_records
from semel.partitioner import partition_of
from semel.port import EARLIEST, TP, Fetched, FetchRequest, TopicInfo
from semel.proof import Progress, Verdict, prove
from semel.runtime.clock import SystemClock
from semel.state import lineage
from semel.state.dedup_marks import DONE, pack
from semel.state.positions import KEY, Position, StreamTime, TopicPosition

BATCH_BYTES = 500_000
BEGAN_MS = 1_700_000_000_000
# 40 events a second: fifty million take two weeks, two windows of them.
APART_MS = 25.0
WINDOW = timedelta(days=7)
NAME = "payments"
# Events of a partition that wait for their redelivery.
WAITING = 100


class Log:
    """One partition: batches of (first offset, offset after the last, bytes), as a fetch gives them.

    `send`: takes each batch as it is full, instead of keeping it.
    """

    def __init__(self, send: Callable[[bytes], None] | None = None) -> None:
        self.batches: list[tuple[int, int, bytes]] = []
        self._send = send
        self.end = 0
        self._builder = self._new()
        self._count = 0

    def _new(self) -> DefaultRecordBatchBuilder:
        return DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 2 * BATCH_BYTES)

    def append(self, at_ms: int, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> int:
        offset = self.end + self._count
        self._builder.append(self._count, at_ms, key, value, list(headers))
        self._count += 1
        if self._builder.size() > BATCH_BYTES:
            self.close()
        return offset

    def close(self) -> None:
        if self._count:
            data = self._builder.build()
            if self._send is not None:
                self._send(bytes(data))
            else:
                data[:8] = self.end.to_bytes(8, "big")
                self.batches.append((self.end, self.end + self._count, bytes(data)))
            self.end += self._count
            self._builder, self._count = self._new(), 0


class History:
    """Of a pipeline that has read `events` payments, one each `apart_ms`, and redeliveries of a share of them.

    `source_id`: the topic id that the positions name. `log`: makes the log of a partition.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        events: int,
        share: float,
        partitions: int,
        *,
        apart_ms: float = APART_MS,
        source_id: str = "0" * 32,
        log: Callable[[TP], Log] = lambda _: Log(),
    ) -> None:
        self.pipeline = pipeline
        plan = pipeline.plan()
        names = (NAME, "settlements", plan.marks_topic, plan.positions_topic, plan.dead_letter_topic)
        self.partitions = partitions
        self.logs = {TP(name, p): log(TP(name, p)) for name in names for p in range(partitions)}
        self._apart_ms, self._source_id = apart_ms, source_id
        self._write(events, share)
        for written in self.logs.values():
            written.close()

    def _write(self, events: int, share: float) -> None:
        rng = random.Random(1)
        payload_of = Dedup("id", window=WINDOW).payload_reader()
        counts = [dict.fromkeys(("in", "out", "duplicates"), 0) for _ in range(self.partitions)]
        again: list[list[tuple[bytes, bytes]]] = [[] for _ in range(self.partitions)]
        at_ms, plan = BEGAN_MS, self.pipeline.plan()
        origins = [lineage.prefix(NAME, "", NAME, p) for p in range(self.partitions)]
        places = {key: partition_of(key, self.partitions) for key in (b"account-%d" % n for n in range(10_000))}
        keys = list(places)

        class Given:
            value = b""

        for number in range(events):
            at_ms = BEGAN_MS + int(number * self._apart_ms)
            key = keys[rng.randrange(len(keys))]
            p = places[key]
            id = b"p%d" % number
            value = b'{"id":"%b","account":"%b","amount":%d}' % (id, key, number % 1000)
            offset = self.logs[TP(NAME, p)].append(at_ms, key, value)
            Given.value = value
            mark = pack(offset, at_ms, at_ms, payload_of(None, Given), DONE)
            self.logs[TP(plan.marks_topic, p)].append(at_ms, id, mark)
            header = (lineage.HEADER, b"%b%d/0/%b" % (origins[p], offset, id))
            self.logs[TP("settlements", p)].append(at_ms, key, value, [header])
            counts[p]["in"] += 1
            counts[p]["out"] += 1
            if rng.random() < share:
                again[p].append((key, value))
                # What has waited for long is not redelivered: the window would be over.
                del again[p][:-WAITING]
            if again[p] and rng.random() < share:
                redelivered = again[p].pop(rng.randrange(len(again[p])))
                self.logs[TP(NAME, p)].append(at_ms, *redelivered)
                counts[p]["in"] += 1
                counts[p]["duplicates"] += 1
        for p, counted in enumerate(counts):
            source = self.logs[TP(NAME, p)]
            source.close()
            position = Position(
                {NAME: TopicPosition(self._source_id, self.partitions, source.end, first=0)}, StreamTime(at_ms), counted,
                generation=1, writer="w", epoch=1, at_ms=at_ms, shape=plan.shape(), outputs={"settlements": counted["out"]},
            )  # fmt: skip
            self.logs[TP(plan.positions_topic, p)].append(at_ms, KEY, position.encode())

    @property
    def size(self) -> int:
        return sum(len(data) for log in self.logs.values() for _, _, data in log.batches)


class Reader:
    """What of a `Broker` a proof asks."""

    def __init__(self, history: History) -> None:
        self._history = history

    async def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        there = {tp.topic for tp in self._history.logs}
        return {n: TopicInfo(n, "0" * 32, self._history.partitions) for n in (names or there) if n in there}

    async def topic_configs(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        return {name: {"cleanup.policy": "delete"} for name in names}

    async def leaders(self, tps: Sequence[TP]) -> dict[TP, int]:
        return dict.fromkeys(tps, 0)

    async def list_offsets(self, tps: Sequence[TP], at: int, *, committed: bool = False) -> dict[TP, int]:
        return {tp: 0 if at == EARLIEST else self._history.logs[tp].end for tp in tps}

    async def fetch(self, request: FetchRequest) -> dict[TP, Fetched]:
        await asyncio.sleep(0)
        return {tp: self._read(tp, offset, request.max_bytes) for tp, offset in request.offsets.items()}

    def _read(self, tp: TP, offset: int, max_bytes: int) -> Fetched:
        log = self._history.logs[tp]
        found = b"".join(self._some(log, offset, max_bytes))
        records, position, error = kafka_records.read(found, offset, aborted=())
        return Fetched(records, position, log.end, log.end, 0, error)

    def _some(self, log: Log, offset: int, max_bytes: int) -> Iterator[bytes]:
        taken = 0
        for _, after, data in log.batches:
            if after > offset and taken + len(data) <= max_bytes:
                taken += len(data)
                yield data
            elif taken:
                return


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prove", description="CPU and memory of a proof.")
    parser.add_argument("--events", type=int, default=1_000_000, help="before redeliveries")
    parser.add_argument("--share", type=float, default=0.2, help="of events to redeliver, 0 to 1")
    parser.add_argument("--partitions", type=int, default=4)
    asked = parser.parse_args()
    pipeline = Pipeline(
        NAME, source=Topic(NAME, key=str, value=Payment), dedup=Dedup("id", window=WINDOW), agent=settle,
        sink=Topic("settlements", key=str, value=Settlement),
    )  # fmt: skip
    report.say("writing the history")
    history = History(pipeline, asked.events, asked.share, asked.partitions)
    before_mb = _rss_mb()
    phases: dict[str, float] = {}
    last = ["", time.thread_time()]

    def told(progress: Progress) -> None:
        now = time.thread_time()
        phases[progress.phase] = phases.get(progress.phase, 0.0) + now - float(last[1])
        last[:] = [progress.phase, now]

    started, cpu = time.perf_counter(), time.process_time()
    reader: Any = Reader(history)
    proof = asyncio.run(prove(reader, pipeline.plan(), SystemClock(), progress=told))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    records = proof.counts["records"]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report.finish(
        {
            "benchmark": "prove",
            "ok": proof.verdict is Verdict.CLEAN and proof.ledger,
            "events": records,
            "events_per_s": round(records / seconds),
            "cpu_us_per_event": round(cpu / records * 1e6, 2),
            "phases_cpu_s": {phase: round(spent, 2) for phase, spent in phases.items()},
            "rss_before_mb": round(before_mb),
            "rss_peak_mb": round(peak_mb),
            "rss_added_mb": round(peak_mb - before_mb),
            "log_mb": history.size >> 20,
        },
        f"{records:,} events proven in {seconds:.1f} s, {cpu / records * 1e6:.1f} us of CPU an event, "
        f"{peak_mb - before_mb:.0f} MB above what was there",
    )


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
