"""A sample of `./dev simulate`: some of each kind, in less than a minute."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from semel.group.membership import MEMBER_STEPS
from semel.runtime.failpoints import NAMES
from semel.stages.commit.epoch import EPOCH_STEPS
from tests.simulation.shrink import shrunk
from tests.simulation.systematic import WORKLOADS, Case, answers, first_crashes, parsed, second_crashes
from tests.simulation.work import Batch, run_seed, try_case

SEEDS = range(30)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def lawful(case: Case) -> Batch:
    ran = try_case(case)
    assert not ran.outcome.violations, "\n".join([str(case), *map(str, ran.outcome.violations)])
    batch = Batch()
    batch.add(ran.outcome, "cases")
    return batch


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_crash_at_any_failpoint_and_again_in_the_recovery_breaks_no_law(workload: str) -> None:
    undisturbed = try_case(Case(workload))
    assert not undisturbed.outcome.violations
    firsts = [case for case in first_crashes(workload, undisturbed) if case.kills[0].nth == 1 and case.kills[0].point]
    assert len(firsts) >= 18
    total = Batch()
    for number, first in enumerate(firsts):
        ran = try_case(first)
        assert not ran.outcome.violations, "\n".join([str(first), *map(str, ran.outcome.violations)])
        total.add(ran.outcome, "first")
        seconds = list(second_crashes(first, ran))
        if seconds:
            total.merge(lawful(seconds[number % len(seconds)]))
    assert total.figures["crash points"] > len(firsts)
    assert total.figures["missed"] == 0


def test_any_code_answered_to_any_rpc_breaks_no_law() -> None:
    sample = list(answers())[::77]
    total = Batch()
    for case in sample:
        total.merge(lawful(case))
    assert total.figures["fault: error by enumeration"] == len(sample)


def test_whatever_goes_wrong_each_event_takes_effect_once() -> None:
    total, kinds = Batch(), Counter[str]()
    for seed in SEEDS:
        outcome = run_seed(seed, real_share=0.05)
        assert not outcome.violations, f"seed {seed}\n" + "\n".join(map(str, outcome.violations))
        total.add(outcome, "real" if outcome.real else "model")
        kinds.update({name: n for name, n in outcome.figures.items() if name.startswith("fault: ")})
    assert total.runs["real"] and total.runs["model"]
    # A sample in which nothing bit would prove nothing.
    for figure in (
        "crash points", "fences", "aborts", "rebalances", "redeliveries", "keys held", "handlers timed out",
    ):  # fmt: skip
        assert total.figures[figure], f"no {figure}"
    assert len(kinds) > 15
    crashed = {key[1] for key in total.seen if key[0] == "crash"}
    assert len(crashed & set(NAMES)) > len(NAMES) // 2
    rare = {("epoch", "SEALED", "ABANDONED"), ("epoch", "COMMITTED", "ABANDONED")}
    assert {("epoch", a.name, b.name) for a, b in EPOCH_STEPS} - set(total.seen) <= rare
    assert {("member", a.name, b.name) for a, b in MEMBER_STEPS} <= set(total.seen)


def test_a_case_is_replayed_from_what_a_finding_says() -> None:
    for case in (*list(answers())[::500], parsed("restore/w1#2@sent:7/w1#3@restore.chunk:1")):
        assert parsed(str(case)) == case


def test_shrinking_leaves_what_is_needed() -> None:
    names = [f"step {i}" for i in range(100)]
    asked = 0

    def fails(kept: frozenset[str]) -> bool:
        nonlocal asked
        asked += 1
        return {"step 17", "step 83"} <= kept

    assert shrunk(names, fails) == ["step 17", "step 83"]
    assert asked < 80
    assert shrunk(names, lambda kept: True) == []
