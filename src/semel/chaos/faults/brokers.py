"""What happens to the brokers, and to what they keep: the group and the input."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from semel.chaos.plan import Fault
from semel.chaos.timeline import Entry
from semel.chaos.torture import Torture
from semel.chaos.workers import WorkerProcess
from semel.port import RpcError, RpcLost
from semel.proof.logs import Unreadable

GUEST_S = 20.0


async def rebalance(on: Torture, fault: Fault, entry: Entry) -> None:
    async with on.at_group:
        on.begins(entry, "the group")
        guests: list[WorkerProcess] = []
        try:
            for number in range(1, fault.nth + 1):
                guests.append(on.invite(number))
                await asyncio.sleep(fault.hold_s / 4)
            await on.holding(guests[0], GUEST_S)
            await asyncio.sleep(fault.hold_s)
            entry.bit = any(on.sight.holds(guest.name) for guest in guests)
        finally:
            await on.dismiss(guests, kill=fault.number % 2 == 0)


async def broker_away(on: Torture, fault: Fault, entry: Entry) -> None:
    node = on.cluster.nodes[fault.broker]
    async with on.at_brokers:
        on.begins(entry, f"broker {node}")
        entry.bit = on.sight.processed > 0
        if fault.kind == "leader":
            await on.cluster.leave(node)
        else:
            await on.cluster.kill(node)
        await asyncio.sleep(fault.hold_s)
        await on.cluster.back(node)


async def compact(on: Torture, fault: Fault, entry: Entry) -> None:
    """Compaction takes events behind the workers; where they are frozen or down, also such as nobody has read."""
    async with on.at_input, AsyncExitStack() as claims:
        kept_off: list[WorkerProcess] = []
        if fault.hold_s:
            kept_off = await claims.enter_async_context(on.victims(fault.worker, everyone=True))
        on.begins(entry, ", ".join(w.name for w in kept_off) or "the input")
        if on.load.keyless:
            entry.note = "the input has records without a key, which a compacted topic does not hold"
            return
        frozen = fault.variant == "while they are frozen"
        if frozen:
            for worker in kept_off:
                on.freeze(worker)
        else:
            await on.kill9(kept_off)
        try:
            await asyncio.sleep(fault.hold_s)
            async with on.at_brokers:
                await on.compaction.prepare()
            taken = await on.compaction.strike()
            entry.bit, entry.note = taken.gone > 0, str(taken)
        except (RpcError, RpcLost, Unreadable) as error:
            entry.note = f"the input could not be kept for the proof, and so was not compacted: {error}"
        finally:
            for worker in kept_off:
                (on.thaw if frozen else on.start)(worker)
