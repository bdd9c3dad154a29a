"""One row per event and nothing else: fills a changelog of exactly so many rows, for the benchmark of restore."""

from collections.abc import AsyncIterable
from dataclasses import dataclass

from semel import Pipeline, Table, Topic

SOURCE = "row-events"


@dataclass
class Payment:
    id: str
    amount: int


rows = Table("rows", key=str, value=int)


async def keep(payments: AsyncIterable[Payment]) -> None:
    async for payment in payments:
        rows[payment.id] = payment.amount


pipeline = Pipeline("rows", source=Topic(SOURCE, key=str, value=Payment), agent=keep, tables=[rows])
