"""Retry: whether, and how long after, an event that failed is tried again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from semel.errors import DeclarationError, DecodeError, OutputRefused, Reject
from semel.retry import Retry


def waits(retry: Retry, exc: BaseException, draw: float = 1.0) -> list[float]:
    found: list[float] = []
    while (delay := retry.delay_s(exc, len(found) + 1, draw)) is not None:
        found.append(delay)
    return found


def test_waits_double_up_to_the_longest() -> None:
    retry = Retry(6, timedelta(seconds=1), timedelta(seconds=5))
    assert waits(retry, OSError()) == [1, 2, 4, 5, 5]


def test_the_draw_spreads_a_wait_over_its_second_half() -> None:
    retry = Retry(2, timedelta(seconds=2))
    assert waits(retry, OSError(), 0.0) == [1.0]
    assert waits(retry, OSError(), 0.5) == [1.5]


def test_one_attempt_is_no_retry() -> None:
    assert waits(Retry(1), OSError()) == []


@pytest.mark.parametrize("then", ["dead", "hold"])
def test_what_goes_to_the_dead_letters_has_its_attempts_and_no_more(then: Any) -> None:
    assert len(waits(Retry(3, then=then), OSError())) == 2


def test_a_key_is_held_by_what_failed_and_not_by_what_is_declared_to_be_no_loss() -> None:
    retry = Retry(3, fatal=(LookupError,), transient=(OSError,), then="hold")
    assert [retry.holds(error) for error in (OSError(), ValueError(), OutputRefused())] == [True] * 3
    assert not any(retry.holds(error) for error in (Reject(), KeyError()))
    assert not Retry(3).holds(OSError())


def test_any_number_of_attempts_has_a_wait() -> None:
    retry = Retry(10**9, timedelta(milliseconds=1), timedelta(seconds=30))
    assert [retry.delay_s(OSError(), attempt, 1.0) for attempt in (1_000, 2_000, 10**8)] == [30.0] * 3
    assert Retry(10**9, timedelta(0), timedelta(0)).delay_s(OSError(), 5_000, 1.0) == 0


@pytest.mark.parametrize("exc", [Reject(), DecodeError(), OutputRefused()])
def test_what_cannot_get_better_is_not_tried_again(exc: Exception) -> None:
    assert waits(Retry(5), exc) == []


def test_fatal_errors_are_not_tried_again_and_with_transient_only_those_are() -> None:
    assert waits(Retry(3, fatal=(LookupError,)), KeyError()) == []
    assert len(waits(Retry(3, fatal=(LookupError,)), OSError())) == 2
    assert waits(Retry(3, transient=(OSError,)), KeyError()) == []
    assert len(waits(Retry(3, transient=(OSError,)), ConnectionError())) == 2
    assert waits(Retry(3, transient=(OSError,), fatal=(ConnectionError,)), ConnectionError()) == []


@pytest.mark.parametrize(
    "declared",
    [
        {"attempts": 0},
        {"attempts": "3"},
        {"first_delay": 5},
        {"max_delay": 5.0},
        {"first_delay": timedelta(seconds=-1)},
        {"first_delay": timedelta(seconds=2), "max_delay": timedelta(seconds=1)},
        {"fatal": ValueError},
        {"transient": ["OSError"]},
        {"delays": [5]},
        {"transient": (int,)},
    ],
)
def test_what_cannot_be_is_refused_where_it_is_declared(declared: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match="Retry "):
        Retry(**declared)


def test_a_list_is_as_good_as_a_tuple() -> None:
    given = Retry(fatal=[ValueError], delays=[timedelta(seconds=1)])  # pyright: ignore[reportArgumentType]
    assert given == Retry(fatal=(ValueError,), delays=(timedelta(seconds=1),))
    assert len({given, Retry(fatal=(ValueError,), delays=(timedelta(seconds=1),))}) == 1


def group(*errors: Exception) -> Exception:
    """As a TaskGroup raises it."""
    return ExceptionGroup("unhandled errors in a TaskGroup", errors)


def test_a_group_is_fatal_where_one_of_its_errors_is_and_transient_where_all_are() -> None:
    assert len(waits(Retry(3), group(OSError()))) == 2
    assert waits(Retry(3), group(OSError(), Reject())) == []
    assert waits(Retry(3, fatal=(LookupError,)), group(OSError(), KeyError())) == []
    assert len(waits(Retry(3, transient=(OSError,)), group(ConnectionError(), group(TimeoutError())))) == 2
    assert waits(Retry(3, transient=(OSError,)), group(ConnectionError(), KeyError())) == []
    assert len(waits(Retry(3, transient=(ExceptionGroup,)), group(KeyError()))) == 2
    hold = Retry(3, fatal=(LookupError,), then="hold")
    assert hold.holds(group(OSError())) and not hold.holds(group(Reject())) and not hold.holds(group(KeyError()))
    assert hold.why_final(group(KeyError())) == "among fatal="
