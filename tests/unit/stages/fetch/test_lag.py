"""How far behind, and how fast: what is not known is never shown as a number."""

from __future__ import annotations

from typing import Any

import pytest

from semel.port import TP
from semel.stages.fetch.fetcher import STALE_S, PartitionFetch
from semel.stages.fetch.lag import Histogram, Rate, lag, whole
from semel.state.positions import Position, TopicPosition
from semel.state.task import Task

SOURCE = TP("payments", 3)


class StoppedClock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def task_at(offset: int | None, *, done: int = 0) -> Task:
    task = Task(SOURCE.partition)
    task.topics = {SOURCE.topic: ("id", 4)}
    at = {} if offset is None else {SOURCE.topic: TopicPosition("id", 4, offset)}
    task.committed = Position(at, counts={"in": done})
    return task


def fetch_to(end: int, *, seen_at: float = 100.0) -> dict[TP, PartitionFetch]:
    fetch = PartitionFetch(SOURCE, "id", 0, [])
    fetch.saw(end, seen_at)
    return {SOURCE: fetch}


def test_lag_is_what_lies_between_the_committed_position_and_the_end() -> None:
    assert lag([task_at(40)], fetch_to(100), 100.0) == {SOURCE: 60}


def test_a_position_that_is_past_an_end_seen_before_lags_behind_nothing() -> None:
    assert lag([task_at(120)], fetch_to(100), 100.0) == {SOURCE: 0}


@pytest.mark.parametrize(
    ("task", "fetches", "now"),
    [
        (task_at(40), {}, 100.0),
        (task_at(None), fetch_to(100), 100.0),
        (task_at(40), {SOURCE: PartitionFetch(SOURCE, "id", 0, [])}, 0.0),
        (task_at(40), fetch_to(100), 100.0 + STALE_S),
    ],
    ids=["not fetched", "no position", "no end", "an end of long ago"],
)
def test_lag_is_not_known(task: Task, fetches: Any, now: float) -> None:
    assert lag([task], fetches, now) == {SOURCE: None}


def test_of_several_partitions_it_is_known_only_if_all_are() -> None:
    assert whole([1, 2, 0]) == 3
    assert whole([1, None, 2]) is None
    assert whole([]) == 0


def test_a_rate_is_of_the_time_since_it_was_asked_for_at_least_a_second_ago() -> None:
    clock: Any = StoppedClock()
    rate = Rate(clock)
    assert rate.of([task_at(0, done=50)]) == 0.0
    clock.now += 2
    assert rate.of([task_at(0, done=150)]) == 50.0
    clock.now += 0.5
    assert rate.of([task_at(0, done=999)]) == 50.0


def test_a_rate_is_never_below_nothing_when_tasks_go() -> None:
    clock: Any = StoppedClock()
    rate = Rate(clock)
    rate.of([task_at(0, done=50)])
    clock.now += 2
    assert rate.of([]) == 0.0


def test_a_histogram_counts_a_value_at_its_bound_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.add(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == 8.0
