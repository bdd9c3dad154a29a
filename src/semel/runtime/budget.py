"""Budget: how many bytes a worker may hold, and who may hold how much of it.

Everything that grows with what comes in has a share: what was fetched and not handled, the open epoch, decoded rows, the
partitions of keys, outputs that wait without an event. Shares are bytes of content with the overhead of Python's objects
estimated; RocksDB's caches have bounds of their own, and what an agent keeps is the agent's.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20
# Of the memory there is: as much again goes to the interpreter, RocksDB, decoded values and batches being encoded.
PART_OF_MACHINE = 4
# Below, a worker could not hold a batch of Kafka's largest default size for each of a few partitions.
LEAST_BYTES = 64 * MIB
# More makes nothing faster: a second's worth of events is a few MiB a partition.
MOST_BYTES = 1024 * MIB
# Larger epochs do not commit more bytes a second, they only take longer, and commit_timeout_ms is for all of one.
EPOCH_MOST_BYTES = 16 * MIB
# Of one event: five seconds of a broker that takes 13 MB/s.
EVENT_MOST_BYTES = 64 * MIB

CGROUPS = Path("/sys/fs/cgroup")


class Shares(NamedTuple):
    """Of one budget, in bytes. `epoch`: of one epoch, which exists up to four times: open, sealed, as batches, on the wire.

    `event`: the most that one event may write, results and rows together.
    """

    budget: int
    source: int
    epoch: int
    event: int
    rows: int
    keys: int
    outbox: int


def shares(budget: int) -> Shares:
    return Shares(
        budget,
        source=budget // 2,
        epoch=min(EPOCH_MOST_BYTES, budget // 16),
        event=min(EVENT_MOST_BYTES, budget // 4),
        rows=budget // 8,
        keys=budget // 32,
        outbox=budget // 32,
    )


def default_budget() -> int:
    """A quarter of what this process may use, within limits."""
    return max(LEAST_BYTES, min(MOST_BYTES, available_bytes() // PART_OF_MACHINE))


def available_bytes(
    cgroups: Path = CGROUPS, meminfo: Path = Path("/proc/meminfo"), own: Path = Path("/proc/self/cgroup")
) -> int:
    """The smallest of the machine's memory, the limits of the process and of every control group that it is in."""
    known = [*_machine(meminfo), *_groups(cgroups, own)]
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            known.append(soft)
    return min(known, default=MOST_BYTES * PART_OF_MACHINE)


def _machine(meminfo: Path) -> Iterable[int]:
    for line in _lines(meminfo):
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            yield int(rest.split()[0]) * 1024


def _groups(root: Path, own: Path) -> Iterable[int]:
    """Limits of version 2 (memory.max) and 1 (memory.limit_in_bytes), from the process's group up."""
    places = {root, root / "memory"}
    for line in _lines(own):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        at = top / path.lstrip("/")
        places.update([at, *(p for p in at.parents if p.is_relative_to(top))])
    for place in places:
        for name in ("memory.max", "memory.limit_in_bytes"):
            for limit in _lines(place / name):
                if limit.strip().isdigit():
                    yield int(limit)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
