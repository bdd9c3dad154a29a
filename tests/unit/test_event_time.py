"""The time of an event, as its source declares it: what is taken, what is read, and what is no time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from semel.errors import DeclarationError
from semel.event_time import checked, noted, time_reader


@pytest.mark.parametrize("given", ["", 5, b"at", ["at"], timedelta(1)])
def test_what_is_neither_a_field_nor_a_function_is_refused(given: Any) -> None:
    with pytest.raises(DeclarationError, match=r"topic 't': time=.*; give a field's name, or a function of the value"):
        checked(given, "topic 't': time")


def test_a_field_a_function_or_nothing_is_taken_as_it_is_and_noted() -> None:
    def by(value: Any) -> Any:
        return value.at

    assert [checked(given, "Dedup time") for given in (None, "at", by)] == [None, "at", by]
    assert (noted("at"), noted(by)) == ("at", "callable")


def time_of(found: Any) -> int:
    read = time_reader("at")
    assert read is not None
    return read({"at": found}, None)


def test_the_event_time_is_a_datetime_its_text_or_ms() -> None:
    assert time_reader(None) is None
    assert time_of(1_700_000_000_123) == 1_700_000_000_123
    assert time_of(datetime(2023, 11, 14, 22, 13, 20, 123_999, UTC)) == 1_700_000_000_123
    assert time_of("2023-11-14T22:13:20.123Z") == 1_700_000_000_123
    assert time_of(datetime(2023, 11, 15, 0, 13, 20, 123_000, timezone(timedelta(hours=2)))) == 1_700_000_000_123
    assert time_of(datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC)) == -1


@pytest.mark.parametrize(
    ("found", "unit", "way"),
    [
        (1_764_150_000, "seconds", r"\* 1000"),
        (1_764_150_000.25, "seconds", r"\* 1000"),
        (1_764_150_000_000_000, "microseconds", "// 1000"),
        (1_764_150_000_000_000_000, "nanoseconds", "// 1000000"),
    ],
)
def test_a_time_of_our_days_in_another_unit_is_refused_with_the_way(found: float, unit: str, way: str) -> None:
    with pytest.raises(ValueError, match=f"of our days in {unit}, and time= takes ms .*{way}"):
        time_of(found)


@pytest.mark.parametrize("at", [-1, 0, 1, 86_400_000, 999_999_999, 4_200_000_000, 978_307_200_000, 4_102_444_800_000])
def test_a_time_in_ms_is_what_it_is(at: int) -> None:
    assert time_of(at) == at


def test_every_ms_of_a_datetime_counts() -> None:
    start = datetime(2023, 11, 14, tzinfo=UTC)
    first = time_of(start)
    assert [time_of(start + timedelta(milliseconds=n)) - first for n in range(2000)] == list(range(2000))


def test_a_time_without_a_zone_is_utc_whatever_the_zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    for zone in ("Pacific/Auckland", "UTC"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert time_of(datetime(2023, 11, 14, 22, 13, 20)) == 1_700_000_000_000
        assert time_of("2023-11-14T22:13:20") == 1_700_000_000_000
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    "odd", [None, "yesterday", float("nan"), float("inf"), [], "17", "1712010112345", True, 2**62, -(2**62)]
)
def test_what_is_no_time_raises(odd: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        time_of(odd)


class Tombstone:
    def __init__(self, timestamp: int) -> None:
        self.timestamp = timestamp


def test_a_tombstone_has_the_time_of_its_record() -> None:
    read = time_reader("at")
    assert read is not None
    assert read(None, Tombstone(5)) == 5
    with pytest.raises(ValueError, match="a tombstone without a timestamp has no time"):
        read(None, Tombstone(-1))


def test_a_date_without_hyphens_is_a_date() -> None:
    assert time_of("20231114") == 1_699_920_000_000


@pytest.mark.parametrize(
    ("time", "value", "words"),
    [
        ("at", {"at": None}, "time='at' gives None: the event has no time; .*time=lambda value:"),
        ("at", {}, "time='at' gives None"),
        (lambda value: value.get("at"), {}, "time=<lambda> gives None"),
        ("at", {"at": ["12:00"]}, r"\['12:00'\], of type list, is no time; give a number of ms since 1970"),
    ],
)
def test_what_is_no_time_is_named_with_its_field_and_the_way_out(time: Any, value: Any, words: str) -> None:
    read = time_reader(time)
    assert read is not None
    with pytest.raises((TypeError, ValueError), match=words):
        read(value, None)
