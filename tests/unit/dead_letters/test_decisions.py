"""Which letters are meant, what each becomes, what stands in its way, when to stop, and what an edit changes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from semel import Topic
from semel.codec import codec_for
from semel.dead_letters.audit import Ledger, hashed
from semel.dead_letters.decisions import (
    FIRST_BATCH,
    Fates,
    NotReplayable,
    Place,
    Selection,
    batch_letters,
    check_value,
    diff,
    held,
    is_source_of,
    obstacle,
    pretty,
    redirected,
    replayed,
    skipped,
    unpretty,
    unread_by_one,
)
from semel.dead_letters.letter import Letter, letter_of
from semel.partitioner import partition_of
from semel.plan import AgentKind, AgentPlan, Plan
from semel.port import TP
from semel.stages.sink.destination import TopicLimits
from semel.state import replay
from semel.state.replay import Replay
from tests.unit.dead_letters.letters import AT, Given, entry, letter

ROOMY = Place(8, TopicLimits(1_000_000, None, None, False))


# -- which


@pytest.mark.parametrize(
    ("selection", "meant"),
    [
        (Selection(), True),
        (Selection(at=(3, 0)), True),
        (Selection(at=(3, 1)), False),
        (Selection(group="ValueError@agents:settle"), True),
        (Selection(group="other"), False),
        (Selection(key=b"account-1"), True),
        (Selection(key=b"account-2"), False),
        (Selection(since_ms=6_000), True),
        (Selection(since_ms=6_001), False),
        (Selection(until_ms=6_001), True),
        (Selection(until_ms=6_000), False),
        (Selection(version="v1"), True),
        (Selection(version="v2"), False),
    ],
)
def test_a_letter_is_meant_by_what_fits(selection: Selection, meant: bool) -> None:
    assert selection.meets(letter(), Ledger("f" * 32)) == meant


def test_what_something_was_done_with_is_meant_again_only_where_that_is_said() -> None:
    ledger = Ledger("f" * 32)
    ledger.add(entry("replay", 0))
    assert not Selection(at=(3, 0)).meets(letter(), ledger)
    assert Selection(at=(3, 0), again=True).meets(letter(), ledger)


def test_an_archived_group_is_meant_where_it_is_named() -> None:
    ledger = Ledger("f" * 32)
    ledger.add(entry("archive", ends={"3": 10}))
    assert not Selection().meets(letter(), ledger)
    assert Selection(group=letter().fingerprint).meets(letter(), ledger)
    assert Selection(at=(3, 0)).meets(letter(), ledger)


# -- what a letter becomes


def test_a_replay_is_the_record_as_it_came_and_says_that_it_comes_again() -> None:
    record = replayed(letter(17), b'{"id": "1"}')
    assert (record.tp, record.timestamp, record.key, record.value) == (
        TP("payments", 3),
        1_000,
        b"account-1",
        b'{"id": "1"}',
    )
    assert list(record.headers) == [("trace", b"t"), ("semel.replay", b"1"), ("semel.letter", b"p.dlq[3]@17")]


HOLD = ("semel.hold", b"p/settle/payments[3]@12/1000")


def holding(offset: int = 17, **given: Any) -> Letter:
    one = letter(offset, **given)
    return one._replace(own={HOLD[0]: HOLD[1], **one.own})


def test_a_replay_says_which_held_key_it_is_for_and_not_which_one_it_was_for_before() -> None:
    record = replayed(holding(headers=[("trace", b"t"), ("semel.hold", b"earlier")]), b"v")
    assert [header for header in record.headers if header[0] == "semel.hold"] == [HOLD]


def test_a_key_goes_on_by_a_record_that_is_the_event_once_more_to_others_and_says_that_it_is_none() -> None:
    record = skipped(holding(), b'{"id": "1"}')
    assert record is not None
    assert (record.tp, record.key, record.value) == (TP("payments", 3), b"account-1", b'{"id": "1"}')
    assert list(record.headers) == [("semel.skip", HOLD[1]), ("semel.letter", b"p.dlq[3]@17")]
    # Its own time may be older than the topic takes.
    assert record.timestamp is None
    nothing = skipped(holding(), None)
    assert nothing is not None and nothing.value == b""
    assert skipped(letter(17), b"v") is None


def test_an_edited_letter_that_is_held_back_holds_the_key_in_the_place_of_the_other() -> None:
    record = held(holding(), b"new")
    assert letter_of(AT, Given(18, 1, record.key, record.value, record.headers)).hold == HOLD[1]


def test_what_died_again_is_replayed_under_the_next_revision() -> None:
    record = replayed(letter(17, headers=[("semel.replay", b"4"), ("semel.letter", b"x"), ("trace", b"t")]), b"v")
    assert list(record.headers) == [("trace", b"t"), ("semel.replay", b"5"), ("semel.letter", b"p.dlq[3]@17")]


def test_a_revision_that_no_mark_has_room_for_is_refused() -> None:
    with pytest.raises(NotReplayable, match="63 times"):
        replayed(letter(headers=[("semel.replay", b"63")]), b"v")


def test_an_edit_says_so_and_so_does_its_next_replay() -> None:
    record = replayed(letter(17), b"new", edited=True)
    assert replay.of(record.headers) == Replay(1, edited=True)
    assert dict(record.headers)["semel.edited"] == hashed(b'{"id": "1"}').encode()
    again = replayed(letter(18, value=b"new", headers=record.headers), b"new")
    assert replay.of(again.headers) == Replay(2, edited=True)
    assert sum(name == "semel.edited" for name, _ in again.headers) == 1


def test_a_tombstone_and_a_record_without_a_key_or_time_come_back_as_they_were() -> None:
    record = replayed(letter(key=None, value=None), None)
    assert (record.key, record.value, record.tp.partition) == (None, None, 3)


def test_what_is_no_letter_of_semels_does_not_come_back() -> None:
    with pytest.raises(NotReplayable, match="no letter"):
        replayed(letter_of(AT, Given()), b"v")


def test_a_redirected_letter_goes_where_its_key_belongs_without_what_semel_added() -> None:
    record = redirected(letter(headers=[("semel.replay", b"4"), ("trace", b"t")]), b"v", "other", 5)
    assert record.tp == TP("other", partition_of(b"account-1", 5))
    assert list(record.headers) == [("trace", b"t")]
    assert redirected(letter(key=None), b"v", "other", 2).tp == TP("other", 1)


def test_a_letter_that_is_held_takes_the_place_of_the_other_with_its_new_value() -> None:
    record = held(letter(17, headers=[("semel.replay", b"2"), ("trace", b"t")]), b"new")
    there = letter_of(record.tp, Given(40, 9_000, record.key, record.value, record.headers))
    assert (there.fingerprint, there.source, there.text("error")) == (
        letter().fingerprint,
        letter().source,
        "ValueError: no",
    )
    assert there.own["semel.held"] == b"p.dlq[3]@17"
    back = replayed(there, there.record.value)
    assert (back.tp, back.value, replay.of(back.headers)) == (TP("payments", 3), b"new", Replay(3, edited=True))


@pytest.mark.parametrize(
    ("place", "why"),
    [
        (ROOMY, ""),
        (None, "no topic 'payments'"),
        (Place(3, ROOMY.limits), "has 3 partitions, and it came from partition 3"),
        (Place(8, TopicLimits(50, None, None, False)), "max.message.bytes=50"),
        (Place(8, TopicLimits(10_000, 1_000, None, False)), "older than message.timestamp.before.max.ms"),
        (Place(8, TopicLimits(10_000, 1_000, None, True)), ""),
        (Place(8, TopicLimits(10_000, 10_000, None, False)), ""),
    ],
)
def test_what_a_broker_would_refuse_is_told_before(place: Place | None, why: str) -> None:
    found = obstacle(replayed(letter(), b"v"), place, 5_000)
    assert why in found
    assert bool(found) == bool(why)


def test_a_topic_that_several_agents_read_takes_nothing_back() -> None:
    """The one that failed would handle it, and so would those that did already."""
    topic = Topic("payments")
    agents = [AgentPlan(name, (topic,), AgentKind.FUNCTION, print) for name in ("settle", "audit")]
    assert unread_by_one(Plan("p", agents=agents[:1]), "payments") == ""
    assert "read by settle, audit" in unread_by_one(Plan("p", agents=agents), "payments")
    assert "no source of 'p' any more" in unread_by_one(Plan("p", agents=agents), "orders")


def test_a_source_record_is_the_one_that_died_only_where_place_time_and_key_are_its() -> None:
    cut = letter()
    assert is_source_of(cut, Given())
    assert not is_source_of(cut, Given(offset=13))
    assert not is_source_of(cut, Given(timestamp=1_001))
    assert not is_source_of(cut, Given(key=b"other"))
    assert is_source_of(letter(key=None), Given(key=b"any"))


# -- when to stop


@pytest.mark.parametrize(
    ("fates", "stop"),
    [
        (Fates(20, 0, 0), False),
        (Fates(20, 4, 4), False),
        (Fates(20, 5, 3), True),
        (Fates(20, 20, 10), False),
        (Fates(20, 20, 11), True),
        (Fates(1_000, 1_000, 500), False),
    ],
)
def test_it_stops_when_more_than_half_of_what_is_known_comes_back(fates: Fates, stop: bool) -> None:
    assert fates.most_come_back is stop


def test_the_first_batch_is_small_and_none_is_larger_than_a_second_may_have() -> None:
    assert batch_letters(0, 0) == FIRST_BATCH
    assert batch_letters(0, 5) == 5
    assert batch_letters(0, 0.1) == 1
    assert batch_letters(FIRST_BATCH, 100) == 100
    assert batch_letters(FIRST_BATCH, 0) == 500
    assert batch_letters(FIRST_BATCH, math.inf) == 500


# -- edits


@pytest.mark.parametrize("value", [b'{"a":1,"b":[2]}', b"text\nof two lines", b"\xff\x00", '"ä"'.encode()])
def test_what_an_editor_shows_is_read_back_as_it_was(value: bytes) -> None:
    assert unpretty(pretty(value), value) == value


def test_a_diff_says_what_changes_field_by_field() -> None:
    lines = diff(b'{"id":"1","amount":-1}', b'{"id":"1","amount":1}')
    assert [line for line in lines if line[0] in "+-" and line[1] not in "+-"] == ['-  "amount": -1', '+  "amount": 1']
    assert diff(b'{"a": 1}', b'{"a":1}') == []


def test_a_new_value_is_of_the_type_that_the_topic_declares() -> None:
    codec: Any = codec_for(dict)
    assert check_value(codec, b'{"a":1}') == {"a": 1}
    with pytest.raises(NotReplayable, match="not what the topic declares"):
        check_value(codec, b"{")
