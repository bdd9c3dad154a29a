"""Apply a payment to its account's balance, and answer with the settlement."""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

from tables.balances import balances


@dataclass
class Payment:
    id: str
    account: str
    amount: int


@dataclass
class Settlement:
    id: str
    account: str
    balance: int


async def settle(payments: AsyncIterable[Payment]) -> AsyncIterator[Settlement]:
    async for payment in payments:
        balances[payment.account] += payment.amount
        yield Settlement(payment.id, payment.account, balances[payment.account])
