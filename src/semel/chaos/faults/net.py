"""What happens to connections and to single exchanges, by the proxies that stand before the brokers."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

from semel.chaos.fault import Chance, Drawn, Fault
from semel.chaos.fleet import Fleet
from semel.chaos.proxy import Api, Side, Trouble
from semel.chaos.timeline import Entry

# A request of the kind that is to be lost comes with every commit.
EXCHANGE_S = 8.0

# The exchanges of a commit, EndTxn most, which decides; and the one by which a new writer is taken after such a loss.
EXCHANGES = (
    *("EndTxn", "EndTxn", "Produce", "TxnOffsetCommit"),
    *("AddPartitionsToTxn", "AddOffsetsToTxn", "InitProducerId"),
)


_SIDES = {
    "silent requests": Side.REQUESTS, "silent answers": Side.ANSWERS,
    "lose request": Side.REQUESTS, "lose answer": Side.ANSWERS,
}  # fmt: skip


class Net(Fault):
    kind = "net"
    weight = 8
    says = "{0.variant} {0.step}"
    variants = (
        *("cut", "cut", "delay", "delay", "silent requests", "silent answers", "half-close", "refuse"),
        *("lose request",) * 4,
        *("lose answer",) * 6,
    )
    hits_all = 0.2

    @classmethod
    def drawn(cls, chance: Chance, variant: str) -> Drawn:
        rng = chance.rng
        match variant:
            case "lose request" | "lose answer":
                return {"step": rng.choice(EXCHANGES), "nth": rng.randint(1, 4)}
            case "delay":
                return {"hold_s": rng.uniform(1, 4), "delay_ms": rng.choice((20, 100, 400))}
            case "cut" | "half-close":
                return {}
            case _:
                return {"hold_s": chance.past_session_s(2) if rng.random() < 0.25 else rng.uniform(0.5, 4)}

    async def apply(self, on: Fleet, entry: Entry) -> None:
        name = "" if self.worker < 0 else on.aimed(self.worker)[0].name
        client = name and f"{on.plan.app}-{name}"
        on.begins(entry, name or "all workers")
        proxies, side = on.cluster.proxies, _SIDES.get(self.variant)
        match self.variant:
            case "cut":
                entry.bit = sum(proxy.cut(client) for proxy in proxies) > 0
            case "half-close":
                side = Side.ANSWERS if self.number % 2 else Side.REQUESTS
                entry.bit = sum(proxy.half_close(client, side) for proxy in proxies) > 0
            case "lose request" | "lose answer":
                # A writer is taken only where one was lost.
                nth, ends = (1, Api.EndTxn) if self.step == "InitProducerId" else (self.nth, None)
                with ExitStack() as lasting:
                    if ends is not None:
                        _everywhere(on, lasting, client=client, side=Side.REQUESTS, api=ends)
                    lost = _everywhere(on, lasting, client=client, side=side, api=Api[self.step], nth=nth)
                    waiting = [asyncio.ensure_future(trouble.done.wait()) for trouble in lost]
                    done, pending = await asyncio.wait(waiting, timeout=EXCHANGE_S, return_when=asyncio.FIRST_COMPLETED)
                    for task in pending:
                        task.cancel()
                entry.bit, entry.note = bool(done), "" if done else "there was no such exchange"
            case _:
                with ExitStack() as lasting:
                    troubles = _everywhere(
                        on, lasting, client=client, side=side, delay_s=self.delay_ms / 1000, refuses=self.variant == "refuse"
                    )  # fmt: skip
                    await asyncio.sleep(self.hold_s)
                entry.bit = any(trouble.touched for trouble in troubles)


def _everywhere(on: Fleet, lasting: ExitStack, **what: Any) -> list[Trouble]:
    """The same trouble at each broker."""
    return [lasting.enter_context(proxy.trouble(Trouble(**what))) for proxy in on.cluster.proxies]
