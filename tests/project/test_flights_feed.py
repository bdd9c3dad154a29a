"""The year of flights as events: numbers, ids, order and times."""

import csv
import io
import zipfile
from collections import Counter
from functools import cache
from itertools import islice, pairwise

import orjson
import pytest
from aiokafka.partitioner import murmur2

from feeds import flights


@pytest.fixture(scope="module")
def year():
    return list(flights.events())


def test_a_year_is_993360_events_of_336776_flights(year):
    kinds = Counter(event["kind"] for event in year)
    assert kinds == {"scheduled": 336_776, "departed": 336_776 - 8_255, "arrived": 336_776 - 8_713}
    assert len(year) == 993_360


def test_every_event_has_an_id_of_its_own(year):
    assert len({event["id"] for event in year}) == len(year)


def test_events_come_in_order_of_their_time(year):
    assert all(before["time"] <= after["time"] for before, after in pairwise(year))
    assert (year[0]["time"], year[-1]["time"]) == ("2013-01-01T10:15Z", "2014-01-01T10:53Z")


def test_no_event_is_more_than_seven_hours_behind_the_one_before(year):
    gaps = [flights.time_ms(after["time"]) - flights.time_ms(before["time"]) for before, after in pairwise(year)]
    assert max(gaps) < 7 * 3_600_000


@pytest.mark.parametrize(("partitions", "hours"), [(4, 8), (32, 24)])
def test_no_partition_is_silent_for_long(year, partitions, hours):
    newest = {}
    longest_ms = 0
    partition_of = cache(lambda key: (murmur2(key) & 0x7FFFFFFF) % partitions)
    for record in flights.records(year):
        partition = partition_of(record.key)
        longest_ms = max(longest_ms, record.timestamp_ms - newest.get(partition, record.timestamp_ms))
        newest[partition] = record.timestamp_ms
    assert len(newest) == partitions
    assert longest_ms <= hours * 3_600_000


def test_the_year_has_16_carriers_and_224_routes(year):
    assert len({event["carrier"] for event in year}) == 16
    assert len({(event["origin"], event["dest"]) for event in year}) == 224


def test_717_diverted_flights_arrive_without_a_delay(year):
    assert sum(event["delay"] is None for event in year if event["kind"] == "arrived") == 717


def test_every_call_gives_the_same_events(year):
    assert list(islice(flights.events(), 5_000)) == year[:5_000]


def test_the_first_departure_of_the_file_has_the_times_it_had():
    # 2013-01-01, United 1545, Newark to Houston: 5:17 for 5:15 in New York, at 8:30 in Houston, an hour behind.
    first = next(flights.read_flights(flights.data_directory()))
    assert flights.time_text(first.scheduled) == "2013-01-01T10:15Z"
    assert first.departed is not None and flights.time_text(first.departed) == "2013-01-01T10:17Z"
    assert first.arrived is not None and flights.time_text(first.arrived) == "2013-01-01T14:30Z"
    assert (first.departure_delay, first.arrival_delay) == (2, 11)


def test_a_flight_is_on_its_way_for_as_long_as_it_was_in_the_air_plus_minutes_on_the_ground():
    """The file's air time, which the feed does not use, confirms every time zone and every daylight saving shift."""
    directory = flights.data_directory()
    on_the_ground = []
    for flight, row in zip(flights.read_flights(directory), rows_of_the_file(directory), strict=True):
        if row["air_time"] not in ("", "NA"):
            assert flight.arrived is not None and flight.departed is not None
            on_the_ground.append(flight.arrived - flight.departed - int(row["air_time"]))
    assert len(on_the_ground) == 327_346
    assert min(on_the_ground) >= 5
    assert max(on_the_ground) < 4 * 60


def test_a_record_has_the_route_as_key_and_the_event_time_as_timestamp(year):
    record = next(flights.records(year))
    event = orjson.loads(record.value)
    assert event == year[0]
    assert record.key.decode() == f"{event['origin']}-{event['dest']}"
    assert record.timestamp_ms == flights.time_ms("2013-01-01T10:15Z") == 1_357_035_300_000


def test_missing_data_is_said_with_the_way_out(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"\./dev install"):
        next(flights.events())


def rows_of_the_file(directory):
    with zipfile.ZipFile(directory / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        yield from csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""))
