"""`semel dlq ls` as it is run: the command itself, over so many dead letters in a real Kafka of its own.

    python -m benchmarks.dead_letters [--letters 1000000] [--partitions P] [--data DIR]

The letters are what a worker writes: of five places in the code, two versions, and as many keys as half the letters. The command
has to count all of them right. Time, CPU and memory are those of its process. A million letters take some 1.5 GB of disk, which
are free again at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from benchmarks import report
from benchmarks.prove_kafka import peak_mb
from benchmarks.rig import ROOT
from semel import Pipeline, Topic
from semel.kafka import KafkaBroker
from semel.local.kafka import LocalKafka
from semel.local.process import environment_without_settings
from semel.port import TP, Producer, TopicSpec
from semel.stages.sink.dead_letters import DeadLetters, dead_letter
from semel.stages.sink.failure_cause import Cause

NAME = "letters"
BATCH = 500
NOW_MS = 1_750_000_000_000
# No transaction: what is written is committed as it stands.
_ALONE = Producer(cast("str", None), -1, -1)
_TRACE = "".join(f'  File "/srv/shop/agents/settle.py", line {n}, in settle\n    charge(payment)\n' for n in range(6))


def settle(payment: dict[str, Any]) -> None: ...


pipeline = Pipeline(NAME, source=Topic("payments"), agent=settle)


class Failed(NamedTuple):
    offset: int
    key: bytes
    value: bytes
    timestamp: int = NOW_MS
    headers: tuple[tuple[str, bytes], ...] = (("trace", b"00-63bd-01"),)


async def write(broker: KafkaBroker, letters: int, partitions: int) -> None:
    topic = pipeline.plan().dead_letter_topic
    await broker.create_topics([TopicSpec(topic, partitions, 1, {"retention.ms": "-1"})])
    causes = [Cause(f"ValueError@agents.settle:charge_{n}", "ValueError", f"{_TRACE}ValueError: no") for n in range(5)]
    there = [DeadLetters(topic, partitions, 1 << 20, version) for version in ("v1", "v2")]
    for start in range(0, letters, BATCH):
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 8 << 20)
        for at, n in enumerate(range(start, min(start + BATCH, letters))):
            written = dead_letter(
                there[n >= letters // 2], TP("payments", 0),
                Failed(n, b"account-%d" % (n // 2), b'{"id":"p%d","account":"account-%d","amount":12}' % (n, n // 2)),
                pipeline=NAME, agent="settle", reason="failed", error=f"ValueError: amount of p{n} is too little",
                attempts=5, cause=causes[n % 5], first_ms=NOW_MS + n, now_ms=NOW_MS + n + 900,
            )  # fmt: skip
            builder.append(at, NOW_MS, written.key, written.value, list(written.headers))
        await broker.produce(_ALONE, {TP(topic, start // BATCH % partitions): bytes(builder.build())})


def command(bootstrap: str) -> dict[str, Any]:
    """Run `semel dlq ls`; what it found, and what it took."""
    started, most_mb = time.perf_counter(), 0.0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "semel", "dlq", "ls", f"{__spec__.name}:pipeline", "--json"],
            cwd=ROOT, env=environment_without_settings() | {"SEMEL_BROKER": bootstrap}, stdout=said,
        )  # fmt: skip
        while True:
            most_mb = peak_mb(process.pid) or most_mb
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.1)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        document = orjson.loads(said.read() or b"{}")
    seconds = time.perf_counter() - started
    return {
        "exit_code": process.returncode,
        "letters": document.get("letters"),
        "groups": [[g["count"], g["keys"], g["version"]] for g in document.get("groups", [])],
        "seconds": round(seconds, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "rss_peak_mb": round(most_mb),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dead_letters", description="semel dlq ls on Kafka.")
    parser.add_argument("--letters", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--data", type=Path, help="where the broker's data lies; a temporary directory without")
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="semel-letters-", dir=asked.data, ignore_cleanup_errors=True) as folder,
        LocalKafka(Path(folder) / "kafka", full_jit=True, heap_mb=512) as kafka,
        asyncio.Runner() as runner,
    ):
        broker = KafkaBroker(kafka.bootstrap, client_id="benchmark-letters", rpc_timeout_ms=30_000)
        runner.run(broker.start())
        try:
            report.say(f"writing {asked.letters:,} dead letters")
            runner.run(write(broker, asked.letters, asked.partitions))
        finally:
            runner.run(broker.close())
        load = report.load_average()
        found = command(kafka.bootstrap)
    keys = asked.letters / 5
    right = found["letters"] == asked.letters and all(
        count == asked.letters / 5 and abs(seen - keys) < 0.1 * keys for count, seen, _ in found["groups"]
    )
    report.finish(
        {"benchmark": "dead_letters", "ok": found["exit_code"] == 0 and right, "load_before": load, **found},
        f"{asked.letters:,} dead letters in {found['seconds']:.1f} s, {found['cpu_s']:.1f} s of CPU, "
        f"{found['rss_peak_mb']:.0f} MB at the most",
    )


if __name__ == "__main__":
    main()
