"""Handlers that wait for 100 ms, on one worker: one at a time of each partition, a hundred keys at a time, a hundred threads.

    python -m benchmarks.waiting [--events N] [--rounds R] [--cases concurrency threads one_by_one]

In each round the cases take turns, each on a broker of its own. `seconds` is from the first handler's begin to the last one's
end. The result is checked: each event has one output, and those of a key are in their order.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import orjson

from benchmarks import report
from benchmarks.audit import committed
from benchmarks.failing import wrong_sums
from benchmarks.jobs.waiting import SINK, SOURCE
from benchmarks.rig import Failed, Worker, place, published, through
from feeds.publish import publish
from feeds.record import Record

PARTITIONS = 4
KEYS = 250
CASES = ("concurrency", "threads", "one_by_one")
BEGAN_MS = 1_760_000_000_000
WITHIN_S = 60.0


def main() -> None:
    asked = _arguments().parse_args()
    rounds = [{name: _turn(name, asked.events, number) for name in asked.cases} for number in range(asked.rounds)]
    middle = {
        name: report.medians([r[name] for r in rounds], ("seconds", "cpu_us_per_event", "peak_mb"))
        for name in asked.cases
    }
    report.finish(
        {
            "benchmark": "waiting",
            "ok": all(not f["faults"] for r in rounds for f in r.values()),
            "events": asked.events,
            "median": middle,
            "rounds": rounds,
        },
        "; ".join(
            f"{name} {m['seconds']} s, {m['cpu_us_per_event']} us, {m['peak_mb']:.0f} MB" for name, m in middle.items()
        ),
    )


def _turn(name: str, events: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    sent = [{"id": f"e{n}", "key": f"k{rng.randrange(KEYS)}", "fails": 0} for n in range(events)]
    with place() as at:
        records = (Record(e["key"].encode(), orjson.dumps(e), BEGAN_MS + n) for n, e in enumerate(sent))
        total = published(publish(at.broker, SOURCE, records, partitions=PARTITIONS))
        with Worker(f"benchmarks.jobs.waiting:{name}", at) as worker:
            figures = through(worker, total).figures()
            outputs = _all_of(at.broker, events)
            figures["peak_mb"] = worker.memory().peak
    spans = [orjson.loads(output.value) for output in outputs]
    figures["seconds"] = round(max(s["ended"] for s in spans) - min(s["began"] for s in spans), 2)
    faults = wrong_sums(sent, outputs)
    report.say(f"{name}: {events:,} events in {figures['seconds']} s, load {at.load}; {faults[:3] or 'result right'}")
    return {"load_average": at.load, **figures, "faults": len(faults), "first_faults": faults[:10]}


def _all_of(broker: str, events: int) -> list[Any]:
    """An event that is parked, as those in hand are, counts as taken before it is done."""
    ends = time.monotonic() + WITHIN_S
    while len(outputs := published(committed(broker, SINK))) < events:
        if time.monotonic() > ends:
            raise Failed(f"{len(outputs)} of {events} events have an output after {WITHIN_S:g} s")
        time.sleep(0.2)
    return outputs


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting", description="What handlers that wait take.")
    parser.add_argument("--events", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    return parser


if __name__ == "__main__":
    main()
