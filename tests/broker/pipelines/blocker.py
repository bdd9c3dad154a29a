"""A pipeline whose handler blocks the event loop, as a synchronous client does. `RUNS`: a file with a line for each run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from semel import Pipeline, Retry, Table, Topic

NAME = os.environ["PIPELINE"]
RUNS = Path(os.environ.get("RUNS", os.devnull))

balances = Table("balances", key=str, value=int, default=int)


@dataclass
class Payment:
    id: str
    account: str
    hold_s: float = 0.0


@dataclass
class Settlement:
    id: str
    account: str
    balance: int


def settle(payment: Payment) -> Settlement:
    with RUNS.open("a") as runs:
        runs.write(f"{payment.id}\n")
    time.sleep(payment.hold_s)
    balances[payment.account] += 1
    return Settlement(payment.id, payment.account, balances[payment.account])


pipeline = Pipeline(
    NAME,
    source=Topic(f"{NAME}.payments", key=str, value=Payment),
    agent=settle,
    tables=[balances],
    sink=Topic(f"{NAME}.settlements", key=str, value=Settlement),
    retry=Retry(attempts=2, first_delay=timedelta(milliseconds=50)),
)
