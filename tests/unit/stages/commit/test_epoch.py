"""The machine of an epoch: each step it has, no other, and what giving it up means at each."""

from __future__ import annotations

import itertools

import pytest

from semel.port import TP
from semel.stages.commit.epoch import EPOCH_STEPS, EpochState, SealedEpoch, by_partition
from semel.stages.sink.destination import ProducerRecord


def sealed(state: EpochState = EpochState.SEALED) -> SealedEpoch:
    return SealedEpoch(7, {}, {}, state=state)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(EpochState, repeat=2)))
def test_an_epoch_takes_the_steps_of_its_machine_and_no_other(before: EpochState, after: EpochState) -> None:
    epoch = sealed(before)
    if (before, after) in EPOCH_STEPS:
        epoch.step(after)
        assert epoch.state is after
    else:
        with pytest.raises(AssertionError, match=f"epoch 7 went from {before.name} to {after.name}"):
            epoch.step(after)
        assert epoch.state is before


@pytest.mark.parametrize("state", EpochState)
def test_an_epoch_that_is_given_up_stays_what_kafka_makes_of_it_unless_it_was_to_land(state: EpochState) -> None:
    epoch = sealed(state)
    epoch.abandon()
    assert epoch.abandoned
    assert epoch.state is (EpochState.ABANDONED if state is EpochState.COMMITTED else state)
    epoch.abandon()
    assert epoch.abandoned


def test_outputs_are_grouped_by_partition_and_keep_their_order() -> None:
    one, other = TP("a", 0), TP("a", 1)
    outs = [
        ProducerRecord(tp, None, None, value, ())
        for tp, value in ((one, b"1"), (other, b"2"), (one, b"3"), (one, b"4"))
    ]
    assert by_partition(iter(outs)) == {one: [outs[0], outs[2], outs[3]], other: [outs[1]]}
    assert by_partition([]) == {}
