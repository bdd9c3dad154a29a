"""What will go wrong, as data: a schedule of faults that is a function of its seed. No I/O and no clock here.

A plan has no end; the run takes as many faults of it as were asked for, or as fit into its time. The kinds come round
shuffled at first, so that a short run has met each of them, and by weight after that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, get_args

from semel.errors import ConfigError
from semel.runtime.failpoints import NAMES

Kind = Literal[
    "kill",
    "failpoint",
    "zombie",
    "term",
    "broker-kill",
    "net",
    "rebalance",
    "leader",
    "disk-full",
    "disk-slow",
    "clock",
    "compact",
    "corrupt-block",
    "throttle",
    "deny",
    "grow",
    "odd-code",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

# How often each comes, the ones that cost least recovery most.
WEIGHTS: dict[Kind, float] = {
    "kill": 4, "failpoint": 6, "zombie": 1.5, "term": 2, "broker-kill": 1,
    "net": 8, "rebalance": 1, "leader": 1, "disk-full": 0.4, "disk-slow": 1, "clock": 1,
    "compact": 1, "corrupt-block": 1, "throttle": 1,
    "deny": 1, "grow": 0.5, "odd-code": 1.5,
}  # fmt: skip

# While workers run, compaction takes what lies behind them; while they do not, also what they have yet to read.
Compacted = Literal["while they run", "while they are frozen", "while they are down"]
COMPACTED: tuple[Compacted, ...] = get_args(Compacted)

# What a quota is of.
Throttled = Literal["what is written", "what is read", "time that requests take"]
THROTTLED: tuple[Throttled, ...] = get_args(Throttled)

# Which right is taken away, and on what.
Denied = Literal[
    "Read on the source", "Describe on the source", "Write on the results", "Write on the state", "Read on the state",
    "Read on the group", "Describe on the group", "Write on the transactional id",
]  # fmt: skip
DENIED: tuple[Denied, ...] = get_args(Denied)

# What gets more partitions; the source only where nothing that is kept belongs to a key.
Grown = Literal["the results", "the dead letters", "the source"]

# An orderly stop with a transaction open is too rare to be waited for; the broker suite makes it by hand.
STEPS = tuple(name for name in NAMES if name != "abort.before_end")

LONG_S = 2.0

Mode = Literal[
    "cut", "delay", "silent requests", "silent answers", "half-close", "refuse", "lose request", "lose answer"
]
MODES: tuple[Mode, ...] = get_args(Mode)

# The exchanges of a commit, EndTxn most, which decides; and the one by which a new writer is taken after such a loss.
EXCHANGES = (
    "EndTxn",
    "EndTxn",
    "Produce",
    "TxnOffsetCommit",
    "AddPartitionsToTxn",
    "AddOffsetsToTxn",
    "InitProducerId",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What there is to be hit. `session_s`: how long a silent worker keeps its place; `grows`: what may get more partitions."""

    workers: int
    brokers: int
    session_s: float
    grows: tuple[Grown, ...] = ("the dead letters",)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `gap_s`: how long after the one before; `overlap`: without waiting until that one is recovered from.

    `worker` and `broker` say whom, counted from 0 (-1: all); `hold_s` how long it lasts; `step` where (a failpoint, or the
    exchange that is lost) and `nth` at the how many-th time. `variant` is the mode of its kind, `fresh_disk` whether the
    worker finds its state directory empty when it comes back.
    """

    number: int
    kind: Kind
    gap_s: float
    overlap: bool
    worker: int = 0
    broker: int = 0
    hold_s: float = 0.0
    variant: str = ""
    step: str = ""
    nth: int = 1
    fresh_disk: bool = False
    offset_ms: int = 0

    def __str__(self) -> str:
        said = {
            "failpoint": f"kill -9 at {self.step}, time {self.nth}",
            "net": f"{self.variant} {self.step}".rstrip(),
            "clock": f"wall clock {self.variant} {self.offset_ms / 1000:+,.0f} s",
            "rebalance": f"{self.nth} more workers",
            "odd-code": f"one event in {self.nth} ends oddly",
            "grow": f"{self.nth} more partitions of {self.variant}",
            "deny": f"no {self.variant}",
            "throttle": f"a quota of {self.variant}",
        }.get(self.kind, self.variant)
        held = f" for {self.hold_s:.1f} s" if self.hold_s >= 0.05 else ""
        return f"{self.kind}: {said or 'SIGKILL'}{held}{', disk lost' if self.fresh_disk else ''}"


def schedule(seed: int, kinds: Sequence[Kind], shape: Shape) -> Iterator[Fault]:
    """Faults of these kinds without end; the same arguments give the same faults."""
    rng = Random(f"{seed} faults")
    order = list(kinds)
    steps: list[str] = []
    number, before_s = 0, 0.0
    while True:
        rng.shuffle(order)
        # Each once at first, then by weight.
        chosen = order if number == 0 else rng.choices(kinds, [WEIGHTS[k] for k in kinds], k=len(kinds))
        for kind in chosen:
            if not steps:
                steps = list(STEPS)
                rng.shuffle(steps)
            number += 1
            fault = _fault(rng, number, kind, shape, steps)
            # While one lasts there is time for others.
            yield replace(fault, overlap=fault.overlap or before_s > LONG_S)
            before_s = fault.hold_s


def _fault(rng: Random, number: int, kind: Kind, shape: Shape, steps: list[str]) -> Fault:
    gap_s = rng.choice((0.0, rng.uniform(0, 0.3), rng.uniform(0.3, 1.0)))
    overlap = rng.random() < 0.6
    worker, broker = rng.randrange(shape.workers), rng.randrange(shape.brokers)
    hold_s, variant, step, nth, fresh_disk, offset_ms = 0.0, "", "", 1, False, 0
    match kind:
        case "kill":
            variant = rng.choices(("SIGKILL", "SIGKILL to all"), (6, 1))[0]
            # Mostly back at once, under the same name; now and then so late that the others take over.
            hold_s = rng.uniform(0, 0.5) if rng.random() < 0.75 else shape.session_s + rng.uniform(0.5, 2)
            fresh_disk = rng.random() < 0.15
        case "failpoint":
            step = steps.pop()
            within_a_commit = step.partition(".")[0] in ("barrier", "commit")
            nth = rng.randint(1, 8) if within_a_commit else 1
            fresh_disk = step == "restore.chunk" or rng.random() < 0.1
        case "zombie":
            variant = rng.choices(("SIGSTOP past its session", "SIGSTOP", "replaced while frozen"), (5, 2, 3))[0]
            hold_s = rng.uniform(0.3, 3) if variant == "SIGSTOP" else shape.session_s + rng.uniform(0.5, 3)
        case "term":
            variant = rng.choice(("SIGTERM", "SIGTERM within a commit"))
            if variant == "SIGTERM within a commit":
                step = rng.choice([name for name in STEPS if name.startswith("commit.")])
                nth = rng.randint(1, 5)
        case "broker-kill":
            variant = "SIGKILL to a broker"
            hold_s = rng.uniform(0, 2)
        case "net":
            worker = -1 if rng.random() < 0.2 else worker
            variant = rng.choices(MODES, (2, 2, 1, 1, 1, 1, 4, 6))[0]
            if variant in ("lose request", "lose answer"):
                step, nth = rng.choice(EXCHANGES), rng.randint(1, 4)
            elif variant == "delay":
                hold_s, offset_ms = rng.uniform(1, 4), rng.choice((20, 100, 400))
            elif variant not in ("cut", "half-close"):
                long = rng.random() < 0.25
                hold_s = shape.session_s + rng.uniform(0.5, 2) if long else rng.uniform(0.5, 4)
        case "rebalance":
            nth, hold_s = rng.randint(1, 3), rng.uniform(1, 4)
        case "leader":
            variant = "leaders and coordinators move"
            hold_s = rng.uniform(0, 2)
        case "disk-full":
            variant, hold_s = "no space left for the state directory", rng.uniform(2, 5)
        case "disk-slow":
            variant = rng.choice(("the state directory stalls", "the state directory stalls, also at a start"))
            hold_s = rng.uniform(2, 5)
        case "clock":
            variant = rng.choice(("jumps by", "jumps by", "found off at a start by"))
            offset_ms = rng.choice((-1, 1)) * rng.choice((2_000, 60_000, 600_000))
            hold_s = rng.uniform(1, 4)
        case "compact":
            variant = rng.choice(COMPACTED)
            hold_s = 0.0 if variant == "while they run" else rng.uniform(0.5, 3)
        case "corrupt-block":
            variant = rng.choice(("bytes of the store flip", "bytes of the store flip while it is down"))
            hold_s = rng.uniform(0, 1)
        case "throttle":
            worker = -1 if rng.random() < 0.3 else worker
            variant, hold_s = rng.choice(THROTTLED), rng.uniform(3, 7)
        case "odd-code":
            worker = -1 if rng.random() < 0.3 else worker
            nth, hold_s = rng.choice((20, 50, 200)), rng.uniform(2, 6)
        case "grow":
            variant, nth, hold_s = rng.choice(shape.grows), rng.randint(1, 2), rng.uniform(1, 3)
        case "deny":
            variant, hold_s = rng.choice(DENIED), rng.uniform(1, 6)
    return Fault(number, kind, gap_s, overlap, worker, broker, hold_s, variant, step, nth, fresh_disk, offset_ms)


@dataclass(frozen=True, slots=True)
class Wanted:
    """`--faults`: which kinds, and how many where a number was given instead of a time."""

    kinds: tuple[Kind, ...]
    count: int | None


def wanted(text: str | None) -> Wanted:
    """Reads `kill,zombie,net`, `1000`, or both. ConfigError for what is no kind of fault."""
    kinds: list[Kind] = []
    count: int | None = None
    for part in (text or "").replace(" ", "").split(","):
        if not part:
            continue
        if part.isdecimal() and int(part) > 0 and count is None:
            count = int(part)
            continue
        if part not in KINDS:
            raise ConfigError(f"--faults: {part!r} is no kind of fault; there are {', '.join(KINDS)}, or their number")
        if part not in kinds:
            kinds.append(part)
    # In one order: a plan is a function of its kinds, too.
    return Wanted(tuple(kind for kind in KINDS if not kinds or kind in kinds), count)


def possible(
    kinds: Sequence[Kind], *, workers: int, brokers: int, mounts: bool, stalls: bool
) -> tuple[list[Kind], dict[Kind, str]]:
    """What of these kinds can happen here, and why the others cannot."""
    left_out: dict[Kind, str] = {}
    for kind in kinds:
        if kind == "leader" and brokers < 3:
            left_out[kind] = "leaders move among several brokers: --brokers 3"
        elif kind == "disk-full" and not mounts:
            left_out[kind] = "a small file system of its own can be mounted by root on Linux only"
        elif kind == "disk-slow" and not stalls:
            left_out[kind] = (
                "a disk is slowed by freezing a file system of its own, which root on Linux may, with loop devices and "
                "mkfs.ext4"
            )
    return [kind for kind in kinds if kind not in left_out], left_out
