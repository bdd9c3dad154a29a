"""The ledger of `pipelines.payments` with a window of five minutes, so that marks expire while an hour passes."""

from datetime import timedelta

from agents.settle import Payment, Settlement, settle
from semel import Dedup, Pipeline, Topic
from tables.balances import balances

SOURCE = "steady-payments"

pipeline = Pipeline(
    "steady",
    source=Topic(SOURCE, key=str, value=Payment),
    dedup=Dedup("id", window=timedelta(minutes=5)),
    agent=settle,
    tables=[balances],
    sink=Topic(
        "steady-settlements",
        key=str,
        value=Settlement,
        configs={"retention.bytes": "100000000", "segment.bytes": "20000000"},
    ),
)
