"""A pipeline whose handler may take its process with it, by `do`. `RUNS`: a file with a line for each run."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from semel import Dedup, Pipeline, Retry, Table, Topic

NAME = os.environ["PIPELINE"]
RUNS = Path(os.environ.get("RUNS", os.devnull))

balances = Table("balances", key=str, value=int, default=int)


@dataclass
class Payment:
    id: str
    account: str
    do: str = ""
    wait_s: float = 0.0


@dataclass
class Settlement:
    id: str
    account: str
    balance: int


def fault() -> None:
    """As an extension's defect does it."""
    ctypes.string_at(0)


def note(payment: Payment) -> None:
    with RUNS.open("a") as runs:
        runs.write(f"{payment.id}\n")


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


pipeline = Pipeline(
    NAME,
    source=Topic(f"{NAME}.payments", key=str, value=Payment),
    dedup=Dedup("id", window=timedelta(days=7)),
    agent=settle,
    tables=[balances],
    sink=Topic(f"{NAME}.settlements", key=str, value=Settlement),
    retry=Retry(attempts=3, first_delay=timedelta(milliseconds=50)),
)
