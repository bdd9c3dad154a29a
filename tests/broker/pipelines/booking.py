"""A pipeline that books each payment as a row of PostgreSQL, through an inbox. `INBOX`: its URL. `RUNS`: a file with a line for
each run of any worker."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from accounts import Settlement, balances, note, pipeline_of

from semel import Inbox

inbox = Inbox(os.environ["INBOX"])


@dataclass
class Payment:
    id: str
    account: str


async def settle(payment: Payment) -> Settlement:
    once = inbox.once(payment)
    async with once as connection:
        cursor = await connection.execute("INSERT INTO bookings (id) VALUES (%s) RETURNING number", (payment.id,))
        once.outcome = (await cursor.fetchone() or [0])[0]
    note(payment)
    # Time for somebody to kill it between the row and the commit.
    await asyncio.sleep(0.002)
    balances[payment.account] += 1
    return Settlement(payment.id, payment.account, once.outcome)


pipeline = pipeline_of(settle, Payment, attempts=5)
