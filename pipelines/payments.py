"""A ledger: each payment counts once, however often it is delivered."""

from datetime import timedelta

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
