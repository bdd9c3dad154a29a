"""Rate limit: a token bucket as a function of what was in it and of the time."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from typing import Any

import pytest

from semel.errors import DeclarationError
from semel.rate_limit import Bucket, RateLimit


def taken_at(rate: float, most: float, asked: list[float], *, tokens: float = 0.0) -> list[float]:
    """When each event is taken that is asked for at these times, one after the other."""
    bucket, now, taken = Bucket(tokens, 0.0), 0.0, list[float]()
    for at in asked:
        now = max(now, at)
        bucket = bucket.filled(rate, most, now)
        now += bucket.wait_s(rate, 1)
        bucket = bucket.filled(rate, most, now)
        assert bucket.events >= 1, "it is waited for as long as it takes"
        bucket = bucket.less(1)
        taken.append(now)
    return taken


def test_events_that_are_all_there_come_at_the_rate() -> None:
    taken = taken_at(10.0, 1.0, [0.0] * 50)
    assert taken[0] == pytest.approx(0.1)
    assert taken[-1] == pytest.approx(5.0)


def test_what_was_left_over_comes_at_once_and_no_more_than_it_holds() -> None:
    taken = taken_at(10.0, 5.0, [100.0] * 20)
    assert taken[:5] == [100.0] * 5
    assert taken[5] == pytest.approx(100.1)


@pytest.mark.parametrize("seed", range(20))
def test_in_no_span_come_more_than_the_rate_and_the_burst(seed: int) -> None:
    rng = random.Random(seed)
    rate, most = rng.choice([0.3, 7.0, 1000.0]), float(rng.randrange(1, 20))
    asked = [0.0]
    for _ in range(200):
        asked.append(asked[-1] + rng.choice([0.0, 0.0, 1 / rate, rng.expovariate(rate / 3)]))
    taken = taken_at(rate, most, asked)
    for first in range(0, len(taken), 7):
        for last in range(first, len(taken), 11):
            assert last - first + 1 <= most + rate * (taken[last] - taken[first]) + 1e-3


def test_a_clock_that_goes_back_fills_nothing_and_takes_nothing_away() -> None:
    bucket = Bucket(0.0, 10.0).filled(1.0, 5.0, 12.0)
    assert bucket.filled(1.0, 5.0, 3.0) == bucket
    assert bucket.events == 2


def test_it_holds_less_where_less_is_to_be_held() -> None:
    assert Bucket(50.0, 1.0).filled(10.0, 4.0, 1.0).events == 4


def test_without_a_rate_nothing_ever_comes() -> None:
    assert Bucket(0.0, 0.0).wait_s(0.0, 1) == math.inf
    assert Bucket(1.0, 0.0).wait_s(0.0, 1) == 0.0


def test_it_is_declared_in_events_and_a_span() -> None:
    assert RateLimit(100).per_second == 100
    assert RateLimit(90, per=timedelta(minutes=1)).per_second == 1.5
    assert RateLimit(0.5).per_second == 0.5


def test_unless_declared_a_tenth_of_a_second_comes_at_once_and_one_at_least() -> None:
    assert RateLimit(1000).at_once == 100
    assert RateLimit(3).at_once == 1
    assert RateLimit(3, burst=50).at_once == 50


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"events": 0}, "events=0; it takes a number above 0"),
        ({"events": -1}, "events=-1"),
        ({"events": True}, "events=True"),
        ({"events": math.inf}, "events=inf"),
        ({"events": math.nan}, "events=nan"),
        ({"events": "100"}, "events='100'"),
        ({"events": 1, "per": 60}, "per=60; give a timedelta above 0"),
        ({"events": 1, "per": timedelta(0)}, "per=datetime.timedelta"),
        ({"events": 1, "burst": 0}, "burst=0; it takes a whole number, one or more"),
        ({"events": 1, "burst": 1.5}, "burst=1.5"),
    ],
)
def test_what_it_cannot_be_is_refused(declared: dict[str, Any], says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        RateLimit(**declared)
