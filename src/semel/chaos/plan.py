"""What will go wrong, as data: a schedule of faults that is a function of its seed. No I/O and no clock here.

A plan has no end; the run takes as many faults of it as were asked for, or as fit into its time. The kinds come round
shuffled at first, so that a short run has met each of them, and by weight after that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from semel.chaos.fault import Chance, Fault, Shape
from semel.chaos.faults import FAULTS
from semel.errors import ConfigError

KINDS = tuple(FAULTS)
LONG_S = 2.0


def schedule(seed: int, kinds: Sequence[str], shape: Shape) -> Iterator[Fault]:
    """Faults of these kinds without end; the same arguments give the same faults."""
    rng = Random(f"{seed} faults")
    chance = Chance(rng, shape)
    chosen = rng.sample(kinds, len(kinds))
    number, before_s = 0, 0.0
    while True:
        for kind in chosen:
            number += 1
            gap_s = rng.choice((0.0, rng.uniform(0, 0.3), rng.uniform(0.3, 1.0)))
            # While one lasts there is time for others.
            overlap = rng.random() < 0.6 or before_s > LONG_S
            fault = FAULTS[kind].draw(chance, number, gap_s, overlap=overlap)
            yield fault
            before_s = fault.hold_s
        chosen = rng.choices(kinds, [FAULTS[kind].weight for kind in kinds], k=len(kinds))


def wanted(text: str | None) -> tuple[tuple[str, ...], int | None]:
    """Kinds, and how many, where `--faults` has a number: of `kill,zombie,net`, `1000`, or both. ConfigError."""
    kinds: set[str] = set()
    count: int | None = None
    for part in (text or "").replace(" ", "").split(","):
        if part.isdecimal() and int(part) > 0 and count is None:
            count = int(part)
        elif part in KINDS:
            kinds.add(part)
        elif part:
            raise ConfigError(f"--faults: {part!r} is no kind of fault; there are {', '.join(KINDS)}, or their number")
    # In one order: a plan is a function of its kinds, too.
    return tuple(kind for kind in KINDS if not kinds or kind in kinds), count


def possible(kinds: Sequence[str], shape: Shape) -> tuple[tuple[str, ...], dict[str, str]]:
    """What of these kinds can happen here, and why the others cannot."""
    left_out = {kind: why for kind in kinds if (why := FAULTS[kind].impossible(shape))}
    return tuple(kind for kind in kinds if kind not in left_out), left_out
