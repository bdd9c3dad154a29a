"""A pipeline that fails at what is bad until its code is mended (`MENDED` in the environment). `DEDUP=no`: without a rule.
`THEN=hold`: a key waits for its dead letter. `DEAD_LETTERS`: the topic of its dead letters. `WINDOW_S`: of its dedup rule.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

from accounts import WINDOW, Settlement, balances, pipeline_of

from semel import Dedup, Retry, Topic

MENDED = "MENDED" in os.environ
window = timedelta(seconds=int(os.environ["WINDOW_S"])) if "WINDOW_S" in os.environ else WINDOW


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
    dedup=None if os.environ.get("DEDUP") == "no" else Dedup("id", window=window),
    # Nearly nothing succeeds before it is mended, and that is the events' fault.
    retry=Retry(attempts=1, fatal=(ValueError,))
    if os.environ.get("THEN") != "hold"
    else Retry(attempts=2, first_delay=timedelta(milliseconds=50), then="hold"),
    **({"dead_letters": Topic(os.environ["DEAD_LETTERS"])} if "DEAD_LETTERS" in os.environ else {}),
)
