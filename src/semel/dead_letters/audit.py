"""Audit: who did what with which dead letters, when and why, as `{pipeline}-audit` has it; and what follows for each. Pure.

A record is of a batch of letters, and holds none of their content: of ids, keys and values it has hashes. Which letters are open
is what is left when all records have been read.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import orjson

from semel.dead_letters.letter import Letter
from semel.dead_letters.offset_set import OffsetSet, holds, read, written
from semel.errors import SemelError

Action = Literal["replay", "edit", "drop", "redirect", "archive", "forget"]
ACTIONS: tuple[Action, ...] = get_args(Action)
# After these a letter is done with: its event went on its way, or is given up for good.
DONE = frozenset(ACTIONS) - {"archive"}
# How a letter is called that something was done with. The others are called what they are: open, archived.
_CALLED = {"replay": "replayed", "edit": "edited", "drop": "dropped", "redirect": "redirected", "forget": "forgotten"}
# Letters of an entry: a record of them is a few KB, and a million letters some hundreds of records.
ENTRY_LETTERS = 5_000
_FORMAT = 1


def called(state: str) -> str:
    """The state of a letter for a person: `replayed`, where programs are told `replay`."""
    return _CALLED.get(state, state)


class UnknownEntry(SemelError):
    """The audit holds what this version cannot read."""


@dataclass(frozen=True, slots=True)
class Touched:
    """Letters of one partition of the dead-letter topic. `revision`: with which they were replayed, else 0."""

    partition: int
    revision: int
    offsets: str


@dataclass(frozen=True, slots=True)
class Entry:
    """`id`: its own, by which a commit of unknown end is found. `topic`, `topic_id`: the dead-letter topic that the offsets are
    of. `groups`: how many letters of which fingerprint. `more`: what is to be said of this action: `to`, `before`, `after`,
    `dedup_id`, `key`, `ends`.
    """

    action: Action
    at_ms: int
    by: str
    reason: str
    topic: str
    topic_id: str
    letters: tuple[Touched, ...] = ()
    groups: Mapping[str, int] = field(default_factory=dict[str, int])
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])
    id: str = ""

    @property
    def count(self) -> int:
        return sum(self.groups.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "v": _FORMAT,
            "id": self.id,
            "action": self.action,
            "at": self.at_ms,
            "by": self.by,
            "reason": self.reason,
            "topic": self.topic,
            "topic_id": self.topic_id,
            "letters": [[t.partition, t.revision, t.offsets] for t in self.letters],
            "groups": dict(self.groups),
            **({"more": dict(self.more)} if self.more else {}),
        }

    def encode(self) -> bytes:
        return orjson.dumps(self.to_json())

    def touches(self, topic_id: str, partition: int, offset: int) -> bool:
        return self.topic_id == topic_id and any(
            touched.partition == partition and holds(touched.offsets, offset) for touched in self.letters
        )


def decode(raw: bytes, where: str) -> Entry:
    """UnknownEntry."""
    try:
        row = orjson.loads(raw)
        if row["v"] != _FORMAT or row["action"] not in ACTIONS:
            raise ValueError(f"format {row['v']}, action {row['action']}")
        letters = tuple(Touched(int(p), int(r), str(o)) for p, r, o in row["letters"])
        return Entry(
            row["action"], int(row["at"]), str(row["by"]), str(row["reason"]), str(row["topic"]), str(row["topic_id"]),
            letters, dict(row["groups"]), dict(row.get("more", {})), str(row["id"]),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError) as exc:
        raise UnknownEntry(
            f"{where} holds what this version of semel does not know ({exc}): which letters are done cannot be said; use the "
            "version that wrote it"
        ) from exc


def touched(letters: Iterable[tuple[Letter, int]]) -> tuple[Touched, ...]:
    """Letters in the order of their offsets, each with the revision that it was replayed with."""
    by_place: dict[tuple[int, int], list[int]] = {}
    for letter, revision in letters:
        by_place.setdefault((letter.at.partition, revision), []).append(letter.offset)
    return tuple(Touched(partition, revision, written(offsets)) for (partition, revision), offsets in by_place.items())


def groups_of(letters: Iterable[Letter]) -> dict[str, int]:
    return dict(Counter(letter.fingerprint for letter in letters))


def hashed(content: bytes | None) -> str:
    """By it somebody who has the content finds it in the audit, and nobody gets the content from there."""
    return "" if content is None else hashlib.sha256(content).hexdigest()


class Ledger:
    """What the entries so far have done with the letters of one topic; of bounded size however many there are.

    `archived`: groups that are hidden, and up to where in each partition.
    """

    def __init__(self, topic_id: str) -> None:
        self._topic_id = topic_id
        self._done: dict[str, dict[int, OffsetSet]] = {}
        self.archived: dict[str, dict[int, int]] = {}
        self.entries = 0

    def add(self, entry: Entry) -> None:
        self.entries += 1
        if entry.topic_id != self._topic_id:
            # Of a topic that was there before: its offsets say nothing of this one.
            return
        if entry.action == "archive":
            ends = cast("Mapping[str, int]", entry.more.get("ends", {}))
            for group in entry.groups:
                self.archived[group] = {int(partition): int(end) for partition, end in ends.items()}
        if entry.action in DONE:
            by_partition = self._done.setdefault(entry.action, {})
            for letters in entry.letters:
                done = by_partition.setdefault(letters.partition, OffsetSet())
                for offset in read(letters.offsets):
                    done.add(offset)

    def done_by(self, letter: Letter) -> str:
        """What was done with it, empty where nothing was. Of several the one that leaves least."""
        for action in reversed(ACTIONS):
            done = self._done.get(action, {}).get(letter.at.partition)
            if done is not None and letter.offset in done:
                return action
        return ""

    def is_forgotten(self, letter: Letter) -> bool:
        """Whether its key was. Nothing undoes that."""
        return self.done_by(letter) == "forget"

    def is_archived(self, letter: Letter) -> bool:
        """Whether its group is hidden. A letter that came after that brings the group back, from there on."""
        ends = self.archived.get(letter.fingerprint)
        return ends is not None and letter.offset < ends.get(letter.at.partition, 0)

    def state(self, letter: Letter) -> str:
        """`open`, `archived`, or what was done with it."""
        return self.done_by(letter) or ("archived" if self.is_archived(letter) else "open")

    @property
    def counts(self) -> dict[str, int]:
        return {action: sum(done.count for done in touched.values()) for action, touched in self._done.items()}


def history(entries: Iterable[Entry], topic_id: str, letter: Letter) -> Iterator[Entry]:
    """The entries that are about one letter, or its group."""
    for entry in entries:
        of_group = entry.action == "archive" and entry.topic_id == topic_id and letter.fingerprint in entry.groups
        if of_group or entry.touches(topic_id, letter.at.partition, letter.offset):
            yield entry
