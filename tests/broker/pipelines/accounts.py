"""What pipelines of this folder have in common: payments in, balances by account, settlements out. Named by `PIPELINE`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from semel import Dedup, Pipeline, Retry, Table, Topic

NAME = os.environ["PIPELINE"]
WINDOW = timedelta(days=7)

balances = Table("balances", key=str, value=int, default=int)


@dataclass
class Settlement:
    id: str
    account: str
    balance: int


def pipeline_of(
    settle: Any, payment: type, *, settlement: type = Settlement, attempts: int, **declared: Any
) -> Pipeline:
    """`declared`: what is to be otherwise."""
    usual: dict[str, Any] = {
        "dedup": Dedup("id", window=WINDOW),
        "sink": Topic(f"{NAME}.settlements", key=str, value=settlement),
        "retry": Retry(attempts=attempts, first_delay=timedelta(milliseconds=50)),
    }
    return Pipeline(
        NAME,
        source=Topic(f"{NAME}.payments", key=str, value=payment),
        agent=settle,
        tables=[balances],
        **{**usual, **declared},
    )


def note(payment: Any) -> None:
    """A line for this run of its handler, in the file that `RUNS` names."""
    with Path(os.environ.get("RUNS", os.devnull)).open("a") as runs:
        runs.write(f"{payment.id}\n")
