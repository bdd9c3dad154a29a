"""Payments of many accounts, made from a seed: the case where a second charge is the bug.

The record key is the account, because the ledger of `tables/balances.py` is keyed by it. A value is about
190 bytes of JSON and holds more than the pipeline reads, as other people's events do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import NotRequired, TypedDict

import orjson

from feeds.flights import time_text
from feeds.record import Record

MERCHANTS = ("bakery", "bookshop", "cinema", "fuel", "grocery", "museum", "pharmacy", "railway")

# 2024-01-01T00:00Z. A fixed start, so that a seed means the same payments on every day.
START_MS = 1_704_067_200_000
# A million payments then span 69 hours: redeliveries come hours late within one run, and within a window of days.
STEP_MS = 250


class PaymentEvent(TypedDict):
    """`amount` in cents, negative for a refund."""

    id: str
    account: str
    amount: int
    currency: NotRequired[str]
    merchant: NotRequired[str]
    reference: NotRequired[str]
    created_at: NotRequired[str]


def events(
    count: int, seed: int, *, accounts: int = 10_000, start_ms: int = START_MS, step_ms: int = STEP_MS
) -> Iterator[tuple[PaymentEvent, int]]:
    """`count` payments and their times in ms, `step_ms` apart. The same arguments give the same payments."""
    random = Random(seed)
    for number in range(count):
        timestamp_ms = start_ms + number * step_ms
        merchant = random.choice(MERCHANTS)
        # One in twenty is a refund, so that a balance can also go down.
        amount = random.randint(100, 50_000) if random.random() < 0.95 else -random.randint(100, 5_000)
        payment: PaymentEvent = {
            "id": f"pay-{seed & 0xFFFFFFFF:08x}-{number:09d}",
            "account": f"acct-{random.randrange(accounts):07d}",
            "amount": amount,
            "currency": "EUR",
            "merchant": merchant,
            "reference": f"{merchant}-{random.getrandbits(64):016x}",
            "created_at": _iso(timestamp_ms),
        }
        yield payment, timestamp_ms


def records(stream: Iterable[tuple[PaymentEvent, int]]) -> Iterator[Record]:
    for payment, timestamp_ms in stream:
        yield Record(payment["account"].encode(), orjson.dumps(payment), timestamp_ms)


def altered(value: bytes, random: Random) -> bytes:
    """The same payment of another amount: what a conflicting redelivery carries."""
    payment: PaymentEvent = orjson.loads(value)
    payment["amount"] += random.randint(1, 10_000)
    return orjson.dumps(payment)


def _iso(timestamp_ms: int) -> str:
    minute, ms = divmod(timestamp_ms, 60_000)
    return f"{time_text(minute)[:-1]}:{ms // 1000:02d}.{ms % 1000:03d}Z"
