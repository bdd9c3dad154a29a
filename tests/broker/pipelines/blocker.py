"""A pipeline whose handler blocks the event loop, as a synchronous client does. `RUNS`: a file with a line for each run of any
worker."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from accounts import Settlement, balances, note, pipeline_of


@dataclass
class Payment:
    id: str
    account: str
    hold_s: float = 0.0
    # It blocks the first time only.
    once: bool = False


def settle(payment: Payment) -> Settlement:
    note(payment)
    if not payment.once or Path(os.environ["RUNS"]).read_text().split().count(payment.id) == 1:
        time.sleep(payment.hold_s)
    balances[payment.account] += 1
    return Settlement(payment.id, payment.account, balances[payment.account])


pipeline = pipeline_of(settle, Payment, attempts=2, dedup=None)
