"""Events a second through one worker, exactly once.

    python -m benchmarks.throughput payments [--events N] [--rounds R]
    python -m benchmarks.throughput flights

Each round has a broker of its own, whose topic is full before the one `semel worker` starts. The audit comes after it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.audit import Truth, audit
from benchmarks.inputs import deliveries
from benchmarks.rig import Worker, place, published, through
from feeds import flights, payments
from feeds.publish import publish
from feeds.truth import FlightsTruth, PaymentsTruth

TARGETS = {"payments": 40_000, "flights": 25_000}
PROFILE_SECONDS = 12


def main() -> None:
    asked = _arguments().parse_args()
    if asked.profile and shutil.which("py-spy", path=str(Path(sys.executable).parent)) is None:
        raise SystemExit("--profile needs py-spy beside this Python: pip install py-spy")
    truth = truth_of(asked.input, asked.events, asked.seed)
    rounds = [_round(asked, truth, number + 1) for number in range(asked.rounds)]
    ok = all(not r["faults"] for r in rounds)
    median = report.medians(
        rounds, ("events_per_s", "cpu_us_per_event", "main_us_per_event", "commit_p50_ms", "events_per_commit")
    )
    report.finish(
        {
            "benchmark": "throughput",
            "input": asked.input,
            "ok": ok,
            "target_events_per_s": TARGETS[asked.input],
            "median": median,
            "rounds": rounds,
        },
        f"{asked.input}: {median['events_per_s']:,.0f} events/s in one worker (target {TARGETS[asked.input]:,}), "
        f"{median['cpu_us_per_event']:.1f} us of CPU an event, {'result right' if ok else 'RESULT WRONG: void'}",
    )


def truth_of(name: str, events: int | None, seed: int, accounts: int = 10_000) -> Truth:
    if name == "flights":
        return FlightsTruth(islice(flights.events(), events))
    return PaymentsTruth(payment for payment, _ in payments.events(events or 1_000_000, seed, accounts=accounts))


def _round(asked: argparse.Namespace, truth: Truth, number: int) -> dict[str, Any]:
    with place() as at:
        counts: Counter[str] = Counter()
        records = deliveries(asked.input, asked.events, seed=asked.seed, share=asked.share, counts=counts)
        total = published(publish(at.broker, asked.input, records, partitions=asked.partitions))
        report.say(f"round {number}: {total:,} records are on the topic")
        with Worker(f"pipelines.{asked.input}", at) as worker:
            if asked.profile:
                worker.wait("at work", lambda: (worker.view() or {}).get("counts", {}).get("in"))
            with _Profile(asked.profile, worker.pid) if asked.profile else _Nothing():
                run = through(worker, total)
            faults = audit(worker, at.broker, truth, counts)
        report.say(f"round {number}: {run.events_per_s:,} events/s, load {at.load}")
        for fault in faults[:10]:
            report.say(f"  {fault}")
        return {"load_average": at.load, **run.figures(), "faults": len(faults), "first_faults": faults[:10]}


class _Nothing:
    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return


class _Profile:
    """py-spy beside the worker: folded stacks in a file. What is measured meanwhile is slower by some percent."""

    def __init__(self, file: Path, pid: int) -> None:
        command = [str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(pid), "--format", "raw"]
        command += ["--duration", str(PROFILE_SECONDS), "--rate", "200", "--nonblocking", "--output", str(file)]
        self._command = command

    def __enter__(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def __exit__(self, *_: object) -> None:
        try:
            _, said = self._process.communicate(timeout=PROFILE_SECONDS + 10)
            if self._process.returncode:
                report.say(f"py-spy failed: {said.decode(errors='replace')[-500:]}")
        except subprocess.TimeoutExpired:
            self._process.kill()
            report.say("py-spy did not end")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description="Events/s of one worker.")
    parser.add_argument("input", choices=tuple(TARGETS))
    parser.add_argument("--events", type=int, help="before redeliveries; a million payments, a year of flights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.2, help="of events to redeliver, 0 to 1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile", type=Path, metavar="FILE", help="folded stacks of the worker, by py-spy")
    return parser


if __name__ == "__main__":
    main()
