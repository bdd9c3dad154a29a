"""Groups: dead letters of one fingerprint, summed up as they pass by. Pure, and of bounded size however many there are."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from typing import Any

from semel.dead_letters.letter import UNKNOWN, Letter, is_waited_for

# A fingerprint has nothing of the event in it, so that there are as many as there are mistakes. Letters of another version, or
# of a codec that speaks its values out, may have more: past this they are counted together.
GROUPS_MAX = 1_000
# Keys of a group are counted exactly up to here; past it by the smallest hashes, to about three in a hundred.
KEYS_MAX = 1_024
# Reasons and exceptions of a group: one each, but for letters of several versions.
KINDS_MAX = 10
_HASHES = 2**64


class Keys:
    """How many different ones there were, without keeping them: the `KEYS_MAX` smallest of their hashes say it."""

    __slots__ = ("_heap", "_known")

    def __init__(self) -> None:
        self._heap: list[int] = []
        self._known: set[int] = set()

    def add(self, key: bytes) -> None:
        hashed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())
        if hashed in self._known:
            return
        if len(self._heap) < KEYS_MAX:
            heapq.heappush(self._heap, -hashed)
            self._known.add(hashed)
        elif hashed < -self._heap[0]:
            self._known.discard(-heapq.heapreplace(self._heap, -hashed))
            self._known.add(hashed)

    @property
    def exact(self) -> bool:
        return len(self._heap) < KEYS_MAX

    @property
    def count(self) -> int:
        return len(self._heap) if self.exact else round((KEYS_MAX - 1) * _HASHES / -self._heap[0])


class Group:
    """`version`: the code under which it was seen first, empty where that is not known. `example`: the letter seen last.
    `archived`: all of its letters are; one that came after brings the others back. `holding`: how many hold their key.
    """

    __slots__ = ("archived", "count", "error", "example", "exceptions", "fingerprint", "first_ms", "holding", "keys", "last_ms",
                 "reasons", "source", "version")  # fmt: skip

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.count = self.holding = 0
        self.archived = True
        self.reasons: Counter[str] = Counter()
        self.exceptions: Counter[str] = Counter()
        self.keys = Keys()
        self.first_ms = self.last_ms = UNKNOWN
        self.version = self.error = self.example = self.source = ""

    def add(self, letter: Letter, *, archived: bool = False) -> None:
        self.count += 1
        self.archived = self.archived and archived
        self.holding += bool(letter.hold)
        _count(self.reasons, letter.text("reason"))
        if exception := letter.text("exception"):
            _count(self.exceptions, exception)
        if letter.record.key is not None:
            self.keys.add(letter.record.key)
        first, last = letter.first_ms, letter.last_ms
        if self.count == 1 or first < self.first_ms:
            self.first_ms, self.version = first, letter.text("code_version")
        if self.count == 1 or last >= self.last_ms:
            self.last_ms, self.error = last, letter.text("error")
            self.example, self.source = letter.position, letter.source

    def to_json(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "count": self.count,
            "reasons": dict(self.reasons),
            "exceptions": dict(self.exceptions),
            "first_seen": self.first_ms,
            "last_seen": self.last_ms,
            "version": self.version or None,
            "keys": self.keys.count,
            "keys_exact": self.keys.exact,
            "example": self.example,
            "source": self.source,
            "error": self.error,
        }


class Groups:
    """`others`: how many letters are of groups that there was no room for."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self.letters = 0
        self.others = 0

    def add(self, letter: Letter, *, archived: bool = False) -> None:
        self.letters += 1
        fingerprint = letter.fingerprint
        group = self._groups.get(fingerprint)
        if group is None:
            if len(self._groups) >= GROUPS_MAX:
                self.others += 1
                return
            group = self._groups[fingerprint] = Group(fingerprint)
        group.add(letter, archived=archived)

    def largest_first(self) -> list[Group]:
        return sorted(self._groups.values(), key=lambda group: (-group.count, group.fingerprint))


class Latest:
    """The letters of a group that were seen last, so many at most; without their values, which may be large."""

    def __init__(self, fingerprint: str, most: int) -> None:
        self.count = 0
        self._fingerprint = fingerprint
        self._most = most
        self._heap: list[tuple[int, TPlace, dict[str, Any]]] = []

    def add(self, letter: Letter, key: Any, state: str = "open") -> None:
        self.count += 1
        entry = (letter.last_ms, (letter.at.partition, letter.offset), row_of(letter, key, state))
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def takes(self, letter: Letter) -> bool:
        return letter.fingerprint == self._fingerprint

    def rows(self) -> list[dict[str, Any]]:
        """The last first."""
        return [row for *_, row in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


TPlace = tuple[int, int]


def row_of(letter: Letter, key: Any, state: str) -> dict[str, Any]:
    """A letter in a list: what is short of it."""
    return {
        "position": letter.position,
        "source": letter.source,
        "key": key,
        "reason": letter.text("reason"),
        "error": letter.text("error"),
        "attempts": letter.number("attempts"),
        "last_seen": letter.last_ms,
        "state": state,
        "holds_key": bool(letter.hold) and is_waited_for(state),
    }


def _count(counter: Counter[str], name: str) -> None:
    if name in counter or len(counter) < KINDS_MAX:
        counter[name] += 1
