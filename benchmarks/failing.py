"""What failing events cost the others: the same events with none, 1 % and 10 % of them failing at first, and with poison.

    python -m benchmarks.failing [--events N] [--rounds R] [--cases none 1% 10% poison parked]

`1%` and `10%`: so many events, spread by chance over all keys, fail once and are tried again. `poison`: the first event of each
partition fails until it is given up. `parked`: every second key's event fails twice, so that half of all keys are parked at
once. In each round the cases take turns, each on a broker of its own; a ratio is that of a case to `none` of its round. The
result is checked: each event that is not given up has one output, and those of a key are in their order.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
from aiokafka.partitioner import murmur2

from benchmarks import report
from benchmarks.audit import committed
from benchmarks.jobs.failing import SINK, SOURCE
from benchmarks.rig import Worker, place, published, through
from feeds.publish import publish
from feeds.record import Record

PARTITIONS = 4
KEYS = 10_000
FOR_GOOD = 1_000_000
BEGAN_MS = 1_760_000_000_000


class Case(NamedTuple):
    """`share` of the events fail `fails` times; `poison`: the first of each partition for good; `keys`: how many there are,
    none: each event has its own."""

    share: float = 0.0
    fails: int = 1
    poison: bool = False
    keys: int | None = KEYS


CASES = {
    "none": Case(),
    "1%": Case(0.01),
    "10%": Case(0.1),
    "poison": Case(poison=True),
    "parked": Case(0.5, fails=2, keys=None),
}


def main() -> None:
    asked = _arguments().parse_args()
    rounds = [{name: _turn(name, asked.events, number) for name in asked.cases} for number in range(asked.rounds)]
    ratios = {
        name: [round(r[name]["events_per_s"] / r["none"]["events_per_s"], 2) for r in rounds]
        for name in asked.cases
        if name != "none" and "none" in asked.cases
    }
    middle = {
        name: report.medians([r[name] for r in rounds], ("events_per_s", "cpu_us_per_event", "peak_mb"))
        for name in asked.cases
    }
    report.finish(
        {
            "benchmark": "failing",
            "ok": all(not f["faults"] for r in rounds for f in r.values()),
            "median": middle,
            "ratios": ratios,
            "rounds": rounds,
        },
        "; ".join(
            f"{name} {m['events_per_s']:,.0f} events/s, {m['cpu_us_per_event']} us, {m['peak_mb']:.0f} MB"
            for name, m in middle.items()
        ),
    )


def _turn(name: str, events: int, seed: int) -> dict[str, Any]:
    case = CASES[name]
    with place() as at:
        sent = list(_events(case, events, seed))
        records = (Record(e["key"].encode(), orjson.dumps(e), BEGAN_MS + n) for n, e in enumerate(sent))
        total = published(publish(at.broker, SOURCE, records, partitions=PARTITIONS))
        with Worker("benchmarks.jobs.failing", at) as worker:
            figures = through(worker, total).figures()
            figures["peak_mb"] = worker.memory().peak
        faults = wrong_sums(sent, published(committed(at.broker, SINK)))
    report.say(f"{name}: {figures['events_per_s']:,} events/s, load {at.load}; {faults[:3] or 'result right'}")
    return {"load_average": at.load, **figures, "faults": len(faults), "first_faults": faults[:10]}


def _events(case: Case, events: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(seed)
    poisoned: set[int] = set()
    for number in range(events):
        key = f"k{number if case.keys is None else rng.randrange(case.keys)}"
        fails = case.fails if rng.random() < case.share else 0
        partition = (murmur2(key.encode()) & 0x7FFFFFFF) % PARTITIONS
        if case.poison and partition not in poisoned:
            poisoned.add(partition)
            fails = FOR_GOOD
        yield {"id": f"e{number}", "key": key, "fails": fails}


def wrong_sums(sent: list[dict[str, Any]], outputs: list[Any]) -> list[str]:
    """What is wrong with the result, as sentences."""
    sums: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for event in sent:
        if event["fails"] != FOR_GOOD:
            sums[event["key"]] = wanted[event["id"]] = sums.get(event["key"], 0) + 1
    found: list[str] = []
    seen: set[str] = set()
    for output in outputs:
        said = orjson.loads(output.value)
        if said["id"] in seen:
            found.append(f"{said['id']} has two outputs")
        seen.add(said["id"])
        # A sum that is another was made in another order.
        if wanted.get(said["id"]) != said["sum"]:
            found.append(f"{said['id']} has the sum {said['sum']}, not {wanted.get(said['id'])}")
    found += [f"{id} has no output" for id in wanted.keys() - seen]
    return found


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failing", description="What failing events cost.")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    return parser


if __name__ == "__main__":
    main()
