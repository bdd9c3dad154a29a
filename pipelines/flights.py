"""Delays of the flights that left New York in 2013, and a report of each that arrived more than an hour late."""

from collections.abc import Iterator
from datetime import timedelta
from random import Random

from agents.flights import FlightEvent, LateFlight, watch_delays
from semel import Dedup, Pipeline, Topic
from tables.flights import airport_hour_delays, carrier_delays, route_delays

pipeline = Pipeline(
    "flights",
    source=Topic("flights", key=str, value=FlightEvent),
    # The latest redelivery comes after 36 hours, and in up to 32 partitions none is silent for more than a day:
    # within a week on both counts, so that no event is late and stream time never jumps.
    dedup=Dedup("id", window=timedelta(days=7)),
    agent=watch_delays,
    tables=[carrier_delays, route_delays, airport_hour_delays],
    # A report keeps the time of its flight, and Kafka's retention would delete what is of 2013.
    sink=Topic("late-flights", key=str, value=LateFlight, configs={"retention.ms": "-1"}),
)


def chaos_events(rng: Random) -> Iterator[tuple[str, FlightEvent]]:
    """What `semel chaos` feeds it with; a flight's key is its route."""
    airports = ("EWR", "JFK", "LGA", "IAH", "ORD", "SFO")
    number = 0
    while True:
        number += 1
        origin, dest = rng.sample(airports, 2)
        kind = rng.choice(("scheduled", "departed", "arrived"))
        delay = None if kind == "scheduled" else rng.randint(-20, 120)
        time = f"2013-01-01T{number // 60 % 24:02d}:{number % 60:02d}Z"
        event = FlightEvent(f"flight-{number}", kind, time, rng.choice(("UA", "DL")), 100, origin, dest, delay)
        yield f"{origin}-{dest}", event
