"""Circuit breaker: what fails again and again while nothing succeeds is no event's fault, and costs no event."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from semel import Pipeline, Reject, Retry, Table, Topic
from semel.stages.agent.circuit_breaker import FIRST_PROBE_S, MOST_PROBE_S, CircuitBreaker
from semel.testing import PipelineTester

AFTER = 10
ALIKE = ("OSError", "agent.py:7")
SOON = Retry(attempts=3, first_delay=timedelta(milliseconds=100), max_delay=timedelta(seconds=2))


class Done:
    """How many events have succeeded."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> int:
        return self.count


def failing(breaker: CircuitBreaker, events: int, *, since: int = 0, now: float = 0.0) -> list[bool]:
    return [breaker.failed(("events", n), ALIKE, "OSError: down", now) for n in range(since, since + events)]


def test_it_opens_when_so_many_different_events_failed_alike_and_none_succeeded() -> None:
    breaker = CircuitBreaker(Done(), AFTER)
    assert failing(breaker, AFTER) == [*[False] * (AFTER - 1), True]
    assert breaker.open


def test_one_event_that_fails_again_and_again_opens_nothing() -> None:
    breaker = CircuitBreaker(Done(), AFTER)
    assert not any(breaker.failed(("events", 1), ALIKE, "", float(n)) for n in range(100))


def test_an_event_that_succeeds_in_between_begins_the_count_anew() -> None:
    done = Done()
    breaker = CircuitBreaker(done, AFTER)
    for n in range(100):
        assert not any(failing(breaker, AFTER - 1, since=100 * n))
        done.count += 1
    assert not breaker.open


def test_errors_that_are_not_alike_are_counted_each_for_itself() -> None:
    breaker = CircuitBreaker(Done(), AFTER)
    assert not any(breaker.failed(n, ("OSError", f"agent.py:{n % 9}"), "", 0.0) for n in range(9 * (AFTER - 1)))


def test_while_it_is_open_one_event_is_tried_more_and_more_rarely() -> None:
    breaker = CircuitBreaker(Done(), AFTER)
    failing(breaker, AFTER)
    assert breaker.wait_s(0.0) == FIRST_PROBE_S
    waits: list[float] = []
    for n in range(20):
        failing(breaker, 1, since=100 + n, now=float(n))
        waits.append(breaker.wait_s(float(n)))
    assert waits == sorted(waits) and waits[0] == 2 * FIRST_PROBE_S and waits[-1] == MOST_PROBE_S


def test_it_may_be_told_never_to_open() -> None:
    assert not any(failing(CircuitBreaker(Done(), 0), 1_000))


def test_it_begins_open_where_a_process_before_was_halted_unless_an_event_has_succeeded_in_this_one() -> None:
    done = Done()
    breaker = CircuitBreaker(done, AFTER)
    assert breaker.resume(3, "OSError: down", 5.0)
    assert breaker.open
    assert breaker.wait_s(5.0) == 0
    halted = breaker.halted("pay", 7.0)
    assert halted is not None
    assert (halted.failed, halted.error, halted.seconds) == (3, "OSError: down", 2.0)
    assert not breaker.resume(3, "OSError: down", 8.0)
    done.count = 1
    assert breaker.closes()
    assert not breaker.resume(3, "OSError: down", 9.0)
    assert not CircuitBreaker(Done(), 0).resume(3, "OSError: down", 5.0)


def test_an_event_that_succeeds_closes_it() -> None:
    done = Done()
    breaker = CircuitBreaker(done, AFTER)
    failing(breaker, AFTER)
    assert not breaker.closes()
    done.count += 1
    assert breaker.closes() and not breaker.open and breaker.wait_s(0.0) == 0.0


@pytest.fixture
def halting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tester whose agents halt, as a worker's do."""
    monkeypatch.setattr("semel.testing.deployment.HALT_AFTER", AFTER)


@dataclass
class Event:
    id: int


@dataclass
class Dependency:
    down: bool = True
    calls: int = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.down:
            raise ConnectionError("the database is down")


def pipeline(agent: Any, **declared: Any) -> PipelineTester:
    source = Topic("events", key=str, value=Event)
    return PipelineTester(Pipeline("pay", source=source, agent=agent, retry=SOON, **declared), partitions=2)


def send(t: PipelineTester, events: range) -> None:
    for n in events:
        t.send(Event(n), key=f"k{n}", settle=False)


@pytest.mark.usefixtures("halting")
def test_an_outage_dead_letters_nothing_and_everything_is_done_when_it_is_over() -> None:
    """Partitions that a worker gets come with what was done of them before: that is no success of now."""
    database = Dependency()

    def handle(event: Event) -> int:
        database()
        return event.id

    with pipeline(handle, sink=Topic("done", key=str, value=int)) as t:
        database.down = False
        send(t, range(-40, 0))
        t.settle()
        database.down, database.calls = True, 0
        send(t, range(200))
        t.advance_time(timedelta(minutes=5))
        assert not t.dead_letters() and len(t.outputs()) == 40
        assert database.calls < 200
        t.crash()
        t.advance_time(timedelta(minutes=5))
        assert not t.dead_letters()
        database.down = False
        t.advance_time(timedelta(seconds=40))
        assert sorted(out.value for out in t.outputs()) == list(range(-40, 200))


@pytest.mark.usefixtures("halting")
def test_a_table_that_is_not_listed_pours_no_topic_into_the_dead_letters() -> None:
    forgotten = Table("forgotten", key=str, value=int, default=int)

    def handle(event: Event) -> None:
        # In a branch, where it cannot be refused at the start.
        if event.id >= 0:
            forgotten[str(event.id)] += 1

    with pipeline(handle) as t:
        send(t, range(200))
        t.advance_time(timedelta(minutes=2))
        assert not t.dead_letters()


@pytest.mark.usefixtures("halting")
def test_events_that_are_rejected_are_dead_lettered_however_many_they_are() -> None:
    def handle(event: Event) -> None:
        raise Reject("never")

    with pipeline(handle) as t:
        send(t, range(50))
        t.settle()
        assert len(t.dead_letters()) == 50


@pytest.mark.usefixtures("halting")
def test_poisoned_events_among_good_ones_are_dead_lettered() -> None:
    def handle(event: Event) -> int:
        if event.id % 2:
            raise ValueError("poisoned")
        return event.id

    with pipeline(handle, sink=Topic("done", key=str, value=int)) as t:
        send(t, range(100))
        t.settle()
        assert len(t.dead_letters()) == 50 == len(t.outputs())
