from collections import Counter

import orjson
import pytest

from demos.up.feed import YEAR_EVENTS, Feed, parts
from feeds.flights import time_ms


@pytest.mark.parametrize("events", [1, 2, 3, 4, 7, 100, 5_001, YEAR_EVENTS])
def test_the_kill_is_after_some_events_and_before_others(events):
    first, until_kill = parts(events)

    assert 1 <= first <= until_kill <= events
    assert until_kill < events or events == 1
    assert until_kill - first <= 2_000


def test_a_feed_hands_out_each_event_once_and_counts_what_it_redelivers():
    feed = Feed(3_000, seed=3)
    feed.open()
    assert feed.records == 0

    records = [*feed.until(1_000)]
    assert feed.events == 1_000
    records += feed.until(1_200)
    assert feed.events == 1_200
    records += feed.until(3_000)

    assert (feed.events, feed.records) == (3_000, len(records))
    expected = feed.expected()
    first, conflicts = {}, Counter()
    for record in records:
        identity = orjson.loads(record.value)["id"]
        if first.setdefault(identity, record.value) != record.value:
            conflicts[record.key, record.value] += 1
    assert (len(first), expected.events) == (3_000, 3_000)
    assert expected.redelivered == len(records) - 3_000 > 300
    assert expected.conflicts == conflicts
    assert conflicts.total() > 0
    held = sum(sum(row[kind] for kind in ("scheduled", "departed", "arrived"))
               for row in expected.tables["carrier_delays"].values())  # fmt: skip
    assert held == 3_000


def test_the_same_seed_gives_the_same_records_in_whatever_parts():
    whole, cut = Feed(500, seed=9), Feed(500, seed=9)

    assert [*whole.until(500)] == [*cut.until(1), *cut.until(2), *cut.until(2), *cut.until(499), *cut.until(500)]


def test_the_year_has_the_events_it_is_said_to_have():
    assert Feed(10 * YEAR_EVENTS, seed=0).limit == YEAR_EVENTS == 993_360


def test_what_comes_first_is_of_the_new_year():
    feed = Feed(5, seed=1)

    times = [record.timestamp_ms for record in feed.until(5)]

    assert times[0] == min(times) >= time_ms("2013-01-01T00:00Z")
