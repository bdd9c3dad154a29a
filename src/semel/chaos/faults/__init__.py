"""Faults, carried out: each does its harm to brokers, connections or worker processes, and ends it again.

`FAULTS` is the list of them: a class that stands in it is drawn, carried out, healed, shown and counted.
"""

from __future__ import annotations

from semel.chaos.fault import Fault
from semel.chaos.faults.brokers import BrokerKill, Compact, Grow, Leader, Rebalance
from semel.chaos.faults.code import Down, OddCode, Replay
from semel.chaos.faults.limits import Deny, Throttle
from semel.chaos.faults.net import Net
from semel.chaos.faults.processes import Clock, Failpoint, Kill, Term
from semel.chaos.faults.state import CorruptBlock, DiskFull, DiskSlow
from semel.chaos.faults.zombie import Zombie
from semel.chaos.fleet import Fleet
from semel.chaos.timeline import Entry

__all__ = ["FAULTS", "heal", "inflict"]

FAULTS: dict[str, type[Fault]] = {
    fault.kind: fault
    for fault in (
        Kill, Failpoint, Zombie, Term, BrokerKill, Net, Rebalance, Leader, DiskFull, DiskSlow, Clock, Compact, CorruptBlock,
        Throttle, Deny, Grow, OddCode, Down, Replay,
    )
}  # fmt: skip


async def inflict(on: Fleet, fault: Fault) -> None:
    """One fault, from its beginning to the recovery."""
    entry = Entry(fault.number, fault.kind, str(fault), "", on.now(), seen=fault.seen)
    on.active.add(fault.number)
    try:
        await fault.apply(on, entry)
    finally:
        on.active.discard(fault.number)
    entry.healed_s = on.now()
    await on.recovered(entry)


def heal(on: Fleet) -> None:
    """Whatever faults that were interrupted left behind."""
    for worker in on.everyone:
        for fault in FAULTS.values():
            fault.heal(worker)
