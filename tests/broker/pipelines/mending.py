"""A pipeline that fails at what is bad until its code is mended (`MENDED` in the environment). `DEDUP=no`: without a rule.
`THEN=hold`: a key waits for its dead letter.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

from accounts import WINDOW, Settlement, balances, pipeline_of

from semel import Dedup, Retry

MENDED = "MENDED" in os.environ


@dataclass
class Payment:
    id: str
    account: str
    amount: int
    bad: bool = False
    note: str = ""


async def settle(payments: AsyncIterable[Payment]) -> AsyncIterator[Settlement]:
    async for payment in payments:
        if payment.bad and not MENDED:
            raise ValueError(f"cannot settle {payment.id}")
        balances[payment.account] += payment.amount
        yield Settlement(payment.id, payment.account, balances[payment.account])


pipeline = pipeline_of(
    settle,
    Payment,
    attempts=1,
    dedup=None if os.environ.get("DEDUP") == "no" else Dedup("id", window=WINDOW),
    # Nearly nothing succeeds before it is mended, and that is the events' fault.
    retry=Retry(attempts=1, fatal=(ValueError,))
    if os.environ.get("THEN") != "hold"
    else Retry(attempts=2, first_delay=timedelta(milliseconds=50), then="hold"),
)
