"""The pipeline that most tests of the engine run: payments in, balances and journals by account, settlements out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from semel import Dedup, Output, Pipeline, Retry, Table, Topic
from semel.callables.kind import cannot_yield, kind_of

WINDOW = timedelta(days=7)
ATTEMPTS = 3
APP = "payments"


@dataclass
class Payment:
    id: str
    account: str
    amount: int
    # How often handling it fails before it succeeds; -1: always.
    fails: int = 0
    sleep_ms: int = 0
    # Handling it ends the process, each time.
    kills: bool = False
    # So long after it a reminder is sent, by the agents that take the stream; -1: none, -2: that with a name is cancelled.
    remind_ms: int = -1
    named: bool = False


@dataclass
class Settlement:
    id: str
    account: str
    balance: int


REMINDERS = Topic("reminders", key=str, value=Settlement)


def reminder(payment: Payment) -> Output:
    if payment.remind_ms < 0:
        return Output.cancel("reminder")
    due, name = timedelta(milliseconds=payment.remind_ms), "reminder" if payment.named else None
    return Output(Settlement(payment.id, payment.account, -2), topic=REMINDERS, at=due, name=name)


class Work:
    """What the agents do, and what they went through. Shared by all workers of a test, as the outside world is."""

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        self.handled: list[str] = []
        self.before: Callable[[Payment], Awaitable[None]] | None = None
        # Which failing events fail by not ending, instead of by an error.
        self.hangs: Callable[[Payment], bool] = lambda payment: False
        # What a failing event fails with.
        self.error: Callable[[str], BaseException] = RuntimeError

    async def attempt(self, payment: Payment) -> None:
        self.handled.append(payment.id)
        if self.before is not None:
            await self.before(payment)
        if payment.sleep_ms:
            await asyncio.sleep(payment.sleep_ms / 1000)
        if payment.fails and self.hangs(payment) and self._fails(payment):
            await asyncio.Event().wait()

    def maybe_fail(self, payment: Payment) -> None:
        if payment.fails and self._fails(payment):
            raise self.error(f"attempt {self.failures[payment.id]} at {payment.id}")

    def _fails(self, payment: Payment) -> bool:
        seen = self.failures[payment.id] = self.failures.get(payment.id, 0) + 1
        return payment.fails < 0 or seen <= payment.fails


def payments_pipeline(
    work: Work,
    *,
    style: str = "stream",
    dedup: Dedup | None = None,
    make: Callable[[tuple[Table, Table]], Any] | None = None,
    **declared: Any,
) -> Pipeline:
    """Balances by account (a value that cannot change in place), journals by account (one that can), settlements.

    A negative amount closes the account.

    `make(tables)`: another agent than the usual one.
    """
    balances = Table("balances", key=str, value=int, default=int)
    journals = Table("journals", key=str, value=list, default=list)

    def book(payment: Payment) -> Settlement | None:
        balances[payment.account] += payment.amount
        journals[payment.account].append(payment.id)
        if len(journals[payment.account]) > 20:
            del journals[payment.account][0]
        work.maybe_fail(payment)
        if payment.amount == 0:
            return None
        if payment.amount < 0:
            del balances[payment.account], journals[payment.account]
            return Settlement(payment.id, payment.account, 0)
        return Settlement(payment.id, payment.account, balances[payment.account])

    async def settle(payments: Any) -> Any:
        async for payment in payments:
            await work.attempt(payment)
            settled = book(payment)
            if payment.remind_ms != -1:
                yield reminder(payment)
            if settled is not None:
                yield settled

    async def settle_one(payment: Payment) -> Settlement | None:
        await work.attempt(payment)
        return book(payment)

    def settle_at_once(payment: Payment) -> Settlement | None:
        work.handled.append(payment.id)
        return book(payment)

    async def settle_batches(payments: Any) -> Any:
        async for batch in payments.batches():
            for payment in batch:
                await work.attempt(payment)
                settled = book(payment)
                if payment.remind_ms != -1:
                    yield reminder(payment)
                if settled is not None:
                    yield settled

    async def settle_and_return(payments: Any) -> Any:
        """Now and then it is done with its loop, and with the event in hand."""
        done = 0
        async for payment in payments:
            await work.attempt(payment)
            settled = book(payment)
            if payment.remind_ms != -1:
                yield reminder(payment)
            if settled is not None:
                yield settled
            done += 1
            if done % 7 == 0:
                return

    async def settle_stubbornly(payments: Any) -> Any:
        """It takes every error, its own cancellation included, for a reason to go on."""
        while True:
            try:
                async for payment in payments:
                    await work.attempt(payment)
                    settled = book(payment)
                    if payment.remind_ms != -1:
                        yield reminder(payment)
                    if settled is not None:
                        yield settled
            except (GeneratorExit, KeyboardInterrupt):
                raise
            except BaseException:
                pass

    agents = {"stream": settle, "coroutine": settle_one, "batches": settle_batches, "function": settle_at_once,
              "returning": settle_and_return, "stubborn": settle_stubbornly}  # fmt: skip
    retry = Retry(attempts=ATTEMPTS, first_delay=timedelta(milliseconds=20), max_delay=timedelta(milliseconds=100))
    agent = agents[style]
    if make is not None:
        agent = make((balances, journals))
    # What takes the stream and has no yield has no sink.
    sink = None if cannot_yield(agent, kind_of(agent)) else Topic("settlements", key=str, value=Settlement)
    return Pipeline(
        APP,
        source=Topic("payments", key=str, value=Payment),
        dedup=dedup or Dedup("id", window=WINDOW),
        agent=agent,
        tables=[balances, journals],
        sink=sink,
        **{"retry": retry, **declared},
    )


def declared(**changed: Any) -> Pipeline:
    """For an app whose declaration changes. Balances by account; `value`, `migrate`, `version`, `book(balances, payment)` of
    them; `extra`, another table.
    """

    def add(balances: Table, payment: Payment) -> None:
        balances[payment.account] += payment.amount

    book = changed.get("book", add)

    async def settle(payments: Any) -> Any:
        async for payment in payments:
            book(balances, payment)
            if extra is not None:
                extra[payment.account] += 1
            yield Settlement(payment.id, payment.account, 0)

    value = changed.get("value", int)
    more = {name: changed[name] for name in ("migrate", "version") if name in changed}
    balances = Table("balances", key=str, value=value, default=changed.get("default", int), **more)
    name = changed.get("extra")
    extra = Table(str(name), key=str, value=int, default=int) if name else None
    tables = [balances, extra] if extra is not None else [balances]
    rule = {"conflict": changed.get("conflict", "quarantine"), "compare": changed.get("compare")}
    dedup = Dedup(changed.get("id", "id"), window=timedelta(days=changed.get("days", 7)), **rule)
    source = Topic(changed.get("source", "payments"), key=str, value=Payment)
    sink = Topic("settlements", key=str, value=Settlement)
    return Pipeline(APP, source=source, dedup=dedup, agent=settle, tables=tables, sink=sink)
