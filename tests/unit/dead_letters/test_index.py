"""The index says at any time what reading everything anew would say."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from semel.dead_letters import index as module
from semel.dead_letters.audit import Entry, Ledger, touched
from semel.dead_letters.groups import Groups
from semel.dead_letters.index import Index
from semel.dead_letters.letter import Letter
from semel.port import TP
from tests.unit.dead_letters.letters import letter

TOPIC_ID = "f" * 32


def entry(action, letters: list[Letter], groups: list[str] | None = None, ends: dict[str, int] | None = None) -> Entry:
    counted = Counter(one.fingerprint for one in letters) if groups is None else dict.fromkeys(groups, 1)
    more = {} if ends is None else {"ends": ends}
    ordered = sorted(letters, key=lambda one: (one.at.partition, one.offset))
    return Entry(action, 5, "ada", "", "p.dlq", TOPIC_ID, touched((one, 0) for one in ordered), counted, more)


def states(there: list[Letter], ledger: Ledger) -> dict[str, Counter[str]]:
    """By group how many letters are open, archived and done, counted one by one."""
    groups = Groups()
    found: dict[str, Counter[str]] = {}
    for one in there:
        done = bool(ledger.done_by(one))
        found.setdefault(one.fingerprint, Counter())["done" if done else "open"] += 1
        if not done:
            groups.add(one, archived=ledger.is_archived(one))
    for group in groups.largest_first():
        if group.archived:
            found[group.fingerprint]["archived"] = found[group.fingerprint].pop("open")
    return found


@pytest.mark.parametrize("seed", range(30))
def test_counts_and_places_are_those_of_reading_all_letters_anew_whatever_came_in_which_order(seed: int) -> None:
    rng = random.Random(seed)
    index, ledger = Index(TOPIC_ID), Ledger(TOPIC_ID)
    log: dict[int, list[Letter]] = {p: [] for p in range(3)}
    starts = dict.fromkeys(log, 0)
    read = dict.fromkeys(log, 0)

    def read_on() -> None:
        for p, letters in log.items():
            while index.gone(p, starts[p], most=3):
                pass
            for one in letters[read[p] :]:
                if one.offset >= starts[p]:
                    index.add(one)
            read[p] = len(letters)

    for _ in range(150):
        draw = rng.random()
        partition = rng.randrange(3)
        there = [one for p in log for one in log[p] if one.offset >= starts[p]]
        if draw < 0.5:
            offset = log[partition][-1].offset + rng.randint(1, 3) if log[partition] else rng.randrange(5)
            group = f"g{rng.randrange(4)}"
            log[partition].append(
                letter(offset, fingerprint=group, now_ms=rng.randrange(10_000), at=TP("p.dlq", partition))
            )
        elif draw < 0.7:
            read_on()
        elif draw < 0.85 and there:
            done = entry(rng.choice(["replay", "drop", "edit"]), rng.sample(there, min(len(there), rng.randint(1, 4))))
            index.take(done)
            ledger.add(done)
        elif draw < 0.92:
            ends = {str(p): log[p][-1].offset + 1 for p in log if log[p]}
            hidden = entry("archive", [], [f"g{rng.randrange(4)}"], ends)
            index.take(hidden)
            ledger.add(hidden)
        elif draw < 0.95:
            starts[partition] += rng.randrange(4)
    read_on()
    there = [one for p in log for one in log[p] if one.offset >= starts[p]]
    expected = states(there, ledger)
    for show in ("open", "archived", "done"):
        said = {group["fingerprint"]: group["count"] for group in index.groups(show)}
        assert said == {group: counts[show] for group, counts in expected.items() if counts[show]}, show
    assert (index.letters, index.open) == (len(there), sum(not ledger.done_by(one) for one in there))
    for group in expected:
        for done in (False, True):
            meant = {
                (one.at.partition, one.offset)
                for one in there
                if one.fingerprint == group and bool(ledger.done_by(one)) == done
            }
            seen: list[tuple[int, int]] = []
            upto = None
            while True:
                places, upto = index.places(group, 3, done=done, upto=upto)
                seen += places
                if upto is None:
                    break
            assert len(seen) == len(meant) and set(seen) == meant


def test_a_group_has_what_its_letters_have_in_common() -> None:
    index = Index(TOPIC_ID)
    index.add(letter(1, key=b"a", first_ms=5, now_ms=9, version="v1", error="one"))
    index.add(letter(3, key=b"b", first_ms=4, now_ms=12, version="v0", error="two"))
    [group] = index.groups("open")
    assert (group["first_seen"], group["last_seen"], group["version"], group["keys"]) == (4, 12, "v0", 2)
    assert (group["error"], group["count"], group["state"]) == ("two", 2, "open")
    assert index.group("unknown") is None


def test_an_audit_of_a_topic_that_was_there_before_says_nothing_of_this_one() -> None:
    index = Index("0" * 32)
    index.add(one := letter(1))
    index.take(entry("drop", [one]))
    assert index.open == 1


def test_what_is_beyond_the_most_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LETTERS_MAX", 2)
    index = Index(TOPIC_ID)
    for offset in range(5):
        index.add(letter(offset))
    assert (index.letters, index.beyond) == (2, 3)


def test_letters_far_behind_others_of_the_topic_are_beyond_and_take_no_memory() -> None:
    index = Index(TOPIC_ID)
    for offset in (5, 6, 10**15):
        index.add(letter(offset))
    assert (index.letters, index.beyond) == (2, 1)
    assert not index.gone(3, 10**16)
    assert index.letters == 0


def test_a_page_of_a_group_nearly_all_of_which_is_done_looks_at_no_more_than_so_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOKED_AT_MAX", 10)
    index = Index(TOPIC_ID)
    there = [letter(offset) for offset in range(25)]
    for one in there:
        index.add(one)
    index.take(entry("drop", there[1:]))
    pages = []
    upto = None
    while True:
        places, upto = index.places(there[0].fingerprint, 5, done=False, upto=upto)
        pages.append(places)
        if upto is None:
            break
    assert pages == [[], [], [(3, 0)]]


def test_the_last_letters_come_first_whatever_their_partition() -> None:
    index = Index(TOPIC_ID)
    for partition, offset, at_ms in ((0, 0, 10), (0, 1, 40), (1, 0, 20), (1, 1, 30)):
        index.add(letter(offset, now_ms=at_ms, at=TP("p.dlq", partition)))
    places, upto = index.places("ValueError@agents:settle", 10, done=False)
    assert (places, upto) == ([(0, 1), (1, 1), (1, 0), (0, 0)], None)
