"""`semel dlq ls` and `semel dlq replay` as they are run, over so many dead letters in a real Kafka of their own.

    python -m benchmarks.dead_letters [--letters 1000000] [--partitions P] [--data DIR]

The letters are what a worker writes: of five places in the code, two versions, and as many keys as half the letters. `ls` has to
count all of them right; `replay` has to bring each back once, at no rate and with nobody to take them; `ls` again has to find
none open. Time, CPU and memory are those of its process. A million letters take some 1.5 GB of disk, which
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
from semel.runtime.clock import SystemClock
from semel.stages.sink.dead_letters import DeadLetters, dead_letter
from semel.stages.sink.failure_cause import Cause
from semel.task.read_committed import CommittedLogs

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
                there[n >= letters // 2], TP("payments", start // BATCH % partitions),
                Failed(n, b"account-%d" % (n // 2), b'{"id":"p%d","account":"account-%d","amount":12}' % (n, n // 2)),
                pipeline=NAME, agent="settle", reason="failed", error=f"ValueError: amount of p{n} is too little",
                attempts=5, cause=causes[n % 5], first_ms=NOW_MS + n, now_ms=NOW_MS + n + 900,
            )  # fmt: skip
            builder.append(at, NOW_MS, written.key, written.value, list(written.headers))
        await broker.produce(_ALONE, {TP(topic, start // BATCH % partitions): bytes(builder.build())})


def command(bootstrap: str, verb: str, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run `semel dlq VERB`; what it said, and what it took."""
    started, most_mb = time.perf_counter(), 0.0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "semel", "dlq", verb, f"{__spec__.name}:pipeline", "--json", *options],
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
    return document, {
        "exit_code": process.returncode,
        "seconds": round(seconds, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "rss_peak_mb": round(most_mb),
    }


async def replays(bootstrap: str) -> int:
    """How many records the source has, each counted."""
    broker = KafkaBroker(bootstrap, client_id="benchmark-count", rpc_timeout_ms=30_000)
    await broker.start()
    try:
        found = 0
        async for _ in CommittedLogs(broker, SystemClock(), "count").records("payments"):
            found += 1
        return found
    finally:
        await broker.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dead_letters", description="semel dlq ls and replay on Kafka."
    )
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
            runner.run(broker.create_topics([TopicSpec("payments", asked.partitions, 1, {"retention.ms": "-1"})]))
            runner.run(write(broker, asked.letters, asked.partitions))
        finally:
            runner.run(broker.close())
        load = report.load_average()
        listed, ls = command(kafka.bootstrap, "ls")
        report.say("replaying them")
        unwatched = ("--all", "--yes", "--rate", "0", "--keep-going", "--wait", "0")
        replayed, replay = command(kafka.bootstrap, "replay", *unwatched)
        left, again = command(kafka.bootstrap, "ls")
        there = runner.run(replays(kafka.bootstrap))
    keys = asked.letters / 5
    groups = [[g["count"], g["keys"], g["version"]] for g in listed.get("groups", [])]
    right = {
        "listed": listed.get("letters") == asked.letters
        and all(count == asked.letters / 5 and abs(seen - keys) < 0.1 * keys for count, seen, _ in groups),
        "replayed": replayed.get("replayed") == asked.letters,
        "none_open": left.get("letters") == 0 and left.get("done") == {"replay": asked.letters},
        "in_the_source": there == asked.letters,
    }
    report.finish(
        {
            "benchmark": "dead_letters",
            "ok": ls["exit_code"] == 0 and all(right.values()),
            "load_before": load,
            "letters": asked.letters,
            "groups": groups,
            **right,
            "ls": ls,
            "replay": replay,
            "ls_of_none": again,
        },
        f"{asked.letters:,} dead letters: ls in {ls['seconds']:.1f} s, {ls['cpu_s']:.1f} s of CPU, {ls['rss_peak_mb']:.0f} MB at "
        f"the most; replayed in {replay['seconds']:.1f} s, {replay['cpu_s']:.1f} s of CPU, {replay['rss_peak_mb']:.0f} MB",
    )


if __name__ == "__main__":
    main()
