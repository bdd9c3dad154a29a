"""semel beside others, on one job, in one run: drop duplicates by id, change one field, pass on, exactly once.

    python -m benchmarks.compare [--events N] [--rounds R] [--faust-events N] [--systems semel plain_loop stock_faust]

A million payments keyed by their id in four partitions, a fifth of them once more. In each round the systems take
turns, each on a broker of its own, and a ratio is that of two neighbours of one round: absolute figures of different
runs are not comparable on a machine that others use too. stock Faust gets few events, for it is slow; its rate does not
depend on their number. A system is an entry of `SYSTEMS`: others can join.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from benchmarks import report
from benchmarks.audit import committed, faults_of_ids
from benchmarks.jobs.dedup import SINK, SOURCE
from benchmarks.rig import ROOT, Failed, Place, Worker, place, published, through
from feeds import payments
from feeds.publish import create_topic, publish
from feeds.record import Record
from feeds.redelivery import redeliver

PARTITIONS = 4
PLAIN_LOOP_S, STOCK_FAUST_S = 300, 180
# After the last event was in hand, how long its transaction may take.
LAST_COMMIT_S = 30

System = Callable[[Place, int, int], dict[str, Any]]


def main() -> None:
    asked = _arguments().parse_args()
    systems = list(dict.fromkeys(asked.systems))
    rounds: list[dict[str, Any]] = []
    for number in range(asked.rounds):
        found: dict[str, Any] = {}
        for name in systems:
            found[name] = _turn(name, asked.faust_events if name == "stock_faust" else asked.events)
            figures = found[name]
            report.say(
                f"round {number + 1}, {name}: {figures['events_per_s']:,} events/s, "
                f"{figures['cpu_us_per_event']} us of CPU an event, load {figures['load_average']}"
            )
        rounds.append(found)
    ratios = {
        f"semel / {name}": [round(r["semel"]["events_per_s"] / r[name]["events_per_s"], 2) for r in rounds]
        for name in systems
        if name != "semel" and "semel" in systems
    }
    middle = {name: report.medians([r[name] for r in rounds], ("events_per_s", "cpu_us_per_event")) for name in systems}
    report.finish(
        {
            "benchmark": "compare",
            "ok": all(not f["faults"] for r in rounds for f in r.values()),
            "median": middle,
            "ratios": {name: {"median": median(pairs), "pairs": pairs} for name, pairs in ratios.items()},
            "rounds": rounds,
        },
        "; ".join(f"{name} {m['events_per_s']:,.0f} events/s" for name, m in middle.items())
        + "".join(f"; {name} {median(pairs):.2f}" for name, pairs in ratios.items()),
    )


def _turn(name: str, events: int) -> dict[str, Any]:
    with place() as at:
        ids: set[str] = set()
        total = published(publish(at.broker, SOURCE, _records(events, ids), partitions=PARTITIONS))
        figures = SYSTEMS[name](at, total, len(ids))
        return {"load_average": at.load, **figures, "faults": faults_of_ids(at.broker, SINK, ids)}


def _records(count: int, ids: set[str]) -> Iterator[Record]:
    def keyed_by_id() -> Iterator[Record]:
        for payment, at_ms in payments.events(count, 1):
            ids.add(payment["id"])
            yield Record(payment["id"].encode(), orjson.dumps(payment), at_ms)

    for kind, record in redeliver(keyed_by_id(), 1, altered=payments.altered):
        # The peers know no conflicts: with another payload they would do another job.
        if kind != "conflict":
            yield record


# -- the systems


def semel(at: Place, records: int, _unique: int) -> dict[str, Any]:
    with Worker("benchmarks.jobs.dedup", at) as worker:
        return through(worker, records).figures()


def plain_loop(at: Place, records: int, _unique: int, *, poll: int = 5_000) -> dict[str, Any]:
    published(create_topic(at.broker, SINK, PARTITIONS))
    published(create_topic(at.broker, "plain-loop-changelog", PARTITIONS))
    command = [sys.executable, "-m", "benchmarks.peers.plain_loop", "--broker", at.broker, "--source", SOURCE]
    command += ["--sink", SINK, "--changelog", "plain-loop-changelog", "--state", str(at.folder / "plain-loop")]
    command += ["--events", str(records), "--poll", str(poll)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PLAIN_LOOP_S, check=False)
    if done.returncode:
        raise Failed(f"the plain loop ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return _figures(orjson.loads(done.stdout))


def stock_faust(at: Place, records: int, unique: int) -> dict[str, Any]:
    published(create_topic(at.broker, SINK, PARTITIONS))
    log, result = at.folder / "stock-faust.log", at.folder / "stock-faust.json"
    environment = {
        **os.environ,
        "BENCHMARK_EVENTS": str(records),
        "BENCHMARK_BROKER": at.broker,
        "BENCHMARK_SOURCE": SOURCE,
        "BENCHMARK_SINK": SINK,
        "BENCHMARK_STATE": str(at.folder / "stock-faust"),
        "BENCHMARK_RESULT": str(result),
    }
    command = [str(Path(sys.executable).with_name("faust")), "-A", "benchmarks.peers.stock_faust"]
    command += ["worker", "--without-web", "-l", "error"]
    with log.open("wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
    try:
        ends = time.monotonic() + STOCK_FAUST_S
        while not result.exists():
            if process.poll() is not None or time.monotonic() > ends:
                raise Failed(f"stock Faust did not get through:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        ends = time.monotonic() + LAST_COMMIT_S
        while len(asyncio.run(committed(at.broker, SINK))) < unique and time.monotonic() < ends:
            time.sleep(1)
        return _figures(orjson.loads(result.read_bytes()))
    finally:
        process.kill()
        process.wait()


SYSTEMS: dict[str, System] = {
    "semel": semel,
    "plain_loop": plain_loop,
    "plain_loop_20000": partial(plain_loop, poll=20_000),
    "stock_faust": stock_faust,
}


def _figures(said: dict[str, Any]) -> dict[str, Any]:
    return {
        "events": said["events"],
        "seconds": round(said["seconds"], 2),
        "events_per_s": round(said["events"] / said["seconds"]),
        "cpu_us_per_event": round(said["cpu_s"] / said["events"] * 1e6, 2),
    }


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="semel beside others.")
    parser.add_argument("--events", type=int, default=1_000_000, help="before redeliveries")
    parser.add_argument("--faust-events", type=int, default=20_000, help="for stock Faust")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=tuple(SYSTEMS), default=["semel", "plain_loop", "stock_faust"])
    return parser


if __name__ == "__main__":
    main()
