"""What an inbox refuses before it opens a connection."""

from __future__ import annotations

import sys
from datetime import timedelta

import pytest

import semel
from semel import Inbox
from semel.errors import ConfigError, ExtraMissing, HandlingError, OutsideEvent

URL = "postgresql://nobody@localhost/none"


@pytest.mark.parametrize(
    "argument",
    [{"schema": "A"}, {"pool_size": 0}, {"timeout": timedelta(0)}, {"idle": timedelta(0)}, {"isolation": "none"}],
)
def test_what_cannot_be_is_refused(argument: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Inbox(URL, **argument)  # pyright: ignore[reportArgumentType]


def test_without_its_extra_a_name_comes_in_and_its_use_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert semel.Inbox is Inbox
    with pytest.raises(ExtraMissing, match=r"pip install 'semel\[postgres\]'") as told:
        Inbox(URL)
    assert told.value.extra == "postgres"


def test_a_call_that_names_nothing_is_refused() -> None:
    inbox = Inbox(URL)
    with pytest.raises(OutsideEvent, match="no event is in hand"):
        inbox.once("order-17")
    with pytest.raises(HandlingError, match="leave it out"):
        inbox.once(scope="a")
    with pytest.raises(ConfigError, match="positive timedelta"):
        inbox.purge(timedelta(0))
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        inbox.settle("abc", 1)
