"""What workers may not do for a while: more than a quota allows, or what a right is missing for."""

from __future__ import annotations

import asyncio
import math
import time
from typing import cast

from semel.chaos.asking import until_done
from semel.chaos.cluster import WORKERS
from semel.chaos.plan import Fault
from semel.chaos.timeline import Entry
from semel.chaos.torture import REFUSED, Torture
from semel.kafka.admin import Acl, Operation, Resource, add_acls, remove_acls, set_quota

# Kafka's name of a quota, what it begins with, and how small it may become: one epoch or restore is to take seconds.
_QUOTAS = {
    "what is written": ("producer_byte_rate", 64_000.0, 16_000.0),
    "what is read": ("consumer_byte_rate", 64_000.0, 8_000.0),
    "time that requests take": ("request_percentage", 2.0, 0.05),
}
# A broker hears of a quota, a worker meets it, and says so when it is asked.
MET_S = 0.7


async def throttle(on: Torture, fault: Fault, entry: Entry) -> None:
    """The quota is halved until it is met: nobody knows how much this pipeline reads and writes, and one of a small part of
    that would make it wait for minutes.
    """
    quota, most, least = _QUOTAS[fault.variant]
    workers = on.workers if fault.worker < 0 else on.in_turn(fault.worker)[:1]
    names = [worker.name for worker in workers]
    clients = [f"{on.app}-{name}" for name in names]
    async with on.at_quotas:
        on.begins(entry, ", ".join(names))
        before = on.sight.throttles(names)
        until = time.monotonic() + fault.hold_s
        try:
            while (left := until - time.monotonic()) > 0:
                if most >= least and on.sight.throttles(names) == before:
                    await _set(on, clients, quota, most)
                    entry.note, most = f"{quota} {most:,.6g}", most / 2
                await asyncio.sleep(min(left, MET_S))
        finally:
            await _set(on, clients, quota, None)
        met = on.sight.throttles(names) - before
        entry.bit = met > 0
        entry.note += f", {met} answers asked to wait" * (met > 0)


async def deny(on: Torture, fault: Fault, entry: Entry) -> None:
    """Workers wait, or end and are started again, until they may again."""
    operation, _, what = fault.variant.partition(" on the ")
    acls = [
        Acl(resource, name, WORKERS, cast("Operation", operation), allows=False) for resource, name in _named(on, what)
    ]
    async with on.at_rights:
        on.begins(entry, "all workers")
        said = [(worker, worker.log_bytes) for worker in on.everyone]
        ended, on.rights_since = on.unrightful, math.inf
        try:
            await until_done(fault.variant, lambda: add_acls(on.cluster.bootstrap, acls))
            await asyncio.sleep(fault.hold_s)
        finally:
            await until_done(fault.variant, lambda: remove_acls(on.cluster.bootstrap, acls))
            on.rights_since = time.monotonic()
        ended = on.unrightful - ended
        entry.bit = ended > 0 or any(REFUSED.search(worker.log_from(offset)) for worker, offset in said)
        entry.note = f"{ended} times a worker ended for want of it and was started again" * (ended > 0)


def _named(on: Torture, what: str) -> list[tuple[Resource, str]]:
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


async def _set(on: Torture, clients: list[str], quota: str, most: float | None) -> None:
    await until_done(f"a quota of {clients[0]}", lambda: set_quota(on.cluster.bootstrap, clients, quota, most))
