"""What one process of a simulation does: its share of the enumerable cases, then seeds, until it is told to stop."""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from semel.stages.agent.coroutine_driver import close_suspended
from semel.testing.clock import Deadlock, run_virtual
from tests.simulation.choices import Choices
from tests.simulation.history import History
from tests.simulation.shrink import shrunk
from tests.simulation.storm import Outcome, storm
from tests.simulation.systematic import WORKLOADS, Case, Ran, answers, first_crashes, run_case, second_crashes
from tests.simulation.watch import Key

CRASHES_PER_SEED = 40
# No run takes this long, on however slow a machine: one that does goes round in circles, and virtual time does not end it.
ENDLESS_S = 180.0


class Endless(KeyboardInterrupt):
    """A run that does not end. Of this kind, because asyncio lets nothing else out of a callback."""


@contextmanager
def ended(within_s: float) -> Iterator[None]:
    """Endless from whatever runs within when the time is over; where it is caught, again and again."""

    said = Endless(f"it did not end within {within_s:g} s")
    fired = False

    def over(*_: object) -> None:
        nonlocal fired
        fired = True
        raise said

    before = signal.signal(signal.SIGALRM, over)
    # A test's own limit runs on the same clock.
    timer = signal.setitimer(signal.ITIMER_REAL, within_s, 5.0)
    try:
        yield
    except Deadlock as exc:
        # The callback that it broke off was to wake a task, for which the loop waits on its way out.
        if fired:
            raise said from exc
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


@dataclass
class Finding:
    """`replay`: the arguments that show it again. `needed`: what must go wrong for it, if that was looked for."""

    replay: str
    violations: list[str]
    needed: list[str] = field(default_factory=list)


@dataclass
class Batch:
    """What some runs came to."""

    runs: Counter[str] = field(default_factory=Counter[str])
    figures: Counter[str] = field(default_factory=Counter[str])
    seen: Counter[Key] = field(default_factory=Counter[Key])
    recoveries: list[float] = field(default_factory=list)
    rests: list[float] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, outcome: Outcome, kind: str) -> None:
        self.runs[kind] += 1
        self.figures.update(outcome.figures)
        self.seen.update(outcome.seen)
        for recovery in outcome.history.recoveries:
            if recovery.ended is not None:
                lasted = recovery.ended - recovery.begun
                (self.rests if recovery.within_s < float("inf") else self.recoveries).append(lasted)

    def merge(self, other: Batch) -> None:
        for mine, its in ((self.runs, other.runs), (self.figures, other.figures), (self.seen, other.seen)):
            mine.update(its)  # type: ignore[arg-type]
        self.recoveries += other.recoveries
        self.rests += other.rests
        self.findings += other.findings


def in_folder(run: Callable[[Path], Any]) -> Any:
    """In virtual time, in a folder of its own, in memory where the machine has such a place."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="semel-simulation-", dir=shm if shm.is_dir() else None))
    try:
        with ended(ENDLESS_S):
            return run_virtual(run(folder))
    finally:
        # Code that swallowed its end is kept, and with it all that its run has made.
        close_suspended()
        shutil.rmtree(folder, ignore_errors=True)


def run_seed(seed: int, *, real_share: float, only: frozenset[str] | None = None) -> Outcome:
    return in_folder(
        lambda folder: storm(folder, seed, crashes=CRASHES_PER_SEED, real_share=real_share, only=Choices(only))
    )


def replay_seed(seed: int, *, real_share: float, shrink: bool = True) -> tuple[Outcome | None, Finding | None]:
    """One seed; where it breaks a law, what is needed for that."""
    try:
        outcome = run_seed(seed, real_share=real_share)
    except (Exception, Endless) as exc:
        return None, Finding(f"--seed {seed}", [f"the run itself broke: {type(exc).__name__}: {exc}"])
    if not outcome.violations:
        return outcome, None
    laws = {v.law for v in outcome.violations}
    replay = f"--seed {seed}{' --real-store 1' if outcome.real else ''}"
    finding = Finding(replay, [str(v) for v in outcome.violations[:5]])
    if shrink:

        def fails(names: frozenset[str]) -> bool:
            try:
                again = run_seed(seed, real_share=real_share, only=names)
            except (Exception, Endless):
                return False
            return bool(laws & {v.law for v in again.violations})

        needed = shrunk(list(outcome.taken), fails)
        last = run_seed(seed, real_share=real_share, only=frozenset(needed))
        finding.needed = [f"{at:9.3f} s  {words}" for at, words in last.taken.values()]
        finding.violations = [str(v) for v in last.violations[:3]] or finding.violations
    return outcome, finding


def try_case(case: Case, *, real: bool = False) -> Ran:
    return in_folder(lambda folder: run_case(folder, case, real=real))


def systematic_share(process: int, processes: int) -> Iterator[Case]:
    """The first crashes and the answers that are this process's to try, some of each in turn."""
    crashes = (first for workload in WORKLOADS for first in first_crashes(workload, try_case(Case(workload))))
    told = answers()
    rounds = (case for first in crashes for case in (first, *islice(told, 8)))
    return islice(chain(rounds, told), process, None, processes)


def work(process: int, processes: int, first_seed: int, real_share: float, systematic: bool,
         send: Callable[[Batch], None], stopped: Callable[[], bool]) -> None:  # fmt: skip
    logging.disable()
    cases = systematic_share(process, processes) if systematic else iter(())
    for seed in count(first_seed + process, processes):
        if stopped():
            return
        # In turn, so that a short run has some of each.
        case = next(cases, None)
        if case is not None:
            send(_case(case, stopped))
        if not stopped():
            send(_seed(seed, real_share))


def _seed(seed: int, real_share: float) -> Batch:
    batch = Batch()
    outcome, finding = replay_seed(seed, real_share=real_share)
    if outcome is not None:
        batch.add(outcome, "seeds on RocksDB" if outcome.real else "seeds")
        batch.runs["seeds in which nothing bit"] += not outcome.bit
    if finding is not None:
        batch.findings.append(finding)
    return batch


def process(number: int, processes: int, first_seed: int, real_share: float, systematic: bool,
            results: Any, stop: Any) -> None:  # fmt: skip
    """`work` in a process of its own; None is its last word."""
    try:
        work(number, processes, first_seed, real_share, systematic, results.put, stop.is_set)
    except KeyboardInterrupt:
        pass
    finally:
        results.put(None)


def _case(case: Case, stopped: Callable[[], bool]) -> Batch:
    """A case, and after a crash all second crashes in the recovery from it."""
    batch = Batch()
    ran = _tried(batch, case)
    if ran is not None and case.kills:
        # After a crash between failpoints, once each: most of what follows is the same.
        for second in second_crashes(case, ran, most=2 if case.kills[0].point else 1):
            if stopped():
                break
            _tried(batch, second)
    return batch


def _tried(batch: Batch, case: Case) -> Ran | None:
    try:
        ran = try_case(case)
    except (Exception, Endless) as exc:
        batch.findings.append(Finding(f"--case '{case}'", [f"the run itself broke: {type(exc).__name__}: {exc}"]))
        return None
    batch.add(ran.outcome, "answers" if case.answered else "second crashes" if len(case.kills) > 1 else "first crashes")
    if ran.outcome.violations:
        batch.findings.append(Finding(f"--case '{case}'", [str(v) for v in ran.outcome.violations[:3]]))
    return ran


def trace(history: History) -> str:
    """A digest of all that happened, to the last byte and moment: equal for runs that took the same course."""
    digest = hashlib.sha256()
    for event in history.events:
        digest.update(repr(event).encode())
    return digest.hexdigest()[:16]


def some_seed() -> int:
    return random.SystemRandom().randrange(1_000_000) * 1_000
