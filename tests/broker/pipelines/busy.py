"""Payments by a waiting handler: keys side by side, reminders that are replaced and cancelled, accounts that stay stopped, and
one customer whose every event fails."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from random import Random

from semel import Dedup, Output, Pipeline, Retry, Table, Topic


@dataclass
class Payment:
    id: str
    account: str
    amount: int
    remind_ms: int = -1


@dataclass
class Settlement:
    id: str
    account: str
    balance: int


POISONED = "account-007"
balances = Table("balances", key=str, value=int, default=int)
reminders = Topic("busy.reminders", key=str, value=Settlement)


async def settle(payments: AsyncIterable[Payment]) -> AsyncIterator[Settlement | Output]:
    async for payment in payments:
        if payment.account == POISONED:
            raise LookupError(f"{POISONED} has no contract")
        balance = balances[payment.account] + payment.amount
        await asyncio.sleep(0.01)
        balances[payment.account] = balance
        settlement = Settlement(payment.id, payment.account, balance)
        yield settlement
        if payment.remind_ms >= 0:
            due = timedelta(milliseconds=payment.remind_ms)
            yield Output(settlement, topic=reminders, at=due, name="reminder")
        elif payment.remind_ms == -2:
            yield Output.cancel("reminder")


pipeline = Pipeline(
    "busy",
    source=Topic("busy.payments", key=str, value=Payment),
    dedup=Dedup("id", window=timedelta(days=7)),
    agent=settle,
    tables=[balances],
    sink=Topic("busy.settlements", key=str, value=Settlement, configs={"retention.ms": "-1"}),
    concurrency=16,
    timeout=timedelta(seconds=5),
    retry=Retry(attempts=3, delays=(timedelta(milliseconds=100), timedelta(milliseconds=500)), then="hold"),
)


def chaos_events(rng: Random) -> Iterator[tuple[str, Payment]]:
    for number in count(1):
        account = f"account-{rng.randrange(200):03d}"
        remind_ms = rng.choice((-1, -1, -2, 200, 2_000, 60_000))
        yield account, Payment(f"payment-{number}", account, rng.randint(1, 1000), remind_ms)
