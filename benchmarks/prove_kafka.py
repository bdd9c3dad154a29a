"""`semel prove` as it is run: the command itself, over a finished history in the topics of a Kafka of its own.

    python -m benchmarks.prove_kafka --events 50000000 [--share S] [--partitions P] [--data DIR] [--no-tamper]

The history is that of `benchmarks.prove`, spread over ten windows and written batch by batch into real topics, so that this
process keeps none of it. The verdict has to be clean. Then one output is written a second time for an event at the end of
the history and one for an event at its beginning, and the command has to find both. Memory and CPU are those of the
command's process. Fifty million events take some 16 GB of disk, which are free again at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from agents.settle import Payment, Settlement, settle
from benchmarks import report
from benchmarks.prove import NAME, History, Log
from benchmarks.rig import ROOT
from semel import Dedup, Pipeline, Topic
from semel.kafka import KafkaBroker
from semel.local.kafka import LocalKafka
from semel.local.process import environment_without_settings
from semel.port import EARLIEST, LATEST, TP, FetchRequest, Producer, TopicSpec
from semel.runtime.clock import SystemClock
from semel.state import lineage
from semel.task.topics import Topics

WINDOW = timedelta(days=1)
WINDOWS = 10
SINK = "settlements"
# Batches that wait for others before they are sent together.
WAITING = 8

pipeline = Pipeline(
    NAME, source=Topic(NAME, key=str, value=Payment), dedup=Dedup("id", window=WINDOW), agent=settle,
    sink=Topic(SINK, key=str, value=Settlement),
)  # fmt: skip

# No transaction: what is written is committed as it stands.
_ALONE = Producer(cast("str", None), -1, -1)


class Target:
    """The topics of the pipeline on a broker, made as a worker makes them, and written to."""

    def __init__(self, broker: KafkaBroker, runner: asyncio.Runner) -> None:
        self._broker = broker
        self._runner = runner
        self._waiting: dict[TP, bytes] = {}

    def make(self, partitions: int) -> str:
        """Returns the id of the source topic."""

        async def made() -> str:
            keep = {"retention.ms": "-1"}
            await self._broker.create_topics([TopicSpec(NAME, partitions, 1, keep)])
            mine = Topics(self._broker, SystemClock(), pipeline.plan(), replication_factor=1, say=lambda _: None)
            await mine.ready()
            return (await self._broker.topics([NAME]))[NAME].id

        return self._runner.run(made())

    def log(self, tp: TP) -> Log:
        return Log(lambda data: self._take(tp, data))

    def _take(self, tp: TP, data: bytes) -> None:
        if tp in self._waiting or len(self._waiting) >= WAITING:
            self.flush()
        self._waiting[tp] = data

    def flush(self) -> None:
        batches, self._waiting = self._waiting, {}
        if batches:
            self._runner.run(self._produce(batches))

    async def _produce(self, batches: Mapping[TP, bytes]) -> None:
        await self._broker.produce(_ALONE, batches)

    def double(self, tp: TP, *, last: bool) -> str:
        """Write the first or the last output of a partition again; returns its lineage."""

        async def written() -> str:
            at = (await self._broker.list_offsets([tp], LATEST if last else EARLIEST))[tp] - last
            node = (await self._broker.leaders([tp]))[tp]
            found = await self._broker.fetch(FetchRequest(node, {tp: at}, 500, 1 << 20, 1 << 20, purpose="benchmark"))
            record = next(r for r in found[tp].records if r.offset == at)
            builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
            builder.append(0, record.timestamp, record.key, record.value, list(record.headers))
            await self._produce({tp: bytes(builder.build())})
            return (lineage.of(record.headers) or b"").decode()

        return self._runner.run(written())


class Proven(NamedTuple):
    code: int
    document: dict[str, Any]
    seconds: float
    cpu_s: float
    peak_mb: float
    # Of temporary files, at the most.
    spooled_mb: float


def command(bootstrap: str, folder: Path) -> Proven:
    """Run `semel prove`; its progress goes to this process's standard error."""
    spool = folder / "tmp"
    spool.mkdir(exist_ok=True)
    env = environment_without_settings() | {"SEMEL_BROKER": f"kafka://{bootstrap}", "TMPDIR": str(spool)}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "semel", "prove", f"{__spec__.name}:pipeline", "--json"],
        cwd=ROOT, env=env, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    largest, most_mb, ended = [0], [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            # Not ru_maxrss: a child's begins with what its parent had.
            most_mb[0] = peak_mb(process.pid) or most_mb[0]
            size = 0
            for path in spool.rglob("*"):
                try:
                    size += path.stat().st_size
                except FileNotFoundError:
                    continue
            largest[0] = max(largest[0], size)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    said = process.stdout.read()
    # Of this one child, not of the broker, which is a child as well.
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    watching.join()
    seconds = time.perf_counter() - started
    document = orjson.loads(said) if said else {}
    return Proven(process.returncode, document, seconds, used.ru_utime + used.ru_stime, most_mb[0], largest[0] / 2**20)


def peak_mb(pid: int) -> float:
    """VmHWM; 0 where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prove_kafka", description="semel prove on a real Kafka."
    )
    parser.add_argument("--events", type=int, default=1_000_000, help="before redeliveries")
    parser.add_argument("--share", type=float, default=0.2, help="of events to redeliver, 0 to 1")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument(
        "--data", type=Path, help="where the broker's data lies meanwhile; a temporary directory without"
    )
    parser.add_argument("--no-tamper", action="store_true", help="prove the clean history only")
    asked = parser.parse_args()
    if asked.data is not None:
        asked.data.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="semel-prove-kafka-", dir=asked.data, ignore_cleanup_errors=True) as folder,
        LocalKafka(Path(folder) / "kafka", full_jit=True, heap_mb=512) as kafka,
        asyncio.Runner() as runner,
    ):
        broker = KafkaBroker(kafka.bootstrap, client_id="benchmark-prove", rpc_timeout_ms=30_000)
        runner.run(broker.start())
        try:
            found = _measure(Target(broker, runner), kafka.bootstrap, Path(folder), asked)
        finally:
            runner.run(broker.close())
    records, clean = found["events"], found["clean"]
    report.finish(
        {"benchmark": "prove_kafka", **found},
        f"{records:,} events proven in {clean['seconds']:.0f} s, {clean['cpu_us_per_event']:.1f} us of CPU an event, "
        f"{clean['rss_peak_mb']:.0f} MB at the most",
    )


def _measure(there: Target, bootstrap: str, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    source_id = there.make(asked.partitions)
    report.say(f"writing {asked.events:,} events")
    started = time.perf_counter()
    apart_ms = WINDOWS * WINDOW.total_seconds() * 1000 / asked.events
    History(
        pipeline, asked.events, asked.share, asked.partitions, apart_ms=apart_ms, source_id=source_id, log=there.log
    )
    there.flush()
    written_s = time.perf_counter() - started
    load = report.load_average()
    report.say(f"written in {written_s:.0f} s; proving")
    clean = command(bootstrap, folder)
    records = clean.document.get("counts", {}).get("records", 0)
    found: dict[str, Any] = {
        "ok": clean.code == 0 and clean.document.get("ledger") == "closed",
        "events": records,
        "written_s": round(written_s),
        "load_before": load,
        "clean": _figures(clean),
        "tampered": {},
    }
    for name, last in (("last", True), ("first", False)) if not asked.no_tamper else ():
        doubled = there.double(TP(SINK, 0), last=last)
        found["tampered"][name] = proven = _figures(command(bootstrap, folder))
        _, _, partition, offset, _, _ = doubled.split("/", 5)
        said = f"event at {NAME}[{partition}]@{offset} is there twice"
        proven["seen"] = any(said in sentence for sentence in proven["findings"])
        found["ok"] = found["ok"] and proven["seen"]
    return found


def _figures(proven: Proven) -> dict[str, Any]:
    document = proven.document
    records = document.get("counts", {}).get("records", 0) or 1
    return {
        "exit_code": proven.code,
        "verdict": document.get("verdict"),
        "seconds": round(proven.seconds, 1),
        "events_per_s": round(records / proven.seconds),
        "cpu_us_per_event": round(proven.cpu_s / records * 1e6, 2),
        "rss_peak_mb": round(proven.peak_mb),
        "spooled_mb": round(proven.spooled_mb),
        "findings": [f["sentence"] for f in document.get("findings", [])],
    }


if __name__ == "__main__":
    main()
