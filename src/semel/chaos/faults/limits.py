"""What workers may not do for a while: more than a quota allows, or what a right is missing for."""

from __future__ import annotations

import asyncio
import math
import time
from typing import cast

from semel.chaos.asking import until_done
from semel.chaos.cluster import WORKERS
from semel.chaos.fault import Chance, Drawn, Fault
from semel.chaos.fleet import REFUSED, Fleet
from semel.chaos.timeline import Entry
from semel.kafka.admin import Acl, Operation, Resource, add_acls, remove_acls, set_quota

# Kafka's name of a quota, what it begins with, and how small it may become: one epoch or restore is to take seconds.
_QUOTAS = {
    "what is written": ("producer_byte_rate", 64_000.0, 16_000.0),
    "what is read": ("consumer_byte_rate", 64_000.0, 8_000.0),
    "time that requests take": ("request_percentage", 2.0, 0.05),
}
# A broker hears of a quota, a worker meets it, and says so when it is asked.
MET_S = 0.7


THROTTLED = tuple(_QUOTAS)
# Which right is taken away, and on what.
DENIED = (
    "Read on the source", "Describe on the source", "Write on the results", "Write on the state", "Read on the state",
    "Read on the group", "Describe on the group", "Write on the transactional id",
)  # fmt: skip


class Throttle(Fault):
    """The quota is halved until it is met: nobody knows how much this pipeline reads and writes, and one of a small part of
    that would make it wait for minutes.
    """

    kind = "throttle"

    @classmethod
    def drawn(cls, chance: Chance) -> Drawn:
        whom = chance.all_workers(0.3)
        return {**whom, "variant": chance.rng.choice(THROTTLED), "hold_s": chance.rng.uniform(3, 7)}

    @property
    def what(self) -> str:
        return f"a quota of {self.variant}"

    async def apply(self, on: Fleet, entry: Entry) -> None:
        quota, most, least = _QUOTAS[self.variant]
        workers = on.aimed(self.worker)
        names = [worker.name for worker in workers]
        clients = [f"{on.app}-{name}" for name in names]
        async with on.alone("quotas"):
            on.begins(entry, ", ".join(names))
            before = on.observed.throttles(names)
            until = time.monotonic() + self.hold_s
            try:
                while (left := until - time.monotonic()) > 0:
                    if most >= least and on.observed.throttles(names) == before:
                        await _set(on, clients, quota, most)
                        entry.note, most = f"{quota} {most:,.6g}", most / 2
                    await asyncio.sleep(min(left, MET_S))
            finally:
                await _set(on, clients, quota, None)
            met = on.observed.throttles(names) - before
            entry.bit = met > 0
            entry.note += f", {met} answers asked to wait" * (met > 0)


class Deny(Fault):
    """Workers wait, or end and are started again, until they may again."""

    kind = "deny"

    @classmethod
    def drawn(cls, chance: Chance) -> Drawn:
        return {"variant": chance.rng.choice(DENIED), "hold_s": chance.rng.uniform(1, 6)}

    @property
    def what(self) -> str:
        return f"no {self.variant}"

    async def apply(self, on: Fleet, entry: Entry) -> None:
        operation, _, what = self.variant.partition(" on the ")
        acls = [
            Acl(resource, name, WORKERS, cast("Operation", operation), allows=False)
            for resource, name in _named(on, what)
        ]
        async with on.alone("rights"):
            on.begins(entry, "all workers")
            logged = [(worker, worker.log_bytes) for worker in on.everyone]
            ended, on.rights_since = on.unrightful, math.inf
            try:
                await until_done(self.variant, lambda: add_acls(on.cluster.bootstrap, acls))
                await asyncio.sleep(self.hold_s)
            finally:
                await until_done(self.variant, lambda: remove_acls(on.cluster.bootstrap, acls))
                on.rights_since = time.monotonic()
            ended = on.unrightful - ended
            entry.bit = ended > 0 or any(REFUSED.search(worker.log_from(offset)) for worker, offset in logged)
            entry.note = f"{ended} times a worker ended for want of it and was started again" * (ended > 0)


def _named(on: Fleet, what: str) -> list[tuple[Resource, str]]:
    """The resources that a fault means."""
    plan = on.plan
    match what:
        case "source":
            return [("topic", name) for name in plan.sources]
        case "results":
            return [("topic", name) for name in (*plan.sinks, plan.dead_letter_topic)]
        case "state":
            return [("topic", name) for name in plan.logs]
        case "group":
            return [("group", plan.app)]
        case _:
            return [("transactional id", plan.transactional_id(worker.name)) for worker in on.everyone]


async def _set(on: Fleet, clients: list[str], quota: str, most: float | None) -> None:
    await until_done(f"a quota of {clients[0]}", lambda: set_quota(on.cluster.bootstrap, clients, quota, most))
