"""The truth about flights, against a sample worked out by hand and against sums over the file itself."""

import csv
import io
import zipfile
from collections import defaultdict

import pytest

from feeds import flights
from feeds.truth import FlightsTruth


def event(identity, kind, time, delay, *, carrier="AA", origin="JFK", dest="LAX"):
    return {
        "id": identity,
        "kind": kind,
        "time": time,
        "carrier": carrier,
        "flight": 1,
        "origin": origin,
        "dest": dest,
        "delay": delay,
    }


# One flight 70 minutes late, one early, one cancelled, one diverted, one exactly an hour late.
SAMPLE = [
    event("a-scheduled", "scheduled", "2013-01-01T14:00Z", None),
    event("b-scheduled", "scheduled", "2013-01-01T14:30Z", None, carrier="UA", origin="EWR"),
    event("b-departed", "departed", "2013-01-01T14:25Z", -5, carrier="UA", origin="EWR"),
    event("c-scheduled", "scheduled", "2013-01-01T14:59Z", None),
    event("a-departed", "departed", "2013-01-01T15:10Z", 70),
    event("d-scheduled", "scheduled", "2013-01-01T16:00Z", None, dest="ORD"),
    event("d-departed", "departed", "2013-01-01T16:00Z", 0, dest="ORD"),
    event("b-arrived", "arrived", "2013-01-01T20:15Z", -15, carrier="UA", origin="EWR"),
    event("a-arrived", "arrived", "2013-01-01T21:05Z", 65),
    event("d-arrived", "arrived", "2013-01-01T21:30Z", None, dest="ORD"),
    event("e-arrived", "arrived", "2013-01-01T21:59Z", 60, carrier="UA"),
]


def row(scheduled, departed, arrived, departure_minutes, arrival_minutes):
    return {
        "scheduled": scheduled,
        "departed": departed,
        "arrived": arrived,
        "departure_minutes": departure_minutes,
        "arrival_minutes": arrival_minutes,
    }


def test_the_truth_about_a_sample_is_what_a_person_counts():
    truth = FlightsTruth(SAMPLE)
    assert truth.events == 11
    assert truth.tables == {
        "carrier_delays": {"AA": row(3, 2, 2, 70, 65), "UA": row(1, 1, 2, -5, 45)},
        "route_delays": {
            "JFK-LAX": row(2, 1, 2, 70, 125),
            "EWR-LAX": row(1, 1, 1, -5, -15),
            "JFK-ORD": row(1, 1, 1, 0, 0),
        },
        "airport_hour_delays": {
            "JFK-2013-01-01T14": row(2, 0, 0, 0, 0),
            "EWR-2013-01-01T14": row(1, 1, 0, -5, 0),
            "JFK-2013-01-01T15": row(0, 1, 0, 70, 0),
            "JFK-2013-01-01T16": row(1, 1, 0, 0, 0),
            "LAX-2013-01-01T20": row(0, 0, 1, 0, -15),
            "LAX-2013-01-01T21": row(0, 0, 2, 0, 125),
            "ORD-2013-01-01T21": row(0, 0, 1, 0, 0),
        },
    }
    assert truth.late_flights.by_key == {
        "JFK-LAX": [
            {
                "id": "a-arrived",
                "carrier": "AA",
                "flight": 1,
                "origin": "JFK",
                "dest": "LAX",
                "arrived": "2013-01-01T21:05Z",
                "delay": 65,
            }
        ]
    }


@pytest.fixture(scope="module")
def year():
    return FlightsTruth(flights.events())


def test_the_truth_about_the_year_is_the_sums_of_the_file(year):
    by_carrier, by_route, late = sums_of_the_file()
    assert year.tables["carrier_delays"] == by_carrier
    assert year.tables["route_delays"] == by_route
    assert len(year.late_flights) == late == 27_789


def test_airports_and_hours_add_up_to_the_carriers(year):
    for field in ("scheduled", "departed", "arrived", "departure_minutes", "arrival_minutes"):
        totals = {table: sum(row[field] for row in rows.values()) for table, rows in year.tables.items()}
        assert len(set(totals.values())) == 1, (field, totals)
    assert len(year.tables["airport_hour_delays"]) > 100_000


def sums_of_the_file():
    """Grouped from the rows of the file: no event, no time, no code of the feed but the place of the file."""
    directory = flights.data_directory()
    by_carrier = defaultdict(lambda: row(0, 0, 0, 0, 0))
    by_route = defaultdict(lambda: row(0, 0, 0, 0, 0))
    late = 0
    with zipfile.ZipFile(directory / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        for line in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")):
            for sums in (by_carrier[line["carrier"]], by_route[f"{line['origin']}-{line['dest']}"]):
                sums["scheduled"] += 1
                sums["departed"] += line["dep_time"] not in ("", "NA")
                sums["arrived"] += line["arr_time"] not in ("", "NA")
                sums["departure_minutes"] += int(line["dep_delay"]) if line["dep_delay"] not in ("", "NA") else 0
                sums["arrival_minutes"] += int(line["arr_delay"]) if line["arr_delay"] not in ("", "NA") else 0
            late += line["arr_delay"] not in ("", "NA") and int(line["arr_delay"]) > 60
    return by_carrier, by_route, late
