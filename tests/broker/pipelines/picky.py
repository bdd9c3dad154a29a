"""A pipeline that can be told to do wrong by the event itself. Named by `PIPELINE` in the environment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

from semel import Dedup, Output, Pipeline, Reject, Retry, Table, Topic

NAME = os.environ["PIPELINE"]

balances = Table("balances", key=str, value=int, default=int)


@dataclass
class Payment:
    id: str
    account: str
    amount: int
    do: str = ""
    note: str = ""


@dataclass
class Settlement:
    id: str
    account: str
    balance: int
    note: str = ""


failed: set[str] = set()


async def settle(payments: AsyncIterable[Payment]) -> AsyncIterator[Settlement | Output]:
    async for payment in payments:
        balances[payment.account] += payment.amount
        settlement = Settlement(payment.id, payment.account, balances[payment.account])
        if payment.do == "reject":
            raise Reject("not a payment of ours")
        if payment.do == "fail":
            yield settlement
            raise ValueError("always")
        if payment.do == "fail once" and payment.id not in failed:
            failed.add(payment.id)
            yield settlement
            raise ValueError("this time only")
        if payment.do == "grow":
            settlement.note = "x" * 300_000
        if payment.do == "sleep":
            await asyncio.sleep(3)
        if payment.do == "future":
            yield Output(settlement, timestamp_ms=4_070_908_800_000)
            continue
        yield settlement


pipeline = Pipeline(
    NAME,
    source=Topic(f"{NAME}.payments", key=str, value=Payment),
    dedup=Dedup("id", window=timedelta(days=7)),
    agent=settle,
    tables=[balances],
    sink=Topic(f"{NAME}.settlements", key=str, value=Settlement, configs={"max.message.bytes": "200000"}),
    retry=Retry(attempts=3, first_delay=timedelta(milliseconds=50)),
)
