"""How the pipeline is doing, by what its workers say."""

from __future__ import annotations

from typing import Any

import pytest

from semel.chaos.observed import Observed


def document(tasks: dict[int, tuple[str, int]], **stats: int) -> dict[str, Any]:
    return {
        "tasks": [
            {"partition": p, "state": s, "position": {"t": at}, "lag": 0, "restored": 0, "to_restore": 0}
            for p, (s, at) in tasks.items()
        ],
        "counts": {"duplicates": stats.pop("duplicates", 0)},
        "throttles": stats.pop("throttles", 0),
        "throttled": {"Fetch": stats.pop("throttled")} if "throttled" in stats else {},
        "commits": {
            "commits": 1,
            "aborts": 0,
            "unknown": 0,
            "fences": 0,
            "recoveries": 0,
            "rebalances": 1,
            "last_s": None,
            **stats,
        },
    }


@pytest.fixture
def observed() -> Observed:
    made = Observed("t", 2)
    made.started("w1", "http://w1", 10)
    made.started("w2", "http://w2", 20)
    made.heard("w1", document({0: ("running", 5)}), 1.0)
    made.heard("w2", document({1: ("running", 7)}), 2.0)
    return made


def test_it_is_whole_where_every_partition_runs_once(observed: Observed) -> None:
    assert observed.whole_since(0.5)
    assert observed.processed == 12


def test_what_was_said_before_a_moment_does_not_count_after_it(observed: Observed) -> None:
    assert not observed.whole_since(1.5)
    observed.heard("w1", document({0: ("running", 5)}), 3.0)
    assert observed.whole_since(1.5)


@pytest.mark.parametrize("tasks", [{}, {0: ("restoring", 5)}, {0: ("running", 5), 1: ("running", 7)}])
def test_it_is_not_whole_else(observed: Observed, tasks: dict[int, tuple[str, int]]) -> None:
    observed.heard("w1", document(tasks), 3.0)
    assert not observed.whole_since(0.5)


def test_a_worker_that_is_gone_holds_nothing_and_positions_stay(observed: Observed) -> None:
    observed.gone("w1")
    assert not observed.holds("w1")
    assert not observed.whole_since(0.5)
    assert observed.processed == 12


def test_what_is_still_to_be_done_is_counted_by_partition(observed: Observed) -> None:
    assert observed.behind({0: 9, 1: 7}) == 4
    assert observed.behind({0: 5, 1: 3}) == 0


def test_what_is_parked_is_still_to_be_done(observed: Observed) -> None:
    said = document({0: ("running", 9)})
    said["tasks"][0]["parked"] = 2
    observed.heard("w1", said, 3.0)
    assert observed.behind({0: 9, 1: 7}) == 2


def test_what_engines_counted_is_kept_over_their_deaths(observed: Observed) -> None:
    observed.heard("w1", document({}, fences=1, duplicates=4), 3.0)
    observed.gone("w1")
    observed.started("w1", "http://w1", 30)
    observed.heard("w1", document({}, fences=2, unknown=1, duplicates=9), 4.0)
    counted = observed.engine()
    assert (counted["fences"], counted["unknown"], counted["duplicates"], counted["assignments"]) == (3, 1, 9, 3)


def test_a_worker_that_will_not_come_back_is_forgotten(observed: Observed) -> None:
    observed.forget("w2")
    assert observed.trouble() == ["w1 task 0: running, at {'t': 5}, lag 0, restored 0 of 0"]


def test_what_brokers_asked_to_wait_is_summed_up_over_the_lives_of_the_workers_meant(observed: Observed) -> None:
    observed.heard("w1", document({0: ("running", 5)}, throttles=2), 3.0)
    observed.started("w1", "http://w1", 11)
    observed.heard("w1", document({0: ("running", 5)}, throttles=3), 4.0)
    observed.heard("w2", document({1: ("running", 7)}, throttles=10), 4.0)
    assert (observed.throttles(["w1"]), observed.throttles(["w1", "w2"]), observed.throttles(["w3"])) == (5, 15, 0)


def test_what_brokers_asked_to_wait_lasts_also_while_the_worker_is_frozen_and_ends_with_its_process(
    observed: Observed,
) -> None:
    observed.heard("w1", document({0: ("running", 5)}, throttled=90), 3.0)
    assert (observed.throttled_s(["w1", "w2"], 90.0), observed.throttled_s(["w1", "w2"], 93.0)) == (3.0, 0.0)
    assert observed.throttled_s(["w2"], 90.0) == 0.0
    observed.gone("w1")
    assert observed.throttled_s(["w1"], 90.0) == 3.0
    observed.started("w1", "http://w1", 11)
    assert observed.throttled_s(["w1"], 90.0) == 0.0
