"""A pipeline whose handler ends, or does not end, as the event says. Named by `PIPELINE` in the environment."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass
from typing import Any

from accounts import balances, pipeline_of


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
        case "exit in a group":
            async with asyncio.TaskGroup() as group:
                group.create_task(exit_in_a_task())
                group.create_task(asyncio.sleep(60))
        case "exit beside":
            asyncio.get_running_loop().call_soon(sys.exit, 0)
            await asyncio.sleep(0.01)
        case "cancel all":
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
        case "stop the loop":
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0.01)
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


pipeline = pipeline_of(settle, Payment, settlement=dict, attempts=2)
