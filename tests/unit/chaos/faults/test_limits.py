"""Workers that may not do as much as they want: how long such a fault lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from semel.chaos.faults import limits
from semel.chaos.faults.limits import Throttle
from semel.chaos.fleet import Fleet
from semel.chaos.observed import Observed
from semel.chaos.timeline import Entry
from semel.chaos.workers import ChaosWorker


class Brokers:
    """Ask w1 to wait for as long as it is told as soon as there is a quota."""

    def __init__(self, asked_s: float) -> None:
        self.on: Fleet
        self.asked_s = asked_s
        self.limits: list[float | None] = []

    async def ask(self, what: str, request: Callable[[str], Awaitable[None]]) -> None:
        await request("")

    async def set_quota(self, _: str, clients: Sequence[str], quota: str, limit: float | None) -> None:
        self.limits.append(limit)
        if limit is not None:
            now = asyncio.get_running_loop().time()
            self.on.observed.heard("w1", document(throttles=1, throttled={"Fetch": self.asked_s}), now)


def document(**told: Any) -> Any:
    commits = {"commits": 1}
    return {"tasks": [], "counts": {}, "commits": commits, "throttles": 0, "throttled": {}, **told}


@pytest.mark.parametrize(("asked_s", "least_s"), [(0.0, 0.3), (1.2, 1.2)], ids=["nothing", "long after it"])
async def test_a_quota_lasts_until_what_brokers_asked_to_wait_for_it_is_over(
    monkeypatch: pytest.MonkeyPatch, asked_s: float, least_s: float
) -> None:
    anything: Any = None
    brokers = Brokers(asked_s)
    monkeypatch.setattr(limits, "set_quota", brokers.set_quota)
    monkeypatch.setattr(limits, "MET_S", 0.1)
    worker = cast("ChaosWorker", SimpleNamespace(name="w1"))
    on = Fleet(
        plan=cast("Any", SimpleNamespace(app="p")), broker=anything, cluster=cast("Any", brokers), workers=[worker], spare=[],
        observed=Observed("t", 1), load=anything, compaction=anything, views=anything, say=lambda said: None, goal="60 s",
    )  # fmt: skip
    brokers.on = on
    on.observed.started("w1", "http://w1", 1)
    on.observed.heard("w1", document(), 0.0)
    fault = Throttle(1, 0.0, overlap=False, hold_s=0.2, variant="what is read")
    entry = Entry(1, fault.kind, str(fault), "", 0.0)
    began = asyncio.get_running_loop().time()
    await fault.apply(on, entry)
    assert least_s <= asyncio.get_running_loop().time() - began < least_s + 0.5
    assert (brokers.limits, entry.bit) == ([64_000.0, None], True)
