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
        found = self._groups.get(fingerprint)
        partition, offset = letter.at.partition, letter.offset
        first, states = self._states.setdefault(partition, (offset, array("H")))
        # Between two letters are the markers of transactions, and what others put there.
        gap = offset - first - len(states)
        if max(self.letters, gap) >= LETTERS_MAX or (found is None and len(self._groups) >= GROUPS_MAX):
            self.beyond += 1
            return
        if found is None:
            found = self._groups[fingerprint] = _Indexed(fingerprint)
            self._by_number.append(found)
            self._numbers[fingerprint] = len(self._by_number)
        self.letters += 1
        found.group.add(letter)
        found.offsets.setdefault(partition, array("q")).append(offset)
        found.times.setdefault(partition, array("q")).append(letter.last_ms)
        state = self._numbers[fingerprint]
        if self.ledger.done_by(letter):
            state |= _DONE_BIT
        else:
            found.open += 1
            found.unhidden += not self.ledger.is_archived(letter)
        states.extend(array("H", [_UNKNOWN]) * gap)
        states.append(state)

    def take(self, entry: Entry) -> None:
        """What was done."""
        self.ledger.add(entry)
        if entry.topic_id != self.topic_id:
            return
        if entry.action == "archive":
            for fingerprint in entry.groups:
                if (found := self._groups.get(fingerprint)) is not None:
                    found.unhidden = self._count_unhidden(found, self.ledger.archived[fingerprint])
        if entry.action not in DONE:
            return
        for letters in entry.letters:
            first, states = self._states.get(letters.partition, (0, array("H")))
            for offset in read(letters.offsets):
                at = offset - first
                if 0 <= at < len(states) and states[at] and not states[at] & _DONE_BIT:
                    found = self._by_number[states[at] - 1]
                    states[at] |= _DONE_BIT
                    found.open -= 1
                    hidden = self.ledger.archived.get(found.group.fingerprint, {}).get(letters.partition, 0)
                    found.unhidden -= offset >= hidden

    def _count_unhidden(self, found: _Indexed, ends: Mapping[int, int]) -> int:
        """Only what came after that: few, from the end on."""
        count = 0
        for partition, offsets in found.offsets.items():
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
                found = self._by_number[(state & ~_DONE_BIT) - 1]
                found.gone += 1
                self.letters -= 1
                if not state & _DONE_BIT:
                    hidden = self.ledger.archived.get(found.group.fingerprint, {}).get(partition, 0)
                    found.open -= 1
                    found.unhidden -= first + at >= hidden
        del states[:count]
        self._states[partition] = first + count, states
        return first + count < start and bool(states)

    # -- what is asked

    @property
    def open(self) -> int:
        return sum(found.open for found in self._groups.values())

    def groups(self, show: Show) -> list[dict[str, Any]]:
        """Those with letters of that state, the largest first. Keys, times and the version are of all its letters."""
        counted = [(self._count(found, show), found) for found in self._groups.values()]
        counted.sort(key=lambda entry: (-entry[0], entry[1].group.fingerprint))
        return [self._shown(found) | {"count": count} for count, found in counted if count]

    def group(self, fingerprint: str) -> dict[str, Any] | None:
        found = self._groups.get(fingerprint)
        return None if found is None else self._shown(found)

    def _shown(self, found: _Indexed) -> dict[str, Any]:
        letters = found.group.count - found.gone
        state = "done" if not found.open else "open" if found.unhidden else "archived"
        return {
            **found.group.to_json(), "count": letters, "open": found.open, "done": letters - found.open, "state": state
        }  # fmt: skip

    @staticmethod
    def _count(found: _Indexed, show: Show) -> int:
        if show == "done":
            return found.group.count - found.gone - found.open
        return found.open if (found.unhidden == 0) == (show == "archived") else 0

    def places(self, fingerprint: str, limit: int, *, done: bool, upto: Mapping[int, int] | None = None) -> Places:
        """Where the letters of a group stand that are done, or are not; `upto`: the `next` of the page before."""
        found = self._groups.get(fingerprint)
        if found is None:
            return Places([], None)
        left = {p: len(o) if upto is None else min(upto.get(p, 0), len(o)) for p, o in found.offsets.items()}
        places: list[tuple[int, int]] = []
        backwards = heapq.merge(*(self._backwards(found, p, n) for p, n in left.items()), reverse=True)
        for looked_at, (_, partition, at) in enumerate(backwards):
            if len(places) == limit or looked_at == LOOKED_AT_MAX:
                return Places(places, left)
            left[partition] = at
            offset = found.offsets[partition][at]
            first, _ = self._states[partition]
            if offset >= first and self._is_done(partition, offset) == done:
                places.append((partition, offset))
        return Places(places, None)

    @staticmethod
    def _backwards(found: _Indexed, partition: int, end: int) -> Iterator[tuple[int, int, int]]:
        times = found.times[partition]
        # Never earlier than what comes behind it in its partition: each run is in order, whatever clocks say.
        latest = times[end - 1] if end else 0
        for at in range(end - 1, -1, -1):
            latest = min(latest, times[at])
            yield latest, partition, at

    def positions(self, fingerprint: str) -> dict[int, array[int]]:
        """By partition where all letters of a group stand, whatever was done with them."""
        found = self._groups.get(fingerprint)
        return {} if found is None else found.offsets

    def _is_done(self, partition: int, offset: int) -> bool:
        first, states = self._states[partition]
        return 0 <= offset - first < len(states) and bool(states[offset - first] & _DONE_BIT)
