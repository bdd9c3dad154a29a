"""Add each flight to the delays of its carrier, route, airport and hour; report the ones an hour late."""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Literal

from tables.flights import Delays, airport_hour_delays, carrier_delays, route_delays

LATE_MINUTES = 60
SCHEDULED = Delays(scheduled=1)


@dataclass
class FlightEvent:
    """`time` is UTC, `2013-01-01T15:30Z`; `delay` in minutes, None for a diverted flight and for a schedule."""

    id: str
    kind: Literal["scheduled", "departed", "arrived"]
    time: str
    carrier: str
    flight: int
    origin: str
    dest: str
    delay: int | None


@dataclass
class LateFlight:
    """A flight that arrived more than an hour late; `delay` in minutes."""

    id: str
    carrier: str
    flight: int
    origin: str
    dest: str
    arrived: str
    delay: int


async def watch_delays(events: AsyncIterable[FlightEvent]) -> AsyncIterator[LateFlight]:
    async for event in events:
        delay = event.delay or 0
        match event.kind:
            case "scheduled":
                change, airport = SCHEDULED, event.origin
            case "departed":
                change, airport = Delays(departed=1, departure_minutes=delay), event.origin
            case "arrived":
                change, airport = Delays(arrived=1, arrival_minutes=delay), event.dest

        carrier_delays[event.carrier] += change
        route_delays[f"{event.origin}-{event.dest}"] += change
        airport_hour_delays[f"{airport}-{event.time[:13]}"] += change

        if event.kind == "arrived" and delay > LATE_MINUTES:
            yield LateFlight(event.id, event.carrier, event.flight, event.origin, event.dest, event.time, delay)
