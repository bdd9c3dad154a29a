"""Dead letters are grouped by cause, in bounded memory, whatever version wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from semel import Pipeline, Topic
from semel.dead_letters.groups import GROUPS_MAX, KEYS_MAX, Groups, Keys, Latest
from semel.dead_letters.letter import Letter, header_text, is_declared, is_of, key_of, letter_of, value_of
from semel.dead_letters.reading import position
from semel.errors import ConfigError
from semel.port import TP
from tests.unit.dead_letters.letters import AT, Given, letter


@dataclass
class Payment:
    id: str


NEW = ("semel.fingerprint", "semel.exception", "semel.trace", "semel.code_version", "semel.failed_first_at",
       "semel.failed_last_at", *(f"__dlq.errors.{n}" for n in ("topic", "partition", "offset", "group", "delivery.count",
                                                                "message")))  # fmt: skip


def test_a_group_says_how_many_since_when_and_under_which_code_first() -> None:
    groups = Groups()
    groups.add(letter(1, first_ms=3_000, now_ms=9_000, version="v2", error="ValueError: last", key=b"b"))
    groups.add(letter(2, first_ms=1_000, now_ms=2_000, version="v1"))
    groups.add(letter(3, fingerprint="KeyError@agents:settle", reason="rejected"))
    groups.add(letter(4, first_ms=2_000, now_ms=3_000, version="v3", key=None))
    most, other = groups.largest_first()
    assert most.to_json() == {
        "fingerprint": "ValueError@agents:settle",
        "count": 3,
        "reasons": {"failed": 3},
        "exceptions": {"ValueError": 3},
        "first_seen": 1_000,
        "last_seen": 9_000,
        "version": "v1",
        "keys": 2,
        "keys_exact": True,
        "example": "3@1",
        "source": "payments[3]@12",
        "error": "ValueError: last",
    }
    assert (other.count, dict(other.reasons)) == (1, {"rejected": 1})
    assert (groups.letters, groups.others) == (4, 0)


def test_letters_of_an_older_version_are_grouped_by_their_errors_first_words() -> None:
    old = [letter(n, error=f"ValueError: amount {n} of 'a{n}' is too little", without=NEW) for n in range(3)]
    assert {one.fingerprint for one in old} == {"failed@payments:ValueError-amount-of-is-too-little"}
    assert (old[0].first_ms, old[0].last_ms) == (6_000, 6_000)
    [group] = _grouped(old).largest_first()
    assert (group.count, group.version) == (3, "")


def _grouped(letters: Sequence[Letter]) -> Groups:
    groups = Groups()
    for one in letters:
        groups.add(one)
    return groups


def test_groups_past_the_limit_are_counted_together() -> None:
    groups = _grouped([letter(n, fingerprint=f"f{n}") for n in range(GROUPS_MAX + 7)] + [letter(0, fingerprint="f0")])
    assert len(groups.largest_first()) == GROUPS_MAX
    assert (groups.letters, groups.others) == (GROUPS_MAX + 8, 7)


@pytest.mark.parametrize("count", [0, 1, KEYS_MAX - 1, 5_000, 200_000])
def test_keys_are_counted_exactly_while_there_are_few(count: int) -> None:
    keys = Keys()
    for n in range(count):
        keys.add(b"key-%d" % n)
        keys.add(b"key-%d" % (n // 2))
    assert keys.exact == (count < KEYS_MAX)
    assert abs(keys.count - count) <= (0 if keys.exact else 0.1 * count)


def test_of_a_group_the_letters_seen_last_are_kept() -> None:
    latest = Latest("f", 3)
    for n in (5, 1, 9, 7, 3):
        one = letter(n, fingerprint="f", now_ms=10_000 + n)
        assert latest.takes(one)
        latest.add(one, "k")
    assert not latest.takes(letter(1, fingerprint="g"))
    assert [row["position"] for row in latest.rows()] == ["3@9", "3@7", "3@5"]
    assert latest.count == 5


def test_letters_of_another_pipeline_and_records_that_are_none_are_told_apart() -> None:
    assert is_of(letter(), "p")
    assert is_of(letter(without=["semel.pipeline"]), "p")
    assert not is_of(letter(pipeline="q"), "p")
    assert not is_of(letter_of(AT, Given()), "p")


@pytest.mark.parametrize(
    ("value", "shown", "declared"),
    [
        (b'{"id": "1"}', {"id": "1"}, True),
        (b"not json", "not json", False),
        (b"\xff\x00", "0xff00", False),
        (None, None, False),
        (b'{"ID": 1}', {"ID": 1}, False),
    ],
)
def test_values_are_shown_as_what_they_are(value: bytes | None, shown: Any, declared: bool) -> None:
    sources = {"payments": Topic("payments", key=str, value=Payment)}
    one = letter(value=value, key=b"12")
    assert (key_of(one, sources), value_of(one, sources), is_declared(one, sources)) == ("12", shown, declared)
    assert not is_declared(one, {})


def test_binary_headers_are_shown_as_the_numbers_that_they_are() -> None:
    assert header_text("kafka_dlt-original-offset", (12).to_bytes(8, "big")) == "12"
    assert header_text("x", b"\xff") == "0xff"
    assert header_text("x", None) is None


PLAN = Pipeline("p", source=Topic("payments"), agent=print).plan()


@pytest.mark.parametrize("text", ["3@17", "3:17", "[3]@17", "p.dlq[3]@17", " 3@17 "])
def test_a_position_has_several_forms(text: str) -> None:
    assert position(text, PLAN) == (TP("p.dlq", 3), 17)


def test_an_event_may_be_named_by_where_it_stands_in_the_source() -> None:
    assert position("payments[3]@17", PLAN) == (TP("payments", 3), 17)


@pytest.mark.parametrize("text", ["17", "p.dlq@17", "3@", "-1@3", "orders[3]@17"])
def test_what_is_no_position_in_the_dead_letters_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="semel dlq ls"):
        position(text, PLAN)
