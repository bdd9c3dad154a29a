"""What a run must end with, computed from the events alone, and the comparison with what it did end with.

Nothing of semel, of the agents or of the tables is used here: a mistake there must not be repeated here.
A truth is fed the events as they were before any redelivery, in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from feeds.flights import FlightEvent
from feeds.payments import PaymentEvent

Rows = dict[str, Any]

LATE_MINUTES = 60


@dataclass
class Outputs:
    """The values a topic must hold. Each has an `id`; within one record key they stand in the order of `by_key`."""

    by_key: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, key: str, value: dict[str, Any]) -> None:
        self.by_key[key].append(value)

    def __len__(self) -> int:
        return sum(map(len, self.by_key.values()))


class FlightsTruth:
    """Tables and outputs of `pipelines/flights.py`."""

    def __init__(self, events: Iterable[FlightEvent] = ()) -> None:
        self.events = 0
        self.tables: dict[str, Rows] = {"carrier_delays": {}, "route_delays": {}, "airport_hour_delays": {}}
        self.late_flights = Outputs()
        for event in events:
            self.add(event)

    def add(self, event: FlightEvent) -> None:
        self.events += 1
        kind, delay = event["kind"], event["delay"]
        airport = event["dest"] if kind == "arrived" else event["origin"]
        route = f"{event['origin']}-{event['dest']}"
        for table, key in (
            ("carrier_delays", event["carrier"]),
            ("route_delays", route),
            ("airport_hour_delays", f"{airport}-{event['time'][:13]}"),
        ):
            row = self.tables[table].get(key)
            if row is None:
                row = self.tables[table][key] = {
                    "scheduled": 0,
                    "departed": 0,
                    "arrived": 0,
                    "departure_minutes": 0,
                    "arrival_minutes": 0,
                }
            row[kind] += 1
            if kind == "departed" and delay is not None:
                row["departure_minutes"] += delay
            if kind == "arrived" and delay is not None:
                row["arrival_minutes"] += delay
        if kind == "arrived" and delay is not None and delay > LATE_MINUTES:
            self.late_flights.add(
                route,
                {
                    "id": event["id"],
                    "carrier": event["carrier"],
                    "flight": event["flight"],
                    "origin": event["origin"],
                    "dest": event["dest"],
                    "arrived": event["time"],
                    "delay": delay,
                },
            )


class PaymentsTruth:
    """Balances and settlements of `pipelines/payments.py`."""

    def __init__(self, payments: Iterable[PaymentEvent] = ()) -> None:
        self.events = 0
        self.tables: dict[str, Rows] = {"balances": {}}
        self.settlements = Outputs()
        for payment in payments:
            self.add(payment)

    def add(self, payment: PaymentEvent) -> None:
        self.events += 1
        account = payment["account"]
        balance = self.tables["balances"].get(account, 0) + payment["amount"]
        self.tables["balances"][account] = balance
        self.settlements.add(account, {"id": payment["id"], "account": account, "balance": balance})


Fault = Literal["lost", "doubled", "wrong", "unexpected", "out of order"]


@dataclass(frozen=True)
class Difference:
    """One way in which a run departs from the truth; `where` is a table or topic, `key` a row's or an output's."""

    fault: Fault
    where: str
    key: str
    expected: Any = None
    actual: Any = None

    def __str__(self) -> str:
        return f"{self.where}[{self.key}] {self.fault}: expected {self.expected!r}, found {self.actual!r}"


def compare(where: str, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[Difference]:
    """Rows of a table against the truth, as plain JSON values. An empty list: they are the same."""
    differences: list[Difference] = []
    for key, row in expected.items():
        if key not in actual:
            differences.append(Difference("lost", where, key, row))
        elif actual[key] != row:
            differences.append(Difference("wrong", where, key, row, actual[key]))
    differences += [Difference("unexpected", where, key, None, actual[key]) for key in actual.keys() - expected.keys()]
    return differences


def compare_outputs(where: str, expected: Outputs, actual: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Difference]:
    """Committed outputs (record key, value) in the order of their partitions against the truth, matched by `id`.

    Partitions may be interleaved: order is compared within each key only.
    """
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for key, value in actual:
        found[key].append(value)
    differences: list[Difference] = []
    for key in dict.fromkeys((*expected.by_key, *found)):
        differences += _compare_sequence(where, expected.by_key.get(key, []), found.get(key, []))
    return differences


def _compare_sequence(
    where: str, expected: Sequence[Mapping[str, Any]], actual: Sequence[Mapping[str, Any]]
) -> list[Difference]:
    if list(expected) == list(actual):
        return []
    differences: list[Difference] = []
    wanted = {value["id"]: value for value in expected}
    first: dict[str, Mapping[str, Any]] = {}
    for value in actual:
        identity = value["id"]
        if identity not in wanted:
            differences.append(Difference("unexpected", where, identity, None, value))
        elif identity in first:
            differences.append(Difference("doubled", where, identity, wanted[identity], value))
        else:
            first[identity] = value
            if value != wanted[identity]:
                differences.append(Difference("wrong", where, identity, wanted[identity], value))
    differences += [
        Difference("lost", where, identity, wanted[identity]) for identity in wanted if identity not in first
    ]
    in_order = [identity for identity in wanted if identity in first]
    for before, after in zip(in_order, first, strict=True):
        if before != after:
            differences.append(Difference("out of order", where, after, before, after))
            break
    return differences
