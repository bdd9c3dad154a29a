"""What happened when, and what the sums of it are."""

from __future__ import annotations

import pytest

from semel.chaos.timeline import Bites, Entry, Sample, Timeline, conflict_remarks, percentile, rates, void_reasons

BITTEN = Bites(assignments=9, duplicates=40, fences=1)


def entry(
    number: int = 1, kind: str = "kill", *, bit: bool = True, healed: float = 2.0, back: float | None = 3.5
) -> Entry:
    return Entry(number, kind, kind, "w1", 1.0, healed, back, bit, seen=kind == "kill")


def test_a_recovery_counts_from_the_end_of_its_fault() -> None:
    assert entry().recovery_s == 1.5
    assert entry(back=None).recovery_s is None


def test_recoveries_are_of_faults_that_bit_and_were_recovered_from() -> None:
    timeline = Timeline([entry(1, back=4.0), entry(2, bit=False), entry(3, back=None), entry(4, back=3.0)])
    assert timeline.recoveries() == [1.0, 2.0]
    assert timeline.by_kind() == {"kill": {"faults": 4, "bit": 3}}


@pytest.mark.parametrize(("share", "value"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)])
def test_percentiles_are_values_that_were_there(share: float, value: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], share) == value
    assert percentile([], share) is None


def test_phases_follow_each_other_without_gaps() -> None:
    timeline = Timeline()
    timeline.turn("w1", 1.0, "starting")
    timeline.turn("w1", 2.0, "running")
    timeline.turn("w2", 2.5, "starting")
    timeline.turn("w1", 3.0, "running")
    timeline.turn("w1", 4.0, "dead")
    assert timeline.spans("w1", 9.0) == [(1.0, 2.0, "starting"), (2.0, 4.0, "running"), (4.0, 9.0, "dead")]
    assert timeline.workers == ["w1", "w2"]


def test_a_rate_is_of_the_seconds_before_it() -> None:
    samples = [Sample(at, 0, int(at * 100), 0) for at in (0.0, 1.0, 2.0, 3.0, 4.0)]
    assert rates(samples, 2.0) == [(1.0, 100.0), (2.0, 100.0), (3.0, 100.0), (4.0, 100.0)]
    assert rates([], 2.0) == []


def test_a_run_whose_faults_bit_is_not_void() -> None:
    assert void_reasons([entry()], BITTEN, starts=3, redelivered=50, deduped=True) == []


@pytest.mark.parametrize(
    ("entries", "bites", "redelivered", "says"),
    [
        ([], BITTEN, 50, "no fault took place"),
        ([entry(bit=False)], BITTEN, 50, "none of the 1 faults met anything"),
        ([entry(kind="net")], Bites(assignments=3, duplicates=5), 50, "no rebalance, abort, fence or restart"),
        ([entry()], Bites(assignments=9), 50, "none of 50 redelivered records"),
        ([entry()], BITTEN, 0, "no record was redelivered"),
    ],
)
def test_a_run_whose_faults_did_not_bite_is_void(
    entries: list[Entry], bites: Bites, redelivered: int, says: str
) -> None:
    assert any(
        says in reason for reason in void_reasons(entries, bites, starts=3, redelivered=redelivered, deduped=True)
    )


@pytest.mark.parametrize(
    ("published", "sent", "met", "says"),
    [
        (5_000, 50, 0, "none of 50 records sent with another payload under a known id was met as a conflict"),
        (5_000, 0, 0, "no conflict could be sent: nothing of these events can be altered"),
        (300, 0, 0, "no conflict was sent among 300 records, so this run says nothing of conflicts; run it longer"),
    ],
)
def test_a_run_without_conflicts_says_that_it_shows_nothing_of_them(
    published: int, sent: int, met: int, says: str
) -> None:
    [remark] = conflict_remarks(published, sent, met)
    assert remark.startswith(says)
    assert "this run says nothing of conflicts" in remark


def test_a_run_whose_conflicts_were_met_has_nothing_to_say_of_them() -> None:
    assert conflict_remarks(5_000, 50, 49) == ()


def test_a_run_whose_records_are_given_up_is_void_and_says_what_to_give() -> None:
    def reasons(given_up: int) -> list[str]:
        return void_reasons(
            [entry()], BITTEN, starts=3, redelivered=50, deduped=True, taken_in=1_000, given_up=given_up
        )

    assert reasons(500) == []
    [reason] = reasons(501)
    assert reason.startswith("501 of 1,000 records became dead letters")
    assert "chaos_events(rng)" in reason
