"""What happened when, and what the sums of it are."""

from __future__ import annotations

import pytest

from semel.chaos.timeline import Entry, Sample, Timeline, percentile, rates


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


def test_a_rate_is_of_the_seconds_before_it() -> None:
    samples = [Sample(at, 0, int(at * 100), 0) for at in (0.0, 1.0, 2.0, 3.0, 4.0)]
    assert rates(samples, 2.0) == [(1.0, 100.0), (2.0, 100.0), (3.0, 100.0), (4.0, 100.0)]
    assert rates([], 2.0) == []
