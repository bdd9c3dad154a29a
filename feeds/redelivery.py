"""Redeliveries, injected by a seed: what a broker, a retrying producer or a replayed backup does to a topic.

Every redelivery is a record that was there before: same id, same key, same timestamp, so that it lands in
the partition of the first one, behind it. Five kinds:

* immediate: right behind the first one: a producer that missed its acknowledgement;
* late: hours behind, in event time: a backup that is played in;
* burst: a stretch of the last records once more, in order: a producer that restarts before its last checkpoint;
* disordered: a short stretch of the last records once more, shuffled: several senders that retry at once;
* conflict: minutes to hours behind, the same id with another payload. The first one is the truth,
  the conflict belongs in quarantine.

How late the latest can be is `LATEST_MS`: a dedup window longer than that sees every one of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from random import Random
from typing import Literal, NamedTuple

from feeds.record import Record

Kind = Literal["original", "immediate", "late", "burst", "disordered", "conflict"]

# What part of all redelivered records each kind makes up.
MIX: dict[Kind, float] = {"immediate": 0.30, "late": 0.25, "burst": 0.20, "disordered": 0.20, "conflict": 0.05}

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
LATE_MS = (HOUR_MS, 36 * HOUR_MS)
CONFLICT_MS = (MINUTE_MS, 12 * HOUR_MS)
LATEST_MS = LATE_MS[1]

# Lengths of the stretches in records; the longest is also how far back they reach.
LENGTHS: dict[Kind, tuple[int, int]] = {"burst": (20, 200), "disordered": (5, 50)}


class Delivery(NamedTuple):
    """A record on its way to the topic, and why it is there."""

    kind: Kind
    record: Record


def redeliver(
    records: Iterable[Record],
    seed: int,
    *,
    share: float = 0.2,
    altered: Callable[[bytes, Random], bytes],
) -> Iterator[Delivery]:
    """The records with about `share` redelivered records for each one, in the order they go to the topic.

    The same records and seed give the same deliveries. Those of kind "original" are `records`, untouched
    and in their order. `altered` gives a value of the same id and another content. Works record by record and
    holds only the last 200 and those that wait for their hour: at most the `LATEST_MS` behind the newest.
    ValueError for a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: a number from 0 to 1 is needed")
    random = Random(seed)
    steps = _thresholds(share)
    recent: deque[Record] = deque(maxlen=LENGTHS["burst"][1])
    waiting: list[tuple[int, int, Delivery]] = []

    for number, record in enumerate(records):
        while waiting and waiting[0][0] <= record.timestamp_ms:
            yield heappop(waiting)[2]
        yield Delivery("original", record)
        recent.append(record)

        drawn = random.random()
        kind = next((kind for kind, below in steps if drawn < below), None)
        if kind == "immediate":
            yield Delivery(kind, record)
        elif kind == "late":
            due_ms = record.timestamp_ms + random.randint(*LATE_MS)
            heappush(waiting, (due_ms, number, Delivery(kind, record)))
        elif kind == "conflict":
            due_ms = record.timestamp_ms + random.randint(*CONFLICT_MS)
            heappush(waiting, (due_ms, number, Delivery(kind, record._replace(value=altered(record.value, random)))))
        elif kind in ("burst", "disordered"):
            stretch = list(recent)[-random.randint(*LENGTHS[kind]) :]
            if kind == "disordered":
                random.shuffle(stretch)
            for again in stretch:
                yield Delivery(kind, again)

    while waiting:
        yield heappop(waiting)[2]


def _thresholds(share: float) -> list[tuple[Kind, float]]:
    """For one draw per record: below which number it starts which kind, a stretch counted by its mean length."""
    steps: list[tuple[Kind, float]] = []
    below = 0.0
    for kind, part in MIX.items():
        shortest, longest = LENGTHS.get(kind, (1, 1))
        below += share * part / ((shortest + longest) / 2)
        steps.append((kind, below))
    return steps
