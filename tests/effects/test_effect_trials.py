"""Which effects of a handler may happen twice: through an inbox on a real PostgreSQL, remembered by it, and bare."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg

from semel import Dedup, Inbox, Pipeline, Retry, Topic
from semel.errors import EffectInFlight, EffectUnsure
from semel.testing import EffectTrials
from tests.postgres import Postgres


@dataclass(frozen=True)
class Order:
    id: str


@dataclass
class FarEnd:
    keys: list[str] = field(default_factory=list)

    async def charge(self, key: str) -> str:
        self.keys.append(key)
        return f"receipt {len(self.keys)}"

    async def mail(self, order: Order) -> None: ...


def test_a_row_is_there_once_a_charge_with_its_key_too_an_unsure_one_never_twice_and_a_mail_maybe_twice(
    postgres: Postgres, inbox: Inbox, key: str
) -> None:
    far, runs = FarEnd(), 0

    class Bookings:
        async def book(self, connection: Any, order: Order) -> None:
            await connection.execute("INSERT INTO rows (key) VALUES (%s)", (f"{key}/{order.id}",))

        def count(self) -> int:
            with psycopg.connect(postgres.url(), autocommit=True) as connection:
                row = connection.execute("SELECT count(*) FROM rows WHERE key LIKE %s", (f"{key}/%",)).fetchone()
                assert row is not None
                return row[0]

    bookings = Bookings()

    async def handle(order: Order) -> None:
        async with inbox.once(order, step="book") as connection:
            await bookings.book(connection, order)
        keyed = inbox.once(order, step="charge")
        await keyed.run_async(lambda: far.charge(keyed.idempotency_key), unsure="again")
        await inbox.once(order, step="notify").run_async(lambda: notify.charge("n"))
        await far.mail(order)

    notify = FarEnd()
    pipeline = Pipeline(
        f"p-{key}",
        source=Topic("orders", key=str, value=Order),
        dedup=Dedup("id", window=timedelta(days=7)),
        agent=handle,
        retry=Retry(attempts=3, transient=(ConnectionError, TimeoutError, EffectInFlight), fatal=(EffectUnsure,)),
    )

    def another_order(tester: Any) -> None:
        # To the inbox each run is about another one; to the pipeline, which is new each time, it is the first.
        nonlocal runs
        runs += 1
        tester.send(Order(f"o{runs}"), key="k")

    trials = EffectTrials(pipeline, another_order)
    trials.effect(bookings, "book", count=bookings.count)
    trials.effect(far, "charge", same=lambda key: key)
    trials.effect(notify, "charge", named="notify")
    trials.effect(far, "mail")
    report = trials.run()
    assert {"book", "charge"} <= report.once, report
    assert "notify" not in report.maybe_twice, report
    assert "mail" in report.maybe_twice, report
    unsure = [w for w in report.witnesses("mail") if "EffectUnsure" in w.outcome]
    assert {w.trouble for w in unsure} >= {"notify: the process dies after it", "notify: it happens, and times out"}, (
        report
    )
