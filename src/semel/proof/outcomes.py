"""What became of each record that no mark names: pure, over columns of a recorded history.

Nothing here decides again what the engine decided. When an event was filed is read from its mark; stream time between
two marks is known within bounds (`stream_floor`), and where the bounds leave room, the engine is believed.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semel.proof.columns import MARK, Kind, Known, Offsets, Rows, Times, Which
from semel.state.dedup_marks import DEAD

# The outcome of a mark that was trimmed: its record is there, what became of it is not.
TRIMMED = 2
NEVER = -(2**62)
# So many in a row make stream time jump (protocol rule 20).
IN_A_ROW = 3


class Rule(NamedTuple):
    """What a dedup declaration says, as far as judging needs it.

    Marks of records before `since` were made under windows of which the shortest was `least_ms`; of those before
    `hashed_from` the payload hash is another.
    """

    window_ms: int
    bucket_ms: int
    missing: str = "quarantine"
    conflict: str = "quarantine"
    late: str = "quarantine"
    since: int = 0
    least_ms: int = 0
    hashed_from: int = 0

    def protects_until(self, marks: Rows) -> Times:
        """Up to which stream time each mark was there for certain: it may have expired by a shorter window."""
        certain = np.where(marks["offset"] < self.since, min(self.least_ms, self.window_ms), self.window_ms)
        return marks["filed"] + certain


class Missing(NamedTuple):
    """Marks that are gone: below source offset `before`, of events filed before `filed_before`.

    `ahead_ms`: so far at most event times are ahead of the time that their events were filed under. `first_seen`: whether
    the source is there from where the task began, so that each of those events can be seen.
    """

    before: int
    filed_before: int
    ahead_ms: int = 0
    first_seen: bool = True


class Outcome(IntEnum):
    """What became of a record that no mark names."""

    DUPLICATE = 0
    # Or late, passed on and filtered.
    MAYBE_DUPLICATE = 1
    DROPPED = 2
    # Took effect without a mark, as its outputs say.
    PASSED = 3
    # Or dropped, or a duplicate.
    MAYBE_PASSED = 4
    UNWITNESSED = 5
    # Nothing accounts for it, and what could may be gone.
    UNLETTERED = 6
    # Compaction may have taken it before it was read.
    UNREAD = 7
    # If it was read, it may have taken effect in silence.
    MAYBE_UNREAD = 8
    # From here on a law is broken.
    LOST = 9
    LOST_UNDECODABLE = 10
    LOST_MISSING = 11
    LOST_CONFLICT = 12
    LOST_DEAD = 13
    TORN = 14
    DOUBLED = 15


LOST = [outcome for outcome in Outcome if Outcome.LOST <= outcome <= Outcome.LOST_DEAD]


# -- stream time, from below


def stream_floor(marks: Rows, records: Offsets, before_ms: int, window_ms: int) -> Times:
    """For each mark (in order of offset): what stream time was after it, at least.

    A mark filed within a window of what stream time was moved it there. One filed further ahead may have waited for
    others; only three records in a row are certain to have moved it.
    """
    filed = marks["filed"].astype(np.int64)
    highest = np.maximum.accumulate(np.concatenate((np.array([before_ms], np.int64), filed)))
    if not len(filed) or (filed <= highest[:-1] + window_ms).all():
        return highest[1:]
    floors = np.empty(len(filed), np.int64)
    place = np.searchsorted(records, marks["offset"])
    now, row, last = before_ms, [0][:0], -2
    for i, (at, where) in enumerate(zip(filed.tolist(), place.tolist(), strict=True)):
        row = [*row[1 - IN_A_ROW :], at] if where == last + 1 else [at]
        if at <= now + window_ms:
            now = max(now, at)
        elif len(row) == IN_A_ROW:
            # All of them waited, and moved it as far as the smallest; or one of them did not have to.
            now = max(now, min(row))
        last = where
        floors[i] = now
    return floors


def ceiling_at(offsets: Offsets, marks: Rows, stream_ms: int) -> Times:
    """What stream time was, at most, when the records at `offsets` were decided: no later mark is filed before it."""
    least = np.minimum.accumulate(np.append(marks["filed"].astype(np.int64), stream_ms)[::-1])[::-1]
    return least[np.searchsorted(marks["offset"], offsets, side="right")]


def floor_at(offsets: Offsets, marks: Rows, floors: Times, before_ms: int) -> Times:
    """What stream time was, at least, when the records at `offsets` were decided."""
    at = np.searchsorted(marks["offset"], offsets) - 1
    return np.where(at >= 0, floors[np.maximum(at, 0)] if len(floors) else before_ms, before_ms)


# -- what became of it


def of_unmarked(
    unmarked: Rows, known: Known, rule: Rule, gone: Missing | None, *, letters_gone: bool
) -> NDArray[np.uint8]:
    """What became of each record that is neither marked as done nor dead-lettered: an `Outcome`.

    `known`: the marks before it. `letters_gone`: what is in no log may have been dead-lettered, or dropped, all the same.
    """
    offsets, kinds, has_output = unmarked["offset"], unmarked["kind"], unmarked["output"]
    floor, ceiling = unmarked["floor"], unmarked["ceiling"]
    outcomes = np.full(len(unmarked), Outcome.LOST, np.uint8)
    keyed = kinds == Kind.KEYED
    before = known.before(unmarked["id"], offsets)
    first = known.rows[before] if len(known.rows) else np.zeros(len(unmarked), MARK)
    protected = keyed & (before >= 0) & (floor <= first["filed"] + rule.window_ms)
    over = ceiling > rule.protects_until(first)
    equal = (first["payload"] == unmarked["payload"]) | (first["offset"] < rule.hashed_from)
    dead, seen_only = first["outcome"] == DEAD, (before >= 0) & (first["outcome"] == TRIMMED)
    replayed = unmarked["revision"] > 0
    # No conflict of an edited replay, and no second effect of one that came again.
    equal |= replayed & (unmarked["edited"] | (first["revision"] > 0))
    late = keyed & (unmarked["time"] + rule.window_ms < ceiling)
    outcomes[late] = _handled(rule.late, Outcome.LOST)
    if gone is not None:
        unseen = (offsets < gone.before) | ((floor <= gone.filed_before + rule.window_ms) & (not gone.first_seen))
        # Whether an old record was late when it was decided, or had a mark that is gone, nobody knows.
        outcomes[keyed & unseen & _is(outcomes, Outcome.LOST, Outcome.DROPPED)] = Outcome.UNWITNESSED
    # Of one that was seen only, nobody knows whether it still protected.
    certain = protected & ~equal & ~(seen_only & _is(outcomes, Outcome.UNWITNESSED))
    outcomes[certain] = _handled(rule.conflict, Outcome.LOST_CONFLICT)
    outcomes[protected & equal] = np.where(dead, Outcome.LOST_DEAD, Outcome.DUPLICATE)[protected & equal]
    # One that had to be handled again has a mark of its own; late it is called only where that of its id may be over.
    outcomes[protected & ~over & dead & (unmarked["revision"] > first["revision"])] = Outcome.LOST
    if rule.late == "pass":
        # Late, and its first protected no more: for all that is known it may have been passed on.
        either = protected & over & late
        outcomes[either] = Outcome.PASSED
        outcomes[either & equal & ~dead & ~has_output] = Outcome.MAYBE_DUPLICATE
    outcomes[kinds == Kind.UNDECODABLE] = Outcome.LOST_UNDECODABLE
    outcomes[kinds == Kind.MISSING] = _handled(rule.missing, Outcome.LOST_MISSING)
    outcomes[kinds == Kind.UNTIMED] = Outcome.LOST_MISSING
    outcomes[kinds == Kind.SKIP] = Outcome.DUPLICATE
    # An output is a witness of its own.
    outcomes[has_output & _is(outcomes, Outcome.DUPLICATE)] = Outcome.DOUBLED
    outcomes[has_output & _is(outcomes, Outcome.UNWITNESSED)] = Outcome.PASSED
    outcomes[has_output & _is(outcomes, Outcome.DROPPED, *LOST)] = Outcome.TORN
    if letters_gone:
        outcomes[_is(outcomes, *LOST)] = Outcome.UNLETTERED
    outcomes[seen_only & _is(outcomes, Outcome.DUPLICATE)] = Outcome.MAYBE_DUPLICATE
    outcomes[seen_only & _is(outcomes, Outcome.DROPPED, Outcome.DOUBLED)] = Outcome.PASSED
    outcomes[~has_output & _is(outcomes, Outcome.PASSED)] = Outcome.MAYBE_PASSED
    could = _is(outcomes, Outcome.MAYBE_PASSED, Outcome.MAYBE_DUPLICATE, Outcome.UNWITNESSED)
    return np.where(unmarked["silent"], np.where(could, Outcome.MAYBE_UNREAD, Outcome.UNREAD), outcomes)


def _is(outcomes: NDArray[np.uint8], *these: Outcome) -> Which:
    return np.isin(outcomes, these)


def _handled(handling: str, quarantined: Outcome) -> Outcome:
    return {"drop": Outcome.DROPPED, "pass": Outcome.PASSED}.get(handling, quarantined)
