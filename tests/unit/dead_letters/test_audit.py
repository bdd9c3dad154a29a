"""What the audit says is what is done: which letters are open follows from it and from nothing else."""

from __future__ import annotations

import pytest

from semel.dead_letters.audit import Action, Entry, Ledger, UnknownEntry, decode, hashed, history
from semel.port import TP
from tests.unit.dead_letters.letters import entry, letter

TOPIC, ID = "p.dlq", "f" * 32


def ledger(*entries: Entry) -> Ledger:
    made = Ledger(ID)
    for one in entries:
        made.add(one)
    return made


def test_an_entry_is_read_back_as_it_was_written() -> None:
    written = entry("edit", 4, 5, 6, 9, before=hashed(b"x"), after=hashed(None))
    assert decode(written.encode(), "here") == written
    assert written.count == 4
    assert [(t.partition, t.revision, t.offsets) for t in written.letters] == [(3, 1, "4-6,9")]


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"v":2}', entry("drop", 1).encode().replace(b'"drop"', b'"burn"')]
)
def test_what_another_version_wrote_is_not_guessed_at(raw: bytes) -> None:
    with pytest.raises(UnknownEntry, match=r"p-audit\[0\]@7 holds what this version"):
        decode(raw, "p-audit[0]@7")


@pytest.mark.parametrize("action", ["replay", "edit", "drop", "redirect", "forget"])
def test_a_letter_is_done_with_by_what_was_done_with_it_and_no_other_is(action: Action) -> None:
    known = ledger(entry(action, 4, 6))
    assert [known.state(letter(offset)) for offset in (3, 4, 5, 6)] == ["open", action, "open", action]
    assert known.state(letter(4, at=TP(TOPIC, 2))) == "open"
    assert known.counts == {action: 2}


def test_what_is_said_of_a_topic_that_was_there_before_says_nothing() -> None:
    assert ledger(entry("drop", 4, topic_id="0" * 32)).state(letter(4)) == "open"


def test_of_several_actions_the_last_word_counts() -> None:
    assert ledger(entry("forget", 4), entry("replay", 4)).state(letter(4)) == "forget"
    assert ledger(entry("replay", 4), entry("drop", 4)).state(letter(4)) == "drop"


def test_an_archived_group_comes_back_with_a_letter_after_it() -> None:
    known = ledger(entry("archive", ends={"3": 10}))
    assert [known.state(letter(offset)) for offset in (9, 10)] == ["archived", "open"]
    assert known.state(letter(0, at=TP(TOPIC, 4))) == "open", "a partition that was not there then"
    assert known.state(letter(9, fingerprint="other")) == "open"


def test_a_letters_history_is_what_is_about_it() -> None:
    entries = [
        entry("replay", 3, 4, 5),
        entry("drop", 6),
        entry("archive", ends={}),
        entry("replay", 4, topic_id="0" * 32),
    ]
    assert [one.action for one in history(entries, ID, letter(4))] == ["replay", "archive"]


def test_contents_stand_in_it_as_hashes_only() -> None:
    assert hashed(b"account-1") not in ("", "account-1")
    assert hashed(None) == ""
    assert b"account-1" not in entry("forget", 1, key=hashed(b"account-1")).encode()
