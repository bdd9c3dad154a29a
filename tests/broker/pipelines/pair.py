"""Two tables of one pipeline with the same keys and different rows. Named by `PIPELINE`."""

from __future__ import annotations

import os
from datetime import timedelta

from semel import Dedup, Pipeline, Table, Topic

NAME = os.environ["PIPELINE"]

balances = Table("balances", key=str, value=int, default=int)
latest = Table("latest", key=str, value=str, default="")


def settle(payment: dict[str, object]) -> None:
    account = payment["account"]
    balances[account] += payment["amount"]
    latest[account] = payment["id"]


pipeline = Pipeline(
    NAME,
    source=Topic(f"{NAME}.payments", key=str, value=dict),
    dedup=Dedup("id", window=timedelta(days=7)),
    agent=settle,
    tables=[balances, latest],
)
