"""Handlers that wait for 100 ms each, of many keys at a time: by `concurrency` and by `threads`; and some that hang, which a
timeout ends. Named by `PIPELINE` in the environment."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta

from accounts import balances, pipeline_of

WAIT_S = 0.1


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
    began: float
    ended: float


def settlement(payment: Payment, balance: int, began: float) -> Settlement:
    balances[payment.account] = balance
    return Settlement(payment.id, payment.account, balance, began, time.monotonic())


async def wait(payment: Payment) -> Settlement:
    balance, began = balances[payment.account] + payment.amount, time.monotonic()
    await asyncio.sleep(WAIT_S)
    return settlement(payment, balance, began)


def block(payment: Payment) -> Settlement:
    balance, began = balances[payment.account] + payment.amount, time.monotonic()
    time.sleep(WAIT_S)
    return settlement(payment, balance, began)


side_by_side = pipeline_of(wait, Payment, settlement=Settlement, attempts=3, concurrency=100)
in_threads = pipeline_of(block, Payment, settlement=Settlement, attempts=3, threads=100)

_hung: set[str] = set()


async def hang(payment: Payment) -> Settlement:
    """As `wait`; one with an id that begins so hangs the first time in each process, or each time."""
    began, kind = time.monotonic(), payment.id.partition("-")[0]
    balance = balances[payment.account] + payment.amount
    if kind == "poison" or (kind == "once" and payment.id not in _hung):
        _hung.add(payment.id)
        await asyncio.Event().wait()
    return settlement(payment, balance, began)


timed = pipeline_of(hang, Payment, settlement=Settlement, attempts=3, concurrency=20, timeout=timedelta(seconds=1))
