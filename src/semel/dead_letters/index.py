"""Index: which letters a topic holds, by group, and which of them are open; kept up to date as letters and audit come. Pure.

Some 18 bytes a letter, whatever is in it, so that a view of a million letters need not read them again.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from semel.dead_letters.audit import DONE, Entry, Ledger
from semel.dead_letters.groups import GROUPS_MAX, Group
from semel.dead_letters.letter import Letter
from semel.dead_letters.offset_set import read

Show = Literal["open", "archived", "done"]

# More are counted and not found: 72 MB of a worker's memory.
LETTERS_MAX = 4_000_000
# Looked at for one page, where nearly all of a group is done: a few milliseconds.
LOOKED_AT_MAX = 20_000
# A letter's number of its group, and whether it is done. 0: no letter of ours, or of a group beyond the most.
_DONE_BIT = 0x8000
_UNKNOWN = 0


class Places(NamedTuple):
    """Letters of a page, the last first, as partition and offset. `next`: from where to go on, None at the end."""

    places: list[tuple[int, int]]
    next: dict[int, int] | None


class _Indexed:
    """A group with where its letters stand: by partition their offsets, ascending, and when each died last."""

    __slots__ = ("gone", "group", "offsets", "open", "times", "unhidden")

    def __init__(self, fingerprint: str) -> None:
        self.group = Group(fingerprint)
        self.offsets: dict[int, array[int]] = {}
        self.times: dict[int, array[int]] = {}
        self.open = 0
        self.gone = 0
        # Open and not archived.
        self.unhidden = 0


class Index:
    """Of the topic with that id. Letters come in the order of their offsets; the audit's entries at any time."""

    def __init__(self, topic_id: str) -> None:
        self.topic_id = topic_id
        self.ledger = Ledger(topic_id)
        self.next: dict[int, int] = {}
        self.letters = self.beyond = 0
        self._groups: dict[str, _Indexed] = {}
        self._by_number: list[_Indexed] = []
        self._numbers: dict[str, int] = {}
        # By partition: the first offset, and from there on each letter's group.
        self._states: dict[int, tuple[int, array[int]]] = {}

    # -- what comes in

    def add(self, letter: Letter) -> None:
        """A letter of the pipeline's own that was not there before."""
        fingerprint = letter.fingerprint
        indexed = self._groups.get(fingerprint)
        partition, offset = letter.at.partition, letter.offset
        first, states = self._states.setdefault(partition, (offset, array("H")))
        # Between two letters are the markers of transactions, and what others put there.
        gap = offset - first - len(states)
        if max(self.letters, gap) >= LETTERS_MAX or (indexed is None and len(self._groups) >= GROUPS_MAX):
            self.beyond += 1
            return
        if indexed is None:
            indexed = self._groups[fingerprint] = _Indexed(fingerprint)
            self._by_number.append(indexed)
            self._numbers[fingerprint] = len(self._by_number)
        self.letters += 1
        indexed.group.add(letter)
        indexed.offsets.setdefault(partition, array("q")).append(offset)
        indexed.times.setdefault(partition, array("q")).append(letter.last_ms)
        state = self._numbers[fingerprint]
        if self.ledger.done_by(letter):
            state |= _DONE_BIT
        else:
            indexed.open += 1
            indexed.unhidden += not self.ledger.is_archived(letter)
        states.extend(array("H", [_UNKNOWN]) * gap)
        states.append(state)

    def take(self, entry: Entry) -> None:
        """What was done."""
        self.ledger.add(entry)
        if entry.topic_id != self.topic_id:
            return
        if entry.action == "archive":
            for fingerprint in entry.groups:
                if (indexed := self._groups.get(fingerprint)) is not None:
                    indexed.unhidden = self._count_unhidden(indexed, self.ledger.archived[fingerprint])
        if entry.action not in DONE:
            return
        for letters in entry.letters:
            first, states = self._states.get(letters.partition, (0, array("H")))
            for offset in read(letters.offsets):
                at = offset - first
                if 0 <= at < len(states) and states[at] and not states[at] & _DONE_BIT:
                    indexed = self._by_number[states[at] - 1]
                    states[at] |= _DONE_BIT
                    indexed.open -= 1
                    hidden = self.ledger.archived.get(indexed.group.fingerprint, {}).get(letters.partition, 0)
                    indexed.unhidden -= offset >= hidden

    def _count_unhidden(self, indexed: _Indexed, ends: Mapping[int, int]) -> int:
        """Only what came after that: few, from the end on."""
        count = 0
        for partition, offsets in indexed.offsets.items():
            for offset in reversed(offsets):
                if offset < ends.get(partition, 0):
                    break
                count += not self._is_done(partition, offset)
        return count

    def gone(self, partition: int, start: int, most: int = LOOKED_AT_MAX) -> bool:
        """The log begins there now: what stood before was deleted. Takes so many offsets in; whether there are more."""
        first, states = self._states.get(partition, (0, array("H")))
        count = min(start - first, len(states), most)
        if count <= 0:
            return False
        for at, state in enumerate(states[:count]):
            if state:
                indexed = self._by_number[(state & ~_DONE_BIT) - 1]
                indexed.gone += 1
                self.letters -= 1
                if not state & _DONE_BIT:
                    hidden = self.ledger.archived.get(indexed.group.fingerprint, {}).get(partition, 0)
                    indexed.open -= 1
                    indexed.unhidden -= first + at >= hidden
        del states[:count]
        self._states[partition] = first + count, states
        return first + count < start and bool(states)

    # -- what is asked

    @property
    def open(self) -> int:
        return sum(indexed.open for indexed in self._groups.values())

    def groups(self, show: Show) -> list[dict[str, Any]]:
        """Those with letters of that state, the largest first. Keys, times and the version are of all its letters."""
        counted = [(self._count(indexed, show), indexed) for indexed in self._groups.values()]
        counted.sort(key=lambda entry: (-entry[0], entry[1].group.fingerprint))
        return [self._shown(indexed) | {"count": count} for count, indexed in counted if count]

    def group(self, fingerprint: str) -> dict[str, Any] | None:
        indexed = self._groups.get(fingerprint)
        return None if indexed is None else self._shown(indexed)

    def _shown(self, indexed: _Indexed) -> dict[str, Any]:
        letters = indexed.group.count - indexed.gone
        state = "done" if not indexed.open else "open" if indexed.unhidden else "archived"
        return {
            **indexed.group.to_json(), "count": letters, "open": indexed.open, "done": letters - indexed.open, "state": state
        }  # fmt: skip

    @staticmethod
    def _count(indexed: _Indexed, show: Show) -> int:
        if show == "done":
            return indexed.group.count - indexed.gone - indexed.open
        return indexed.open if (indexed.unhidden == 0) == (show == "archived") else 0

    def places(self, fingerprint: str, limit: int, *, done: bool, upto: Mapping[int, int] | None = None) -> Places:
        """Where the letters of a group stand that are done, or are not; `upto`: the `next` of the page before."""
        indexed = self._groups.get(fingerprint)
        if indexed is None:
            return Places([], None)
        left = {p: len(o) if upto is None else min(upto.get(p, 0), len(o)) for p, o in indexed.offsets.items()}
        places: list[tuple[int, int]] = []
        backwards = heapq.merge(*(self._backwards(indexed, p, n) for p, n in left.items()), reverse=True)
        for looked_at, (_, partition, at) in enumerate(backwards):
            if len(places) == limit or looked_at == LOOKED_AT_MAX:
                return Places(places, left)
            left[partition] = at
            offset = indexed.offsets[partition][at]
            first, _ = self._states[partition]
            if offset >= first and self._is_done(partition, offset) == done:
                places.append((partition, offset))
        return Places(places, None)

    @staticmethod
    def _backwards(indexed: _Indexed, partition: int, end: int) -> Iterator[tuple[int, int, int]]:
        times = indexed.times[partition]
        # Never earlier than what comes behind it in its partition: each run is in order, whatever clocks say.
        latest = times[end - 1] if end else 0
        for at in range(end - 1, -1, -1):
            latest = min(latest, times[at])
            yield latest, partition, at

    def positions(self, fingerprint: str) -> dict[int, array[int]]:
        """By partition where all letters of a group stand, whatever was done with them."""
        indexed = self._groups.get(fingerprint)
        return {} if indexed is None else indexed.offsets

    def _is_done(self, partition: int, offset: int) -> bool:
        first, states = self._states[partition]
        return 0 <= offset - first < len(states) and bool(states[offset - first] & _DONE_BIT)
