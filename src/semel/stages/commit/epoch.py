"""Epoch: what is cut of the open one, and the way it goes from there (rules 7, 8 and 11).

What is open is an `OpenEpoch` (`stages/sink/`). A `SealedEpoch` is all that one transaction writes, and what the tasks are at
once it has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from semel.port import TP
from semel.stages.sink.destination import ProducerRecord
from semel.state.positions import Position
from semel.state.task import Task


class EpochState(Enum):
    SEALED = "sealed"
    COMMITTING = "committing"
    COMMITTED = "committed"
    LANDED = "landed"
    ABANDONED = "abandoned"
    UNKNOWN = "unknown"


# The epoch as a machine: data, so that the simulation can hold every step against it.
EPOCH_STEPS: frozenset[tuple[EpochState, EpochState]] = frozenset(
    {
        (EpochState.SEALED, EpochState.COMMITTING),
        (EpochState.SEALED, EpochState.ABANDONED),
        (EpochState.COMMITTING, EpochState.COMMITTED),
        (EpochState.COMMITTING, EpochState.ABANDONED),
        (EpochState.COMMITTING, EpochState.UNKNOWN),
        (EpochState.COMMITTED, EpochState.LANDED),
        (EpochState.COMMITTED, EpochState.ABANDONED),
    }
)


@dataclass(slots=True)
class SealedEpoch:
    """`records` by partition; `offsets` for every task that it holds a record of, moved or not. `positions`: what each task is
    at once it is committed. `base_offsets`: where its records begin in their logs, known once it is.

    `ending`: the end of its transaction was asked for: from then on it may be committed, whatever is heard of it.
    `size`: about how many bytes it is. `at_ms`: wall clock.
    """

    number: int
    records: dict[TP, list[ProducerRecord]]
    offsets: dict[TP, int]
    at_ms: int = 0
    positions: dict[Task, Position] = field(default_factory=dict[Task, Position])
    size: int = 0
    state: EpochState = EpochState.SEALED
    ending: bool = False
    # Its tasks are given up. It may be committed all the same; then they are restored from there.
    abandoned: bool = False
    base_offsets: dict[TP, int] = field(default_factory=dict[TP, int])

    def step(self, to: EpochState) -> None:
        if (self.state, to) not in EPOCH_STEPS:
            raise AssertionError(f"epoch {self.number} went from {self.state.name} to {to.name}")
        self.state = to

    def abandon(self) -> None:
        """It will not land. What Kafka makes of it is another question, which its transaction answers."""
        self.abandoned = True
        if self.state is EpochState.COMMITTED:
            self.step(EpochState.ABANDONED)


def by_partition(outs: Iterable[ProducerRecord]) -> dict[TP, list[ProducerRecord]]:
    grouped: dict[TP, list[ProducerRecord]] = defaultdict(list)
    for out in outs:
        grouped[out.tp].append(out)
    return dict(grouped)
