"""What happens to the brokers, and to what they keep: the group and the input."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from semel.chaos.asking import until_done
from semel.chaos.plan import Fault, Grown
from semel.chaos.timeline import Entry
from semel.chaos.torture import Torture
from semel.chaos.workers import ChaosWorker
from semel.plan import Plan
from semel.port import RpcError, RpcLost, TopicInfo
from semel.proof.logs import Unreadable

GUEST_S = 20.0


async def rebalance(on: Torture, fault: Fault, entry: Entry) -> None:
    async with on.at_group:
        on.begins(entry, "the group")
        guests: list[ChaosWorker] = []
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


def growing(plan: Plan) -> tuple[Grown, ...]:
    """What of a pipeline may get more partitions while it runs."""
    sinks: tuple[Grown, ...] = ("the results",) if plan.sinks else ()
    sources: tuple[Grown, ...] = ("the source",) if plan.may_grow else ()
    return (*sinks, "the dead letters", *sources)


async def grow(on: Torture, fault: Fault, entry: Entry) -> None:
    """Outputs stay where they were; a source's new partitions are taken up, and get their share of the keys."""
    match fault.variant:
        case "the source":
            name = on.sight.topic
        case "the results":
            name = sorted(on.plan.sinks)[fault.number % len(on.plan.sinks)]
        case _:
            name = on.plan.dead_letter_topic
    # The input is compacted partition by partition.
    async with on.at_input:
        on.begins(entry, name)
        before = await _partitions(on, name)
        now = before + fault.nth
        entry.bit, entry.note = bool(on.sight.processed), f"{before} before, {now} now"
        await until_done(f"the size of {name!r}", lambda: on.broker.create_partitions(name, now))
        if name == on.sight.topic:
            on.sight.partitions = on.load.partitions = now
    await asyncio.sleep(fault.hold_s)


async def _partitions(on: Torture, name: str) -> int:
    found: dict[str, TopicInfo] = {}

    async def look() -> None:
        found.update(await on.broker.topics([name]))

    await until_done(f"the size of {name!r}", look)
    return found[name].partitions


async def compact(on: Torture, fault: Fault, entry: Entry) -> None:
    """Compaction takes events behind the workers; where they are frozen or down, also such as nobody has read."""
    async with on.at_input, AsyncExitStack() as claims:
        kept_off: list[ChaosWorker] = []
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
