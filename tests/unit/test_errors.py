"""One family of errors, and one that user code must not catch."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from semel import errors
from semel.errors import HandlingError, SemelError, StaleIncarnation, consists_of, contains, described, errors_in

FAMILY = [e for _, e in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("error", FAMILY)
def test_every_error_is_of_the_family_and_says_what_it_is_for(error: type[BaseException]) -> None:
    assert error.__doc__
    assert issubclass(error, SemelError) or error is StaleIncarnation


def test_a_handlers_except_exception_does_not_keep_a_zombie_alive() -> None:
    with pytest.raises(StaleIncarnation):
        try:
            raise StaleIncarnation("over")
        except Exception:
            pytest.fail("it was caught")


def test_a_handler_can_catch_what_it_did_wrong_by_one_name() -> None:
    wrong = {"AmbiguousResult", "OutputRefused", "OutsideEvent", "WrongPartition"}
    assert {e.__name__ for e in FAMILY if issubclass(e, HandlingError)} == wrong | {"HandlingError"}


class Hollow(ExceptionGroup[Exception]):
    """Its class answers what is asked of a group, and wrongly."""

    @property
    def exceptions(self) -> Any:
        return ()


class Endless(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        return (self, OSError())


def test_a_group_is_the_errors_in_it_in_their_order_and_what_tells_of_none_is_itself() -> None:
    one, two, three = ValueError("one"), OSError("two"), KeyError("three")
    group = BaseExceptionGroup("", [BaseExceptionGroup("", [one, two]), three])
    assert errors_in(group) == (one, two, three)
    assert errors_in(one) == (one,)
    for odd in (Hollow("", [one]), Endless("", [one])):
        assert errors_in(odd) == (odd,)
    assert contains(group, OSError) and contains(group, ExceptionGroup) and not contains(group, SystemExit)
    assert consists_of(group, Exception) and consists_of(group, ExceptionGroup) and not consists_of(group, OSError)


def test_a_group_says_what_the_first_error_in_it_is() -> None:
    group = ExceptionGroup("unhandled errors in a TaskGroup", [ValueError("no such account"), OSError()])
    assert described(group) == (
        "ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions): ValueError: no such account"
    )
