"""A pipeline whose handler ends, or does not end, as the event says. Named by `PIPELINE` in the environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from semel import Dedup, Pipeline, Retry, Table, Topic

NAME = os.environ["PIPELINE"]

balances = Table("balances", key=str, value=int, default=int)


@dataclass
class Payment:
    id: str
    account: str
    amount: int
    do: str = ""


async def exit_in_a_task() -> None:
    sys.exit(0)


async def settle(payment: Payment) -> dict[str, Any]:
    balances[payment.account] += payment.amount
    match payment.do:
        case "exit":
            sys.exit(0)
        case "interrupt":
            raise KeyboardInterrupt
        case "cancel":
            inner = asyncio.ensure_future(asyncio.sleep(60))
            await asyncio.sleep(0)
            inner.cancel()
            await inner
        case "exit in a task":
            await asyncio.create_task(exit_in_a_task())
        case "swallow":
            while True:
                with contextlib.suppress(BaseException):
                    await asyncio.sleep(0.05)
        case "thread":
            await asyncio.to_thread(time.sleep, 600)
        case "spin":
            while True:
                pass
        case _:
            pass
    return {"id": payment.id, "account": payment.account, "balance": balances[payment.account]}


pipeline = Pipeline(
    NAME,
    source=Topic(f"{NAME}.payments", key=str, value=Payment),
    dedup=Dedup("id", window=timedelta(days=7)),
    agent=settle,
    tables=[balances],
    sink=Topic(f"{NAME}.settlements", key=str, value=dict),
    retry=Retry(attempts=2, first_delay=timedelta(milliseconds=50)),
)
