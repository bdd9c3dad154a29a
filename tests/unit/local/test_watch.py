import pytest

from semel.local.watch import Watch, WorkerState


def document(tasks, *, commits=1, **counts):
    """`tasks`: partition -> (state, next offset)."""
    return {
        "tasks": [
            {
                "partition": p,
                "state": state,
                "position": {"flights": at},
                "lag": 0,
                "restored": 0,
                "to_restore": 0,
            }
            for p, (state, at) in tasks.items()
        ],
        "counts": counts,
        "commits": {"commits": commits, "p50_ms": 5.0},
        "lag": 0,
        "events_per_s": 1.0,
        "waiting_for": "",
        "paused_by": "",
    }


@pytest.fixture
def watch():
    return Watch("flights", 2, {name: WorkerState(name, f"http://127.0.0.1/{name}") for name in ("a", "b")})


def test_counts_hold_once_every_partition_runs_on_one_worker(watch):
    watch.hear("a", document({0: ("running", 10)}, out=4))
    assert not watch.whole
    watch.hear("b", document({1: ("restoring", -1)}))
    assert not watch.whole
    assert watch.workers["b"].phase == "restoring"
    watch.hear("b", document({1: ("running", 5)}, out=1))

    assert watch.whole
    assert watch.counts()["out"] == 5
    assert watch.processed == 15


def test_a_partition_that_two_workers_claim_is_not_whole(watch):
    watch.hear("a", document({0: ("running", 10), 1: ("running", 5)}))
    watch.hear("b", document({1: ("running", 5)}))

    assert not watch.whole


def test_progress_and_what_is_shown_do_not_fall_while_a_worker_is_away(watch):
    watch.hear("a", document({0: ("running", 10)}, commits=7, duplicates=3))
    watch.hear("b", document({1: ("running", 5)}, commits=2, duplicates=1))
    assert watch.shown()["duplicates"] == 4

    watch.gone("a")

    assert (watch.processed, watch.commits) == (15, 9)
    assert watch.shown()["duplicates"] == 4
    assert watch.counts()["duplicates"] == 1
    assert watch.workers["a"].phase == "killed"
    assert watch.running() == {1}
    assert not watch.whole

    watch.hear("a", document({0: ("restoring", -1)}, commits=0))
    assert watch.processed == 15
    watch.hear("a", document({0: ("running", 12)}, commits=1, duplicates=5))
    assert (watch.processed, watch.commits) == (17, 10)
    assert watch.shown()["duplicates"] == 6


def test_trouble_names_who_does_not_answer_and_what_the_others_wait_for(watch):
    watch.hear("a", document({0: ("restoring", -1)}) | {"waiting_for": "waiting for the source topic flights"})
    watch.gone("b")

    said = "\n".join(watch.trouble())

    assert "a: waiting for the source topic flights" in said
    assert "a task 0: restoring" in said
    assert "b (killed) does not answer at http://127.0.0.1/b" in said


def test_what_is_parked_is_not_processed_though_the_position_is_past_it(watch):
    said = document({0: ("running", 10), 1: ("running", 5)})
    said["tasks"][0]["parked"] = 3
    watch.hear("a", said)
    assert watch.processed == 12
    # A worker that is restoring does not know yet.
    watch.hear("b", document({0: ("restoring", 0)}))
    assert watch.processed == 12
    watch.hear("a", document({0: ("running", 10), 1: ("running", 5)}))
    assert watch.processed == 15
