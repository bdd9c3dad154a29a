"""The file of what agents have in hand: what one process writes, however it ends, the next one reads, or nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from semel.memory.batch import MemoryRecord
from semel.port import TP
from semel.state.crash_notes import CODE, HOLDS, CrashNotes, Held, Left, Suspect, boot_id, read

AGENTS, TOPICS = ["settle", "audit"], ["payments", "refunds"]


def record(offset: int, timestamp: int = 1_000) -> MemoryRecord:
    return MemoryRecord(timestamp, b"k", b"v", offset=offset)


def suspect(first: int, *, crashes: int = 0, last: int | None = None) -> Suspect:
    return Suspect("settle", "payments", 0, first, first if last is None else last, 1_000, crashes)


def left(notes: CrashNotes) -> Left:
    found = read(bytes(notes.buffer))
    assert found is not None
    return found


def test_what_an_agent_is_at_is_read_as_it_was_written() -> None:
    notes = CrashNotes(AGENTS, TOPICS, boot="b1")
    assert left(notes) == Left("b1", False, 0.0, [], [])
    slot = notes.slots[1]
    notes.note(slot, TP("refunds", 3), 17, 40, 5, 12.5)
    assert left(notes).held == []
    slot[CODE] = 1
    notes.alive(14.0)
    assert left(notes) == Left("b1", False, 14.0, [Held(("audit", "refunds", 3, 17, 40, 5), 12.5)], [])
    slot[HOLDS] = 0
    assert left(notes).held == []


def test_an_end_in_order_and_one_that_was_told_are_explained() -> None:
    told, ended = CrashNotes(AGENTS, TOPICS), CrashNotes(AGENTS, TOPICS)
    told.told()
    ended.ended()
    ended.told()
    assert left(told).explained and left(ended).explained
    assert not left(CrashNotes(AGENTS, TOPICS)).explained


def test_a_process_that_began_to_die_has_died_with_what_was_in_hand_then() -> None:
    notes = CrashNotes(AGENTS, TOPICS)
    slot = notes.slots[0]
    notes.note(slot, TP("payments", 0), 17, 17, 5, 12.5)
    slot[CODE] = 1
    notes.alive(14.0)
    notes.died()
    assert notes.held() == [Held(("settle", "payments", 0, 17, 17, 5), 12.5)]
    # What comes after is its end, however orderly that is, and however long it takes.
    notes.alive(30.0)
    slot[HOLDS] = slot[CODE] = 0
    notes.told()
    notes.died()
    assert notes.held() == []
    notes.ended()
    assert (left(notes).explained, left(notes).seen) == (False, 14.0)
    assert left(notes).held == [Held(("settle", "payments", 0, 17, 17, 5), 12.5)]


def test_one_that_was_told_to_end_before_does_not_die() -> None:
    notes = CrashNotes(AGENTS, TOPICS)
    notes.told()
    notes.died()
    assert left(notes).explained
    notes.ended()
    assert left(notes).explained


def test_what_became_of_a_suspect_is_known_to_the_next_process() -> None:
    notes = CrashNotes(AGENTS, TOPICS, [suspect(1, crashes=2), suspect(2, crashes=3), suspect(3, last=9)])
    first, second, _ = notes.suspects
    notes.done(first)
    notes.count_anew(second)
    assert left(notes).suspects == [suspect(2), suspect(3, last=9)]
    notes.done(second)
    assert left(notes).suspects == [suspect(3, last=9)]


def test_a_record_at_the_same_place_of_a_topic_made_anew_is_another() -> None:
    assert suspect(7).includes(record(7))
    assert not suspect(7).includes(record(7, timestamp=2_000))
    assert not suspect(7).includes(record(8))
    assert suspect(7, last=9).includes(record(9, timestamp=3_000))


def test_what_is_damaged_or_of_another_version_says_nothing() -> None:
    notes = CrashNotes(AGENTS, TOPICS, [suspect(1, crashes=2)], boot="b1")
    notes.note(notes.slots[0], TP("payments", 0), 1, 1, 1_000, 0.0)
    notes.slots[0][CODE] = 1
    whole = bytes(notes.buffer)
    assert read(b"") is None
    assert read(b"semelIH9" + whole[8:]) is None
    rng = random.Random(1)
    for _ in range(2_000):
        assert read(rng.randbytes(rng.randrange(400))) is None
        assert read(whole[:8] + rng.randbytes(rng.randrange(400))) is None
        assert read(whole[: rng.randrange(len(whole))]) is None
        at = rng.randrange(len(whole))
        torn = bytearray(whole)
        torn[at] = rng.randrange(256)
        # Fields of the slot may be others: then the events are. Nothing raises.
        read(bytes(torn))


def test_a_process_that_is_killed_leaves_what_it_had_in_hand(tmp_path: Path) -> None:
    place = tmp_path / "IN_HAND"
    code = f"""
import os
from pathlib import Path
from semel.port import TP
from semel.state.crash_notes import CODE, CrashNotes
notes = CrashNotes({AGENTS!r}, {TOPICS!r}, boot="b", place=Path({str(place)!r}))
notes.note(notes.slots[0], TP("payments", 2), 5, 5, 1000, 1.5)
notes.slots[0][CODE] = 1
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    found = read(place.read_bytes())
    assert found == Left("b", False, 0.0, [Held(("settle", "payments", 2, 5, 5, 1_000), 1.5)], [])
    assert place.stat().st_mode & 0o777 == 0o600
    # The next one takes its place, whole.
    CrashNotes(AGENTS, TOPICS, [suspect(5, crashes=1)], boot="b", place=place)
    assert read(place.read_bytes()) == Left("b", False, 0.0, [], [suspect(5, crashes=1)])


def test_a_file_that_cannot_be_made_is_an_error_and_the_old_one_stays(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        CrashNotes(AGENTS, TOPICS, place=tmp_path / "nowhere" / "IN_HAND")


def test_a_machine_names_its_boot() -> None:
    assert boot_id() == boot_id() != ""
