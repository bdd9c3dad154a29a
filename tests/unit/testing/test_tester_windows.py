"""PipelineTester: how a test comes to the end of a dedup window. Each is a recipe of docs/testing.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from semel import Dedup, Pipeline, Topic
from semel.testing import PipelineTester

TesterOf = Callable[..., PipelineTester]
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Payment:
    id: str
    account: str
    amount: int


def settle(payment: Payment) -> str:
    return payment.id


def pipeline() -> Pipeline:
    return Pipeline(
        "windows-test",
        source=Topic("payments", key=str, value=Payment),
        dedup=Dedup("id", window=timedelta(days=7)),
        agent=settle,
        sink=Topic("settlements", key=str, value=str),
    )


def settled(tester: PipelineTester) -> list[str]:
    return [output.value for output in tester.outputs()]


def test_a_window_ends_by_events_that_are_no_more_than_a_window_apart(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline())
    tester.send(Payment("p1", "anna", 10), key="anna")
    tester.advance_time(5 * DAY)
    tester.send(Payment("p2", "anna", 5), key="anna")
    tester.advance_time(5 * DAY)
    tester.send(Payment("p1", "anna", 10), key="anna")
    assert settled(tester) == ["p1", "p2", "p1"]
    assert tester.counts.duplicates == 0


def test_after_a_longer_step_a_window_is_over_with_the_third_event(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline())
    tester.send(Payment("p1", "anna", 10), key="anna")
    tester.advance_time(30 * DAY)
    tester.send_all([Payment(f"later-{n}", "anna", 1) for n in range(3)], key="account")
    tester.send(Payment("p1", "anna", 10), key="anna")
    assert settled(tester) == ["p1", "later-0", "later-1", "later-2", "p1"]


def test_after_a_longer_step_one_event_alone_ends_no_window(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline())
    tester.send(Payment("p1", "anna", 10), key="anna")
    tester.advance_time(30 * DAY)
    tester.send(Payment("p1", "anna", 10), key="anna")
    assert settled(tester) == ["p1"]
    assert tester.counts.duplicates == 1


def test_events_of_another_partition_end_no_window(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline(), partitions=2)
    tester.send(Payment("p1", "anna", 10), partition=0)
    tester.advance_time(30 * DAY)
    for number in range(3):
        tester.send(Payment(f"later-{number}", "bert", 1), partition=1)
    tester.send(Payment("p1", "anna", 10), partition=0)
    assert tester.counts.duplicates == 1


def test_after_its_window_a_redelivery_is_late_and_a_fresh_timestamp_makes_a_new_event(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline())
    first = tester.send(Payment("p1", "anna", 10), key="anna")
    tester.advance_time(30 * DAY)
    tester.send_all([Payment(f"later-{n}", "anna", 1) for n in range(3)], key="account")
    tester.redeliver(first)
    assert [letter.reason for letter in tester.dead_letters()] == ["late"]
    tester.send(Payment("p1", "anna", 10), key="anna")
    assert settled(tester).count("p1") == 2
