"""The reference pipelines, tested as their owners would: without Kafka, on the engine that runs them in production."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import islice
from random import Random
from typing import Any

import pytest

from agents.flights import FlightEvent, LateFlight
from agents.settle import Payment, Settlement
from feeds import flights as flights_feed
from feeds import payments as payments_feed
from feeds.flights import Kind
from feeds.record import Record
from feeds.redelivery import LATEST_MS, redeliver
from feeds.truth import FlightsTruth, PaymentsTruth, compare, compare_outputs
from pipelines import flights, payments
from semel.testing import PipelineTester
from tables.flights import Delays

TesterOf = Callable[..., PipelineTester]


# -- payments


def test_a_second_charge_is_dropped(tester_of: TesterOf) -> None:
    tester = tester_of(payments.pipeline)
    tester.send(Payment("p1", "anna", 10), key="anna")
    tester.send(Payment("p1", "anna", 10), key="anna")
    assert [output.value for output in tester.outputs()] == [Settlement("p1", "anna", 10)]
    assert tester.tables["balances"] == {"anna": 10}
    assert tester.counts.duplicates == 1


def test_another_amount_under_a_known_id_is_quarantined(tester_of: TesterOf) -> None:
    tester = tester_of(payments.pipeline)
    tester.send(Payment("p1", "anna", 10), key="anna")
    tester.send(Payment("p1", "anna", 1_000), key="anna")
    assert [(letter.reason, letter.value.amount) for letter in tester.dead_letters()] == [("conflict", 1_000)]
    assert tester.tables["balances"]["anna"] == 10


def test_a_payment_that_is_keyed_by_something_else_is_refused(tester_of: TesterOf) -> None:
    tester = tester_of(payments.pipeline)
    tester.send(Payment("p1", "anna", 10), key="anna")
    tester.send(Payment("p2", "anna", 10), key="p2")
    [letter] = tester.dead_letters()
    assert "WrongPartition: table 'balances'" in letter.error
    assert tester.tables["balances"]["anna"] == 10


@pytest.mark.parametrize(
    "point", ["barrier.after_seal", "commit.after_produce", "commit.after_end", "commit.before_store"]
)
def test_no_payment_counts_twice_when_a_worker_dies_at(tester_of: TesterOf, point: str) -> None:
    tester = tester_of(payments.pipeline)
    tester.send(Payment("p1", "anna", 10), key="anna")
    tester.crash(at=point)
    tester.send(Payment("p2", "anna", 5), key="anna")
    tester.redeliver()
    assert [output.value.balance for output in tester.outputs()] == [10, 15]
    assert tester.tables["balances"]["anna"] == 15


def test_an_account_is_known_when_the_disk_is_lost(tester_of: TesterOf) -> None:
    tester = tester_of(payments.pipeline)
    tester.send_all([Payment(f"p{n}", f"account {n % 5}", n) for n in range(50)], key="account")
    before = dict(tester.tables["balances"])
    tester.crash(lose_state=True)
    assert tester.tables["balances"] == before
    tester.redeliver()
    assert tester.tables["balances"] == before
    assert tester.counts.duplicates == 50


def test_after_a_week_of_payments_an_id_may_be_used_again(tester_of: TesterOf) -> None:
    tester = tester_of(payments.pipeline)
    tester.send(Payment("p1", "anna", 10), key="anna")
    for day in range(1, 9):
        tester.advance_time(timedelta(days=1))
        tester.send(Payment(f"day {day}", "anna", 0), key="anna")
    tester.send(Payment("p1", "anna", 10), key="anna")
    assert tester.tables["balances"]["anna"] == 20


def test_one_payment_after_a_silent_week_does_not_make_ids_forgotten(tester_of: TesterOf) -> None:
    tester = tester_of(payments.pipeline)
    tester.send(Payment("p1", "anna", 10), key="anna")
    tester.advance_time(timedelta(days=8))
    tester.send(Payment("p1", "anna", 10), key="anna")
    assert tester.tables["balances"]["anna"] == 10
    assert tester.counts.duplicates == 1


def test_payments_with_redeliveries_crashes_and_rebalances_end_as_if_there_had_been_none(tester_of: TesterOf) -> None:
    made = list(payments_feed.events(3_000, seed=11, accounts=40, step_ms=60_000))
    truth = PaymentsTruth(payment for payment, _ in made)
    tester = run_with_trouble(tester_of, payments.pipeline, payments_feed.records(made), payments_feed.altered)
    assert compare("balances", truth.tables["balances"], tester.tables["balances"]) == []
    found = [(output.key, asdict(output.value)) for output in tester.outputs("settlements")]
    assert compare_outputs("settlements", truth.settlements, found) == []
    assert tester.counts.accepted == truth.events
    assert tester.counts.duplicates > 300


# -- flights


def flight(kind: Kind, *, delay: int | None = None, dest: str = "IAH", carrier: str = "UA") -> FlightEvent:
    return FlightEvent(
        f"2013-01-01T10-{carrier}-{dest}-{kind}", kind, "2013-01-01T10:15Z", carrier, 1545, "EWR", dest, delay
    )


def test_a_flight_an_hour_late_is_reported(tester_of: TesterOf) -> None:
    tester = tester_of(flights.pipeline, start=datetime(2013, 1, 2, tzinfo=UTC))
    for event in (flight("scheduled"), flight("departed", delay=70), flight("arrived", delay=61)):
        tester.send(event, key="EWR-IAH")
    assert [output.value for output in tester.outputs("late-flights")] == [
        LateFlight("2013-01-01T10-UA-IAH-arrived", "UA", 1545, "EWR", "IAH", "2013-01-01T10:15Z", 61)
    ]
    assert tester.counts.filtered == 2


def test_an_hour_is_not_late(tester_of: TesterOf) -> None:
    tester = tester_of(flights.pipeline)
    tester.send(flight("arrived", delay=60), key="EWR-IAH")
    tester.send(flight("arrived", delay=None, carrier="AA"), key="EWR-IAH")
    assert tester.outputs() == []


def test_delays_of_one_carrier_on_several_routes_are_added_up(tester_of: TesterOf) -> None:
    tester = tester_of(flights.pipeline)
    partitions = {
        tester.send(flight("arrived", delay=delay, dest=dest, carrier=carrier), key=f"EWR-{dest}").partition
        for carrier in ("UA", "AA")
        for dest, delay in (("IAH", 5), ("MIA", -3), ("SFO", 30))
    }
    assert len(partitions) > 1
    assert tester.tables["carrier_delays"] == {
        "AA": Delays(arrived=3, arrival_minutes=32),
        "UA": Delays(arrived=3, arrival_minutes=32),
    }
    assert tester.tables["route_delays"]["EWR-MIA"] == Delays(arrived=2, arrival_minutes=-6)
    assert tester.tables["airport_hour_delays"]["SFO-2013-01-01T10"].arrival_minutes == 60


def test_flights_with_redeliveries_crashes_and_rebalances_end_as_if_there_had_been_none(tester_of: TesterOf) -> None:
    made = list(islice(flights_feed.events(), 4_000))
    truth = FlightsTruth(made)
    tester = run_with_trouble(tester_of, flights.pipeline, flights_feed.records(made), flights_feed.altered)
    for table, rows in truth.tables.items():
        assert compare(table, rows, {key: asdict(row) for key, row in tester.tables[table].items()}) == []
    found = [(output.key, asdict(output.value)) for output in tester.outputs("late-flights")]
    assert compare_outputs("late-flights", truth.late_flights, found) == []
    assert tester.counts.accepted == truth.events


def run_with_trouble(
    tester_of: TesterOf, pipeline: Any, records: Iterable[Record], altered: Callable[[bytes, Random], bytes]
) -> PipelineTester:
    """All records with redeliveries, in twelve parts; before each a crash is prepared or partitions move."""
    delivered = [delivery.record for delivery in redeliver(records, seed=5, altered=altered)]
    last_ms = max(record.timestamp_ms for record in delivered)
    tester = tester_of(pipeline, start=datetime.fromtimestamp((last_ms + LATEST_MS) / 1000, UTC), workers=2)
    part = len(delivered) // 12 + 1
    points = ["barrier.after_seal", "commit.after_partitions", "commit.after_produce", "commit.after_offsets",
              "commit.after_end", "commit.before_store"]  # fmt: skip
    for number in range(12):
        if number % 2:
            tester.rebalance(1 + number % 3)
        else:
            tester.crash(at=points[number // 2], lose_state=number % 4 == 0)
        for record in delivered[number * part : (number + 1) * part]:
            tester.send(record.value, key=record.key, timestamp=record.timestamp_ms, settle=False)
        tester.settle()
    return tester
