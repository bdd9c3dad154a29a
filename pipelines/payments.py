"""A ledger: each payment counts once, however often it is delivered."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from random import Random

from agents.settle import Payment, Settlement, settle
from semel import Dedup, Pipeline, Topic
from tables.balances import balances

pipeline = Pipeline(
    "payments",
    source=Topic("payments", key=str, value=Payment),
    dedup=Dedup("id", window=timedelta(days=7)),
    agent=settle,
    tables=[balances],
    # A ledger is kept for good: Kafka would delete settlements after a week.
    sink=Topic("settlements", key=str, value=Settlement, configs={"retention.ms": "-1"}),
)


def chaos_events(rng: Random) -> Iterator[tuple[str, Payment]]:
    """What `semel chaos` feeds it with; a payment's key is its account."""
    for number in count(1):
        account = f"account-{rng.randrange(24):02d}"
        yield account, Payment(f"payment-{number}", account, rng.randint(1, 1000))
