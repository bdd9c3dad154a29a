"""One family of errors, and one that user code must not catch."""

from __future__ import annotations

import inspect

import pytest

from semel import errors
from semel.errors import HandlingError, SemelError, StaleIncarnation

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
