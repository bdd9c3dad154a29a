"""A pipeline with a rate limit. Each call of its handler leaves the moment at which it began in the file that `RUNS` names."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from accounts import Settlement, balances, pipeline_of

from semel import RateLimit


@dataclass
class Payment:
    id: str
    account: str
    amount: int


def settle(payment: Payment) -> Settlement:
    with Path(os.environ["RUNS"]).open("a") as runs:
        runs.write(f"{time.monotonic()}\n")
    balances[payment.account] += payment.amount
    return Settlement(payment.id, payment.account, balances[payment.account])


pipeline = pipeline_of(settle, Payment, attempts=3, rate_limit=RateLimit(60, burst=10))
