from __future__ import annotations

import pytest

from semel.dead_letters.decisions import NotReplayable, diff, pretty, unpretty
from semel.dead_letters.editing import edit_of, form_text, form_value
from semel.dead_letters.letter import Letter
from tests.unit.dead_letters.letters import letter
from tests.unit.dead_letters.shelf import Shelf

PAYMENT = b'{"id": "p1", "account": "a1", "amount": 1}'


def dead(topic: str = "payments") -> Letter:
    found = letter(value=PAYMENT, pipeline="payments")
    return found._replace(own={**found.own, "semel.topic": topic.encode()})


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"text",
        b"two\nlines\n",
        b"\r\nas it stands",
        b"a\rb",
        b"\x00\x01",
        b"\xff\xfe",
        b"0x00",
        b"bell\x07",
        "\u202eright to left".encode(),
        b"\ttabs\n",
        b"\nfirst line empty",
    ],
)
def test_a_form_brings_back_what_it_was_given_where_nobody_touches_it(value: bytes) -> None:
    text = form_text(value)
    # As a browser does: a line break at the beginning of the area is added by the page, and lines end as HTTP's do.
    assert form_value(text.replace("\n", "\r\n"), value) == value
    assert "\x00" not in text and "\r" not in text


@pytest.mark.parametrize("number", [b"123456789012345678901234567890", b"1.10", b"-0", b"9007199254740993"])
def test_numbers_are_what_they_were_to_the_digit(number: bytes) -> None:
    value = b'{"id": "p1", "amount": %s}' % number
    assert number.decode() in pretty(value)
    assert unpretty(pretty(value), value) == value.replace(b" ", b"")
    assert diff(value, value.replace(b"p1", b"p2"))


def test_a_change_shows_what_the_dedup_id_becomes() -> None:
    plan = Shelf().plan
    edit = edit_of(plan, dead(), PAYMENT, PAYMENT.replace(b"1}", b"2}"))
    assert edit.other_id == ""
    assert [line for line in edit.changes if line[0] in "+-"][2:] == ['-  "amount": 1', '+  "amount": 2']
    other = edit_of(plan, dead(), PAYMENT, PAYMENT.replace(b"p1", b"p2"))
    assert "'p2' instead of" in other.other_id
    assert set(other.more(hold=True)) == {"before", "after", "dedup_id", "hold"}


def test_what_the_pipeline_could_not_read_is_refused() -> None:
    plan = Shelf().plan
    with pytest.raises(NotReplayable, match="not what the topic declares"):
        edit_of(plan, dead(), PAYMENT, b'{"id": "p1"}')
    with pytest.raises(NotReplayable, match="no source of"):
        edit_of(plan, dead(topic="elsewhere"), PAYMENT, PAYMENT)


def test_hex_that_is_none_is_said() -> None:
    with pytest.raises(ValueError, match="bytes in hex"):
        form_value("0xzz", b"\xff")
