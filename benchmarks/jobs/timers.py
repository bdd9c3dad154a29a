"""Events of which each has one output, at the time that it says. For the benchmark of timers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from semel import Output, Pipeline, Topic

SOURCE, SINK = "timers-orders", "timers-reminders"


def remind(order: dict[str, Any]) -> Output:
    due = datetime.fromtimestamp(order["due_ms"] / 1000, UTC)
    return Output({"id": order["id"]}, at=due, name="reminder" if order["named"] else None)


pipeline = Pipeline(
    "timers", source=Topic(SOURCE, key=str, value=dict), agent=remind, sink=Topic(SINK, key=str, value=dict)
)
