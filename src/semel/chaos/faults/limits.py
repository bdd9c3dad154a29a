"""What workers may not do for a while: more than a quota allows."""

from __future__ import annotations

import asyncio
import time

from semel.chaos.asking import until_done
from semel.chaos.plan import Fault
from semel.chaos.timeline import Entry
from semel.chaos.torture import Torture
from semel.kafka.admin import set_quota

# Kafka's name of a quota, and what it begins with.
_QUOTAS = {
    "what is written": ("producer_byte_rate", 64_000.0),
    "what is read": ("consumer_byte_rate", 64_000.0),
    "time that requests take": ("request_percentage", 2.0),
}
# A broker hears of a quota, a worker meets it, and says so when it is asked.
MET_S = 0.7


async def throttle(on: Torture, fault: Fault, entry: Entry) -> None:
    """The quota is halved until it is met: nobody knows how much this pipeline reads and writes. What a broker asks to wait
    then is seconds, while a quota of a small part of the traffic would ask for minutes.
    """
    quota, most = _QUOTAS[fault.variant]
    workers = on.workers if fault.worker < 0 else on.in_turn(fault.worker)[:1]
    names = [worker.name for worker in workers]
    clients = [f"{on.app}-{name}" for name in names]
    async with on.at_quotas:
        on.begins(entry, ", ".join(names))
        before = on.sight.throttles(names)
        until = time.monotonic() + fault.hold_s
        try:
            while (left := until - time.monotonic()) > 0:
                if on.sight.throttles(names) == before:
                    await _set(on, clients, quota, most)
                    entry.note, most = f"{quota} {most:,.6g}", most / 2
                await asyncio.sleep(min(left, MET_S))
        finally:
            await _set(on, clients, quota, None)
        met = on.sight.throttles(names) - before
        entry.bit = met > 0
        entry.note += f", {met} answers asked to wait" * (met > 0)


async def _set(on: Torture, clients: list[str], quota: str, most: float | None) -> None:
    await until_done(f"a quota of {clients[0]}", lambda: set_quota(on.cluster.bootstrap, clients, quota, most))
