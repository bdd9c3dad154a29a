"""A pipeline that reminds: each payment is settled at once, and one that says so is reminded of once more after a while.

Of the reminders of an account that have the name, the last is sent, unless a payment cancels it (`remind_ms` -2).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

from accounts import NAME, balances, pipeline_of

from semel import Output, Topic


@dataclass
class Payment:
    id: str
    account: str
    amount: int
    remind_ms: int = -1
    named: bool = False


@dataclass
class Settlement:
    id: str
    account: str
    balance: int


reminders = Topic(f"{NAME}.reminders", key=str, value=Settlement)


async def settle(payments: AsyncIterable[Payment]) -> AsyncIterator[Settlement | Output]:
    async for payment in payments:
        balances[payment.account] += payment.amount
        settlement = Settlement(payment.id, payment.account, balances[payment.account])
        yield settlement
        if payment.remind_ms >= 0:
            due, name = timedelta(milliseconds=payment.remind_ms), "reminder" if payment.named else None
            yield Output(settlement, topic=reminders, at=due, name=name)
        elif payment.remind_ms == -2:
            yield Output.cancel("reminder")


pipeline = pipeline_of(settle, Payment, attempts=3, sink=Topic(f"{NAME}.settlements", key=str, value=Settlement))
