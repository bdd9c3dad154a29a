"""How long partitions stand still after kill -9 of the worker that had them.

    python -m benchmarks.handover [--rate N] [--rounds R]

Two workers share four partitions under an open-loop load. First one is killed and stays dead: the other must take over
once the session is over. It comes back, is killed again, and is started at once: its partitions wait for it. The moment
of the first event is read from the position records, where each commit names its writer and its time; what is committed
at the end is compared with the truth, for a kill that loses an event is no handover.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections import Counter
from typing import Any, NamedTuple

from benchmarks import report
from benchmarks.audit import audit, committed
from benchmarks.rig import ROOT, Failed, Place, Worker, place, published
from benchmarks.throughput import truth_of
from feeds.publish import create_topic
from semel.state import positions

APP = "payments"
BEYOND_SESSION_S = 2
SETTLE_S = 5


class Commit(NamedTuple):
    """One position record: when its epoch was sealed, by whom, and how many records the task had done by then."""

    partition: int
    at_ms: int
    writer: str
    done: int


def main() -> None:
    asked = _arguments().parse_args()
    session_s = asked.session_timeout_ms / 1000
    target = session_s + BEYOND_SESSION_S
    rounds = [_round(asked.rate, asked.session_timeout_ms, n + 1) for n in range(asked.rounds)]
    ok = all(not r["faults"] for r in rounds)
    median = report.medians(rounds, ("survivor_first_s", "survivor_all_s", "restarted_first_s", "restarted_all_s"))
    report.finish(
        {
            "benchmark": "handover",
            "ok": ok,
            "rate": asked.rate,
            "session_timeout_s": session_s,
            "target_s": target,
            "median": median,
            "rounds": rounds,
        },
        f"after kill -9: the survivor's first event {median['survivor_first_s']} s later, on all partitions "
        f"{median['survivor_all_s']} s (target {target:g}); by the same instance restarted "
        f"{median['restarted_first_s']} and {median['restarted_all_s']} s; "
        f"{'result right' if ok else 'RESULT WRONG: void'}",
    )


def _round(rate: int, session_ms: int, number: int) -> dict[str, Any]:
    seconds = 2 * session_ms // 1000 + 60
    events = rate * seconds
    settings = {"session_timeout_ms": session_ms}
    with place() as at:
        published(create_topic(at.broker, APP, 4))
        with (
            Worker("pipelines.payments", at, instance="w1", settings=settings) as survivor,
            Worker("pipelines.payments", at, instance="w2", settings=settings) as victim,
        ):
            _shared(survivor, victim)
            load = _load(at, rate, events)
            try:
                time.sleep(SETTLE_S)
                lost, killed_ms = _kill(victim)
                survivor.wait("in charge of all partitions", lambda: len(_running(survivor)) == 4)
                time.sleep(SETTLE_S)
                victim.start()
                _shared(survivor, victim)
                time.sleep(SETTLE_S)
                lost_again, killed_again_ms = _kill(victim)
                victim.start()
                _shared(survivor, victim)
                if load.poll() is not None:
                    raise Failed("the load ended before the handovers did; give a longer one")
                said = load.communicate(timeout=seconds + 30)[1]
                if load.returncode:
                    raise Failed(f"the load broke off: {said.decode()[-1000:]}")
            finally:
                if load.poll() is None:
                    load.kill()
                    load.wait()
            survivor.wait("through", lambda: _done(survivor) + _done(victim) == events)
            victim.stop()
            survivor.wait("alone", lambda: len(_running(survivor)) == 4)
            faults = audit(survivor, at.broker, truth_of(APP, events, 1), Counter(original=events))
        commits = _commits(at)
    taken = _first_events(commits, lost, killed_ms, f"{APP}-w1")
    kept = _first_events(commits, lost_again, killed_again_ms, f"{APP}-w2")
    figures = {
        "load_average": at.load,
        "survivor_first_s": min(taken.values()),
        "survivor_all_s": max(taken.values()),
        "restarted_first_s": min(kept.values()),
        "restarted_all_s": max(kept.values()),
        "survivor_by_partition_s": {str(p): s for p, s in taken.items()},
        "restarted_by_partition_s": {str(p): s for p, s in kept.items()},
        "faults": faults[:10],
    }
    times = f"survivor {figures['survivor_all_s']} s, restarted {figures['restarted_all_s']} s"
    report.say(f"round {number}: {times}, load {at.load}")
    return figures


def _load(at: Place, rate: int, events: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.inputs", APP, "--broker", at.broker, "--share", "0"]
    command += ["--rate", str(rate), "--events", str(events)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _running(worker: Worker) -> list[int]:
    tasks = (worker.view() or {}).get("tasks", [])
    return [t["partition"] for t in tasks if t["state"] == "running"]


def _done(worker: Worker) -> int:
    return (worker.view() or {}).get("counts", {}).get("in", 0)


def _shared(one: Worker, other: Worker) -> None:
    """Wait until both run half of the partitions."""
    one.wait("sharing", lambda: len(_running(one)) == 2 and len(_running(other)) == 2)


def _kill(worker: Worker) -> tuple[list[int], float]:
    """The partitions it had, and the moment in ms."""
    had = _running(worker)
    at_ms = time.time() * 1000
    worker.kill9()
    return had, at_ms


def _commits(at: Place) -> list[Commit]:
    found: list[Commit] = []
    for record in asyncio.run(committed(at.broker, f"{APP}-positions")):
        if record.key == positions.KEY and record.value is not None:
            position = positions.decode(record.value, "the benchmark")
            found.append(Commit(record.partition, position.at_ms, position.writer, position.counts["in"]))
    return found


def _first_events(commits: list[Commit], partitions: list[int], killed_ms: float, writer: str) -> dict[int, float]:
    """Seconds from the kill to the first commit of an event on each partition."""
    found: dict[int, float] = {}
    for partition in partitions:
        before = 0
        for commit in (c for c in commits if c.partition == partition):
            if commit.at_ms > killed_ms and commit.writer == writer and commit.done > before:
                found[partition] = round((commit.at_ms - killed_ms) / 1000, 2)
                break
            before = commit.done
        else:
            raise Failed(f"partition {partition} has no commit of {writer} after the kill")
    return found


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.handover", description="Time of a takeover.")
    parser.add_argument("--rate", type=int, default=1000, help="events/s")
    parser.add_argument("--session-timeout-ms", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
