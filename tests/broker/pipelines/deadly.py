"""A pipeline whose handler may take its process with it, by `do`. `RUNS`: a file with a line for each run."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from dataclasses import dataclass

from accounts import Settlement, balances, note, pipeline_of


@dataclass
class Payment:
    id: str
    account: str
    do: str = ""
    wait_s: float = 0.0


def fault() -> None:
    """As an extension's defect does it."""
    ctypes.string_at(0)


async def settle(payment: Payment) -> Settlement:
    note(payment)
    match payment.do:
        case "exit":
            os._exit(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fault":
            fault()
        case "fault in a thread":
            await asyncio.to_thread(fault)
        case _:
            await asyncio.sleep(payment.wait_s)
    balances[payment.account] += 1
    return Settlement(payment.id, payment.account, balances[payment.account])


pipeline = pipeline_of(settle, Payment, attempts=3)
