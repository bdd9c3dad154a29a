"""Faults, carried out: each does its harm to brokers, connections or worker processes, and ends it again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from semel.chaos.faults.brokers import broker_away, compact, grow, growing, rebalance
from semel.chaos.faults.limits import deny, throttle
from semel.chaos.faults.net import net
from semel.chaos.faults.processes import clock, failpoint, kill, odd_code, term, zombie
from semel.chaos.faults.state import corrupt_block, disk_full, disk_slow
from semel.chaos.plan import Fault, Kind
from semel.chaos.timeline import Entry
from semel.chaos.torture import Torture

__all__ = ["growing", "inflict"]

_HARM: dict[Kind, Callable[[Torture, Fault, Entry], Awaitable[None]]] = {
    "kill": kill,
    "failpoint": failpoint,
    "zombie": zombie,
    "term": term,
    "broker-kill": broker_away,
    "leader": broker_away,
    "net": net,
    "rebalance": rebalance,
    "disk-full": disk_full,
    "disk-slow": disk_slow,
    "clock": clock,
    "compact": compact,
    "corrupt-block": corrupt_block,
    "throttle": throttle,
    "deny": deny,
    "grow": grow,
    "odd-code": odd_code,
}


async def inflict(on: Torture, fault: Fault) -> None:
    """One fault, from its beginning to the recovery."""
    entry = Entry(fault.number, fault.kind, str(fault), "", on.now())
    on.active.add(fault.number)
    try:
        await _HARM[fault.kind](on, fault, entry)
    finally:
        on.active.discard(fault.number)
    entry.healed_s = on.now()
    await on.recovered(entry)
