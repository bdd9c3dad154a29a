"""A pipeline that can be told to do wrong by the event itself. Named by `PIPELINE` in the environment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

from accounts import NAME, balances, pipeline_of

from semel import Output, Reject, Topic


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


pipeline = pipeline_of(
    settle,
    Payment,
    attempts=3,
    sink=Topic(
        f"{NAME}.settlements", key=str, value=Settlement, configs={"max.message.bytes": "200000", "retention.ms": "-1"}
    ),
)
