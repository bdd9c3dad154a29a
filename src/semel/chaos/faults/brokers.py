"""What happens to the brokers, and to what they keep: the group and the input."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from semel.chaos.cluster import Cluster
from semel.chaos.fault import Chance, Drawn, Fault, Grown, Shape
from semel.chaos.fleet import Fleet
from semel.chaos.timeline import Entry
from semel.chaos.workers import ChaosWorker
from semel.plan import Plan
from semel.port import RpcError, RpcLost
from semel.task.read_committed import Unreadable

GUEST_S = 20.0


class Rebalance(Fault):
    kind = "rebalance"
    says = "{0.nth} more workers"
    times = (1, 2, 3)
    lasts_s = (1, 4)

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.alone("group"):
            on.begins(entry, "the group")
            guests: list[ChaosWorker] = []
            try:
                for number in range(1, self.nth + 1):
                    guests.append(on.invite(number))
                    await asyncio.sleep(self.hold_s / 4)
                await on.holding(guests[0], GUEST_S)
                await asyncio.sleep(self.hold_s)
                entry.bit = any(on.observed.holds(guest.name) for guest in guests)
            finally:
                await on.dismiss(guests, kill=self.number % 2 == 0)


class BrokerKill(Fault):
    kind = "broker-kill"
    variants = ("SIGKILL to a broker",)
    lasts_s = (0, 2)

    async def leaves(self, cluster: Cluster, node: int) -> None:
        await cluster.kill(node)

    async def apply(self, on: Fleet, entry: Entry) -> None:
        node = on.cluster.nodes[self.broker]
        async with on.alone("brokers"):
            on.begins(entry, f"broker {node}")
            entry.bit = on.observed.processed > 0
            await self.leaves(on.cluster, node)
            await asyncio.sleep(self.hold_s)
            await on.cluster.back(node)


class Leader(BrokerKill):
    kind = "leader"
    variants = ("leaders and coordinators move",)

    @classmethod
    def impossible(cls, shape: Shape) -> str:
        return "" if shape.brokers >= 3 else "leaders move among several brokers: --brokers 3"

    async def leaves(self, cluster: Cluster, node: int) -> None:
        await cluster.leave(node)


def growing(plan: Plan) -> tuple[Grown, ...]:
    """What of a pipeline may get more partitions while it runs."""
    sinks: tuple[Grown, ...] = ("the results",) if plan.sinks else ()
    sources: tuple[Grown, ...] = ("the source",) if plan.may_grow else ()
    return (*sinks, "the dead letters", *sources)


class Grow(Fault):
    """Outputs stay where they were; a source's new partitions are taken up, and get their share of the keys."""

    kind = "grow"
    weight = 0.5
    says = "{0.nth} more partitions of {0.variant}"
    times = (1, 2)
    lasts_s = (1, 3)

    @classmethod
    def drawn(cls, chance: Chance, variant: str) -> Drawn:
        return {"variant": chance.rng.choice(chance.shape.grows)}

    async def apply(self, on: Fleet, entry: Entry) -> None:
        match self.variant:
            case "the source":
                name = on.observed.topic
            case "the results":
                name = sorted(on.plan.sinks)[self.number % len(on.plan.sinks)]
            case _:
                name = on.plan.dead_letter_topic
        # The input is compacted partition by partition.
        async with on.alone("input"):
            on.begins(entry, name)
            topics = await on.cluster.ask(f"the size of {name!r}", lambda _: on.broker.topics([name]))
            before = topics[name].partitions
            now = before + self.nth
            entry.bit, entry.note = bool(on.observed.processed), f"{before} before, {now} now"
            await on.cluster.ask(f"the size of {name!r}", lambda _: on.broker.create_partitions(name, now))
            if name == on.observed.topic:
                on.observed.partitions = on.load.partitions = now
        await asyncio.sleep(self.hold_s)


class Compact(Fault):
    """Compaction takes events behind the workers; where they are frozen or down, also such as nobody has read."""

    kind = "compact"
    seen = True
    variants = ("while they run", "while they are frozen", "while they are down")

    @classmethod
    def drawn(cls, chance: Chance, variant: str) -> Drawn:
        return {"hold_s": 0.0 if variant == "while they run" else chance.rng.uniform(0.5, 3)}

    async def apply(self, on: Fleet, entry: Entry) -> None:
        async with on.alone("input"), AsyncExitStack() as claims:
            kept_off: list[ChaosWorker] = []
            if self.variant != "while they run":
                kept_off = await claims.enter_async_context(on.claimed(self.worker, everyone=True))
            on.begins(entry, ", ".join(w.name for w in kept_off) or "the input")
            if on.load.keyless:
                entry.note = "the input has records without a key, which a compacted topic does not hold"
                return
            frozen = self.variant == "while they are frozen"
            if frozen:
                for worker in kept_off:
                    on.freeze(worker)
            else:
                await on.kill9(*kept_off)
            try:
                await asyncio.sleep(self.hold_s)
                async with on.alone("brokers"):
                    await on.compaction.prepare()
                taken = await on.compaction.strike()
                entry.bit, entry.note = taken.gone > 0, str(taken)
            except (RpcError, RpcLost, Unreadable) as error:
                entry.note = f"the input could not be kept for the proof, and so was not compacted: {error}"
            finally:
                for worker in kept_off:
                    (on.thaw if frozen else on.start)(worker)
