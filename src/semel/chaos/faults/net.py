"""What happens to connections and to single exchanges, by the proxies that stand before the brokers."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from semel.chaos.fault import Chance, Drawn, Fault
from semel.chaos.fleet import Fleet
from semel.chaos.proxy import APIS, END_TXN, Lose, Rule, Side, Trouble
from semel.chaos.timeline import Entry

# A request of the kind that is to be lost comes with every commit.
EXCHANGE_S = 8.0


MODES = ("cut", "delay", "silent requests", "silent answers", "half-close", "refuse", "lose request", "lose answer")
# The exchanges of a commit, EndTxn most, which decides; and the one by which a new writer is taken after such a loss.
EXCHANGES = (
    *("EndTxn", "EndTxn", "Produce", "TxnOffsetCommit"),
    *("AddPartitionsToTxn", "AddOffsetsToTxn", "InitProducerId"),
)


class Net(Fault):
    kind = "net"
    weight = 8

    @classmethod
    def drawn(cls, chance: Chance) -> Drawn:
        rng, whom = chance.rng, chance.all_workers(0.2)
        variant = rng.choices(MODES, (2, 2, 1, 1, 1, 1, 4, 6))[0]
        own: Drawn = {}
        if variant in ("lose request", "lose answer"):
            own = {"step": rng.choice(EXCHANGES), "nth": rng.randint(1, 4)}
        elif variant == "delay":
            own = {"hold_s": rng.uniform(1, 4), "offset_ms": rng.choice((20, 100, 400))}
        elif variant not in ("cut", "half-close"):
            own = {"hold_s": chance.past_session_s(2) if rng.random() < 0.25 else rng.uniform(0.5, 4)}
        return {**whom, "variant": variant, **own}

    @property
    def what(self) -> str:
        return f"{self.variant} {self.step}".rstrip()

    async def apply(self, on: Fleet, entry: Entry) -> None:
        name = "" if self.worker < 0 else on.aimed(self.worker)[0].name
        client = name and f"{on.app}-{name}"
        on.begins(entry, name or "all workers")
        proxies = on.cluster.proxies
        match self.variant:
            case "cut":
                entry.bit = sum(proxy.cut(client) for proxy in proxies) > 0
            case "half-close":
                side = Side.ANSWERS if self.number % 2 else Side.REQUESTS
                entry.bit = sum(proxy.half_close(client, side) for proxy in proxies) > 0
            case "lose request" | "lose answer":
                lose = Lose.REQUEST if self.variant == "lose request" else Lose.ANSWER
                nth, ends = self.nth, list[Rule]()
                if self.step == "InitProducerId":
                    # A writer is taken only where one was lost.
                    nth, ends = 1, [proxy.lose(END_TXN, Lose.REQUEST, client=client) for proxy in proxies]
                rules = [proxy.lose(APIS[self.step], lose, nth=nth, client=client) for proxy in proxies]
                entry.bit = await _any_done(rules, EXCHANGE_S)
                for proxy in proxies:
                    for rule in (*rules, *ends):
                        proxy.forget(rule)
                entry.note = "" if entry.bit else "there was no such exchange"
            case _:
                silent = {"silent requests": Side.REQUESTS, "silent answers": Side.ANSWERS}.get(self.variant)
                refuses, delay_s = self.variant == "refuse", self.offset_ms / 1000
                with ExitStack() as lasting:
                    troubles = [
                        lasting.enter_context(proxy.trouble(Trouble(client, silent, delay_s, refuses)))
                        for proxy in proxies
                    ]
                    await asyncio.sleep(self.hold_s)
                entry.bit = any(trouble.touched for trouble in troubles)


async def _any_done(rules: list[Rule], within_s: float) -> bool:
    waiting = [asyncio.ensure_future(rule.done.wait()) for rule in rules]
    done, pending = await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return bool(done)
