"""`./dev simulate`: seeds and faults over the commit protocol, without a broker. Exit code 1 with any finding."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import queue
import sys
import time
from typing import Any

from tests.simulation.codes import BROKER_SAYS
from tests.simulation.storm import ALL_CODES
from tests.simulation.systematic import parsed
from tests.simulation.watch import never_reached
from tests.simulation.work import Batch, Finding, process, replay_seed, some_seed, trace, try_case

# More findings than this say nothing new.
ENOUGH = 10
EVERY_S = 5.0


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev simulate", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed exactly, and shrink what it finds")
    parser.add_argument("--case", help="replay this enumerated case, as a finding names it")
    parser.add_argument("--crashes", type=int, help="stop after so many crash points")
    parser.add_argument("--minutes", type=float, help="stop after so long (30, where no --crashes are given)")
    parser.add_argument("--processes", type=int, default=2, help="run in so many processes (2)")
    parser.add_argument("--real-store", type=float, default=0.05, metavar="SHARE",
                        help="this share of the seeds runs on RocksDB, the others on its model (0.05)")  # fmt: skip
    parser.add_argument("--from-seed", type=int, help="the first of the random seeds; some number if not given")
    parser.add_argument("--random-only", action="store_true", help="seeds only, nothing enumerated")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    if given.case is not None:
        return replay_case(given.case)
    if given.seed is not None:
        return replay(given.seed, given.real_store)
    return simulate(given)


def replay(seed: int, real_share: float) -> int:
    logging.disable()
    outcome, finding = replay_seed(seed, real_share=real_share)
    if outcome is not None:
        say(f"seed {seed}: {outcome.virtual_s:.1f} virtual seconds, trace {trace(outcome.history)}")
        say(_table(outcome.figures))
    if finding is not None:
        say(_said(finding))
        return 1
    if outcome is not None and not outcome.bit:
        say("nothing bit in this one: it proves nothing by itself")
    return 0


def replay_case(text: str) -> int:
    logging.disable()
    ran = try_case(parsed(text))
    say(f"{text}: {ran.outcome.virtual_s:.1f} virtual seconds, trace {trace(ran.outcome.history)}")
    say(_table(ran.outcome.figures))
    for violation in ran.outcome.violations:
        say(str(violation))
    return 1 if ran.outcome.violations else 0


# ---------------------------------------------------------------------- many


def simulate(given: argparse.Namespace) -> int:
    first_seed = some_seed() if given.from_seed is None else given.from_seed
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    stop = context.Event()
    shared = (given.processes, first_seed, given.real_store, not given.random_only, results, stop)
    processes = [context.Process(target=process, args=(number, *shared)) for number in range(given.processes)]
    say(f"seeds from {first_seed}")
    for each in processes:
        each.start()
    minutes = 30.0 if given.minutes is None and given.crashes is None else given.minutes
    total, begun, running = Batch(), time.monotonic(), len(processes)
    told = begun
    try:
        while running:
            now = time.monotonic()
            crashes = total.figures["crash points"]
            if (minutes and now - begun > minutes * 60) or (given.crashes and crashes >= given.crashes):
                stop.set()
            if len(total.findings) >= ENOUGH:
                stop.set()
            if now - told > EVERY_S:
                told = now
                say(_progress(total, now - begun))
            try:
                batch = results.get(timeout=1.0)
            except queue.Empty:
                if not any(p.is_alive() for p in processes):
                    break
                continue
            if batch is None:
                running -= 1
                continue
            for finding in batch.findings:
                say(_said(finding))
            total.merge(batch)
    except KeyboardInterrupt:
        stop.set()
    finally:
        stop.set()
        for each in processes:
            each.join(timeout=120)
    died = [p.exitcode for p in processes if p.exitcode]
    return conclude(total, time.monotonic() - begun, died)


def conclude(total: Batch, seconds: float, died: list[int | None]) -> int:
    say()
    say(_table(total.figures + total.runs))
    n = total.figures
    seeds = total.runs["seeds"] + total.runs["seeds on RocksDB"]
    say(f"{n['crash points']} crash points in {seconds:.0f} s: {n['crash points'] / max(1.0, seconds):.0f} a second; "
        f"{seeds / max(1.0, seconds):.1f} seeds a second")  # fmt: skip
    for what, times in (("recovery from a crash", total.recoveries), ("way back to rest", total.rests)):
        if times:
            ordered = sorted(times)
            p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
            say(f"{what}: {len(times)}, virtual seconds p50 {p50:.3f}, p99 {p99:.3f}, longest {ordered[-1]:.3f}")
    say()
    say(coverage(total))
    say()
    if total.findings or died:
        for finding in total.findings:
            say(_said(finding))
        say(f"{len(total.findings)} findings" + (f"; processes ended with {died}" if died else ""))
        return 1
    blunt = [name for name in ("fences", "aborts", "rebalances", "redeliveries", "crash points") if not n[name]]
    if blunt:
        say(f"void: there was no {', no '.join(blunt)}; the faults did not bite, and this run proves nothing")
        return 1
    say("no law was broken")
    return 0


def coverage(total: Batch) -> str:
    """How much of what could be reached was, and what was not."""
    lines = ["never reached:"]
    for kind, names in never_reached(total.seen, BROKER_SAYS).items():
        lines.append(f"  {kind}: {', '.join(names) or 'nothing'}")
    made_up = [("rpc", api, str(code)) for api, says in BROKER_SAYS.items() for code in ALL_CODES if code not in says]
    tried = sum(1 for key in made_up if total.seen[key])
    lines.append(f"  rpc answered with what no broker says: {tried} of {len(made_up)} tried")
    by: dict[str, int] = {}
    for key, times in sorted(total.seen.items()):
        if key[0] in ("epoch", "member", "task", "meets", "crashed in", "commits as"):
            by[" ".join(key)] = times
    crashed = {" ".join(k[1:]): n for k, n in sorted(total.seen.items()) if k[0] == "crash"}
    return "\n".join(["reached:", _table(by), "crash points by where:", _table(crashed), *lines])


def _progress(total: Batch, seconds: float) -> str:
    n, runs = total.figures, total.runs
    return (f"{seconds:6.0f} s  {n['crash points']:7d} crash points ({n['crash points'] / seconds:.0f}/s)  "
            f"{sum(runs.values()) - runs['seeds in which nothing bit']} runs  {n['fences']} fences  {n['aborts']} aborts  "
            f"{n['rebalances']} rebalances  {n['redeliveries']} redeliveries  {len(total.findings)} findings")  # fmt: skip


def _said(finding: Finding) -> str:
    lines = [f"FOUND: ./dev simulate {finding.replay}", *finding.violations]
    if finding.needed:
        lines += ["what is needed for it:", *finding.needed]
    return "\n".join(lines)


def _table(figures: Any) -> str:
    names = [name for name in figures if figures[name]]
    width = max(map(len, names), default=0)
    return "\n".join(f"  {name:{width}}  {figures[name]}" for name in sorted(names))


if __name__ == "__main__":
    sys.exit(main())
