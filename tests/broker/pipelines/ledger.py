"""The ledger that the broker tests run: each payment once, a balance an account, a settlement a payment.

Run by `semel worker ledger` with this folder as the project. `PIPELINE` in the environment names it, so that every test
has topics and a group of its own; `HANDLER_S` makes each payment take that long, with the event loop free meanwhile;
`BALANCE` is the type of a balance.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

from semel import Dedup, Pipeline, Table, Topic

NAME = os.environ["PIPELINE"]
HANDLER_S = float(os.environ.get("HANDLER_S", "0"))
WINDOW = timedelta(days=7)
BALANCE = {"int": int, "float": float}[os.environ.get("BALANCE", "int")]

balances = Table("balances", key=str, value=BALANCE, default=BALANCE)


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
        before = balances[payment.account]
        if HANDLER_S:
            await asyncio.sleep(HANDLER_S)
        balances[payment.account] = before + payment.amount
        yield Settlement(payment.id, payment.account, before + payment.amount)


pipeline = Pipeline(
    NAME,
    source=Topic(f"{NAME}.payments", key=str, value=Payment),
    dedup=Dedup("id", window=WINDOW),
    agent=settle,
    tables=[balances],
    sink=Topic(f"{NAME}.settlements", key=str, value=Settlement),
)
