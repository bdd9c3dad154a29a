"""What happens to connections and to single exchanges, by the proxies that stand before the brokers."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from semel.chaos.fault import Chance, Drawn, Fault
from semel.chaos.fleet import Fleet
from semel.chaos.proxy import Api, Lose, Side, Trouble
from semel.chaos.timeline import Entry

# A request of the kind that is to be lost comes with every commit.
EXCHANGE_S = 8.0

# The exchanges of a commit, EndTxn most, which decides; and the one by which a new writer is taken after such a loss.
EXCHANGES = (
    *("EndTxn", "EndTxn", "Produce", "TxnOffsetCommit"),
    *("AddPartitionsToTxn", "AddOffsetsToTxn", "InitProducerId"),
)


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
        proxies = on.cluster.proxies
        match self.variant:
            case "cut":
                entry.bit = sum(proxy.cut(client) for proxy in proxies) > 0
            case "half-close":
                side = Side.ANSWERS if self.number % 2 else Side.REQUESTS
                entry.bit = sum(proxy.half_close(client, side) for proxy in proxies) > 0
            case "lose request" | "lose answer":
                entry.bit = await self._lost(on, client)
                entry.note = "" if entry.bit else "there was no such exchange"
            case _:
                silent = {"silent requests": Side.REQUESTS, "silent answers": Side.ANSWERS}.get(self.variant)
                troubles = [Trouble(client, silent, self.delay_ms / 1000, self.variant == "refuse") for _ in proxies]
                with ExitStack() as lasting:
                    for proxy, trouble in zip(proxies, troubles, strict=True):
                        lasting.enter_context(proxy.trouble(trouble))
                    await asyncio.sleep(self.hold_s)
                entry.bit = any(trouble.touched for trouble in troubles)

    async def _lost(self, on: Fleet, client: str) -> bool:
        """Whether there was such an exchange, with one of the brokers."""
        proxies = on.cluster.proxies
        lose = Lose.REQUEST if self.variant == "lose request" else Lose.ANSWER
        nth, ends = self.nth, []
        if self.step == "InitProducerId":
            # A writer is taken only where one was lost.
            nth, ends = 1, [proxy.lose(Api.EndTxn, Lose.REQUEST, client=client) for proxy in proxies]
        rules = [proxy.lose(Api[self.step], lose, nth=nth, client=client) for proxy in proxies]
        waiting = [asyncio.ensure_future(rule.done.wait()) for rule in rules]
        done, pending = await asyncio.wait(waiting, timeout=EXCHANGE_S, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for proxy in proxies:
            for rule in (*rules, *ends):
                proxy.forget(rule)
        return bool(done)
