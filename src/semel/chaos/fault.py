"""What a fault is: one class says when it can happen, how one is drawn, what it does, how it is healed, and how it is seen.

A new kind is a class in `faults/` and its line in `FAULTS`; nothing else knows the kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from semel.runtime.failpoints import NAMES

if TYPE_CHECKING:
    from semel.chaos.fleet import Fleet
    from semel.chaos.timeline import Entry
    from semel.chaos.workers import ChaosWorker

# Fields of a fault, by name.
Drawn = dict[str, Any]

# An orderly stop with a transaction open is too rare to be waited for; the broker suite makes it by hand.
STEPS = tuple(name for name in NAMES if name != "abort.before_end")

# What gets more partitions; the source only where nothing that is kept belongs to a key.
Grown = Literal["the results", "the dead letters", "the source"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What there is to be hit, and what the machine allows.

    `session_s`: how long a silent worker keeps its place; `grows`: what may get more partitions; `mounts`: a small file
    system for a worker's state can be had; `stalls`: one that can be frozen, too.
    """

    workers: int
    brokers: int
    session_s: float
    grows: tuple[Grown, ...] = ("the dead letters",)
    mounts: bool = False
    stalls: bool = False


@dataclass(frozen=True, slots=True)
class Chance:
    """All chance in a plan. `deck`: the steps of the protocol that are yet to come before one comes again."""

    rng: Random
    shape: Shape
    deck: list[str] = field(default_factory=list[str])

    def past_session_s(self, most_s: float) -> float:
        """Longer than a silent worker keeps its place."""
        return self.shape.session_s + self.rng.uniform(0.5, most_s)

    def step(self) -> str:
        if not self.deck:
            self.deck.extend(STEPS)
            self.rng.shuffle(self.deck)
        return self.deck.pop()


@dataclass(frozen=True)
class Fault:
    """One fault. `gap_s`: how long after the one before; `overlap`: without waiting until that one is recovered from.

    `worker` and `broker` say whom, counted from 0 (-1: all); `hold_s` how long it lasts; `step` where (a failpoint, or the
    exchange that is lost) and `nth` at the how many-th time. `variant` is the mode of its kind, `fresh_disk` whether the
    worker finds its state directory empty when it comes back.

    Of a kind: `weight`, how often it comes, the ones that cost least recovery most; `seen`: it hits a process, so that its
    having met one at work is seen without the engine's counts; `says`: what it does, of its own fields; `variants`: its
    modes, those that come more often several times; `lasts_s`: the bounds of `hold_s`; `times`: what `nth` may be;
    `hits_all`: the share of those that hit all workers.
    """

    kind: ClassVar[str]
    weight: ClassVar[float] = 1.0
    seen: ClassVar[bool] = False
    says: ClassVar[str] = "{0.variant}"
    variants: ClassVar[Sequence[str]] = ("",)
    lasts_s: ClassVar[tuple[float, float]] = (0.0, 0.0)
    times: ClassVar[Sequence[int]] = (1,)
    hits_all: ClassVar[float] = 0.0

    number: int
    gap_s: float
    overlap: bool
    worker: int = 0
    broker: int = 0
    hold_s: float = 0.0
    variant: str = ""
    step: str = ""
    nth: int = 1
    fresh_disk: bool = False
    offset_s: int = 0
    delay_ms: int = 0

    @classmethod
    def impossible(cls, shape: Shape) -> str:
        """Why it cannot happen here; empty where it can."""
        return ""

    @classmethod
    def draw(cls, chance: Chance, number: int, gap_s: float, *, overlap: bool) -> Fault:
        rng = chance.rng
        variant = rng.choice(cls.variants)
        common: Drawn = {
            "worker": -1 if rng.random() < cls.hits_all else rng.randrange(chance.shape.workers),
            "broker": rng.randrange(chance.shape.brokers),
            "variant": variant,
            "hold_s": rng.uniform(*cls.lasts_s),
            "nth": rng.choice(cls.times),
        }
        return cls(number, gap_s, overlap, **(common | cls.drawn(chance, variant)))

    @classmethod
    def drawn(cls, chance: Chance, variant: str) -> Drawn:
        """The fields that are this kind's own."""
        return {}

    def __str__(self) -> str:
        held = f" for {self.hold_s:.1f} s" if self.hold_s >= 0.05 else ""
        return f"{self.kind}: {self.says.format(self).rstrip()}{held}{', disk lost' if self.fresh_disk else ''}"

    async def apply(self, on: Fleet, entry: Entry) -> None:
        """Do it and end it again. `entry` gets whom it hit, whether that was at work (`bit`) and what there is to note."""
        raise NotImplementedError

    @classmethod
    def heal(cls, worker: ChaosWorker) -> None:
        """Take from a worker what one that was interrupted left; nothing where there is none."""
