"""What workers may not do for a while: more than a quota allows, or what a right is missing for."""

from __future__ import annotations

import asyncio
import math
import time
from typing import cast

from semel.chaos.cluster import WORKERS
from semel.chaos.fault import Fault
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


class Throttle(Fault):
    """The quota is halved until it is met: nobody knows how much this pipeline reads and writes, and one of a small part of
    that would make it wait for minutes. Where it restores just then it may be asked to, all the same: it waits also when the
    quota is gone, and until then the fault lasts.
    """

    kind = "throttle"
    says = "a quota of {0.variant}"
    variants = tuple(_QUOTAS)
    lasts_s = (3, 7)
    hits_all = 0.3

    async def apply(self, on: Fleet, entry: Entry) -> None:
        quota, most, least = _QUOTAS[self.variant]
        names = [worker.name for worker in on.aimed(self.worker)]
        clients = [f"{on.plan.app}-{name}" for name in names]

        async def set_to(limit: float | None) -> None:
            await on.cluster.ask(f"a quota of {clients[0]}", lambda at: set_quota(at, clients, quota, limit))

        async with on.alone("quotas"):
            on.begins(entry, ", ".join(names))
            before = on.observed.throttles(names)
            until = time.monotonic() + self.hold_s
            try:
                while (left := until - time.monotonic()) > 0:
                    if most >= least and on.observed.throttles(names) == before:
                        await set_to(most)
                        entry.note, most = f"{quota} {most:,.6g}", most / 2
                    await asyncio.sleep(min(left, MET_S))
            finally:
                await set_to(None)
            await asyncio.sleep(MET_S)
            while (left := on.observed.throttled_s(names, time.monotonic())) > 0:  # noqa: ASYNC110  (asked, not told)
                # It may be started again meanwhile.
                await asyncio.sleep(min(left, MET_S))
            met = on.observed.throttles(names) - before
            entry.bit = met > 0
            entry.note += f", {met} answers asked to wait" if met else ""


class Deny(Fault):
    """Workers wait, or end and are started again, until they may again."""

    kind = "deny"
    says = "no {0.variant}"
    # Which right is taken away, and on what.
    variants = (
        "Read on the source", "Describe on the source", "Write on the results", "Write on the state", "Read on the state",
        "Read on the group", "Describe on the group", "Write on the transactional id",
    )  # fmt: skip
    lasts_s = (1, 6)

    async def apply(self, on: Fleet, entry: Entry) -> None:
        operation, _, what = self.variant.partition(" on the ")
        acls = [
            Acl(resource, name, WORKERS, cast("Operation", operation), allows=False)
            for resource, name in _named(on, what)
        ]
        async with on.alone("rights"):
            on.begins(entry, "all workers")
            logged = [(worker, worker.log_bytes) for worker in on.everyone]
            before, on.rights_since = on.unrightful, math.inf
            try:
                await on.cluster.ask(self.variant, lambda at: add_acls(at, acls))
                await asyncio.sleep(self.hold_s)
            finally:
                await on.cluster.ask(self.variant, lambda at: remove_acls(at, acls))
                on.rights_since = time.monotonic()
            ended = on.unrightful - before
            entry.bit = ended > 0 or any(REFUSED.search(worker.log_from(offset)) for worker, offset in logged)
            entry.note = f"{ended} times a worker ended for want of it and was started again" if ended else ""


def _named(on: Fleet, what: str) -> list[tuple[Resource, str]]:
    """The resources that a fault means."""
    plan = on.plan
    if what == "group":
        return [("group", plan.app)]
    if what == "transactional id":
        return [("transactional id", plan.transactional_id(worker.name)) for worker in on.everyone]
    topics = {"source": plan.sources, "results": (*plan.sinks, plan.dead_letter_topic), "state": plan.logs}
    return [("topic", name) for name in topics[what]]
