"""What must come of each record of the source, one after the other, by someone who knows the rules and no worker."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

import orjson
import xxhash

from semel.memory.batch import MemoryRecord
from semel.stages.agent.crash_suspects import LEAST_CRASHES
from semel.state.dedup_marks import DEAD, DONE, Mark
from semel.state.positions import COUNTS
from tests.unit.harness import Payment

JOURNAL_LENGTH = 20
IN_A_ROW = 3
HOUR_MS = 3_600_000


@dataclass(slots=True)
class Effect:
    """Of one record. `rows`: (table, key) -> the row after it. `mark`: the one it leaves, where it takes effect.

    `turn`: in which order they took effect; 0 while it waits behind an event that holds its key. `hold`: it holds its key, under
    this name. `skip`: it is no event.

    `id`: None where it has none to be known by. `attempts`: after which it is dead, where it failed. `raised`: the revision of a
    replay that takes the place of an earlier one, else 0; its mark has it from the beginning.
    """

    offset: int
    record: MemoryRecord
    id: str | None = None
    output: dict[str, Any] | None = None
    dead: str | None = None
    attempts: int = 0
    raised: int = 0
    mark: Mark | None = None
    rows: dict[tuple[str, str], Any] = field(default_factory=dict)
    turn: int = 0
    hold: str = ""
    skip: bool = False

    @property
    def counted(self) -> str:
        """As what it is counted, beside as taken in."""
        if self.skip:
            return "duplicates"
        if self.output is not None:
            return "out"
        return (
            "dead"
            if self.dead is not None
            else "filtered"
            if self.mark is not None or self.id is None
            else "duplicates"
        )


@dataclass(slots=True)
class _Mark:
    offset: int
    filed_at: int
    payload: bytes
    dead: bool
    revision: int = 0
    # While it is parked.
    raised: int = 0
    effect: Effect | None = None

    @property
    def waits(self) -> bool:
        """Nobody knows yet how its event ends: it waits behind one that holds its key."""
        return self.effect is not None and not self.effect.turn


class Oracle:
    """One partition. For events that are never ahead of the clock, and late only where they waited in the dead letters.
    `refused`: offsets that a broker refused; `followed`: of those that followed the first of their id into the dead letters, or
    wait to where all had to stop, or are in conflict with it. A replay is so that came while an earlier one was parked, which
    failed later. `conflicting`: of those the ones in conflict, by what is known of the first while it is parked.

    Not `stateful`: each event stands for itself, whatever came before. `belongs`: whether the rows of a key are of this
    partition; the source may have grown since an event was written to it.
    """

    def __init__(
        self, window_ms: int, attempts: int, refused: Set[int] = frozenset(), *, stateful: bool = True,
        belongs: Callable[[bytes | None], bool] = lambda key: True, hopeless_attempts: int = 1,
        followed: Set[int] = frozenset(), conflicting: Set[int] = frozenset(),
        hold_of: Callable[[MemoryRecord], str] | None = None,
    ) -> None:  # fmt: skip
        self._stateful = stateful
        self._belongs = belongs
        self._hopeless_attempts = hopeless_attempts
        # Without a rule there is no window: a jump is one of more than an hour.
        self._window_ms = window_ms if stateful else HOUR_MS
        self._attempts = attempts
        self._refused = refused
        self._followed = followed
        self._conflicting = conflicting
        # How a letter names the event that holds its key; None where none does.
        self._hold_of = hold_of
        self.held: dict[bytes, str] = {}
        self._behind: dict[bytes, list[tuple[Effect, Callable[[], None]]]] = {}
        self._turns = 0
        self.counts = dict.fromkeys(COUNTS, 0)
        self.stream: int | None = None
        self.pending: list[int] = []
        self.balances: dict[str, int] = {}
        self.journals: dict[str, list[str]] = {}
        self.marks: dict[str, _Mark] = {}

    def judge(self, record: MemoryRecord) -> Effect:
        """What a record that is parked for good would have done: nothing but its mark is there."""
        before = self.counts, self.balances, self.journals
        self.counts, self.balances, self.journals = map(dict, before)
        effect = self.take(record)
        self.counts, self.balances, self.journals = before
        return effect

    def take(self, record: MemoryRecord) -> Effect:
        effect, key, said = Effect(record.offset, record), record.key or b"", dict(record.headers)
        name = self.held.get(key)
        if "semel.skip" in said:
            effect.skip = True
            self._ends(effect)
            self._let_go(key, name is not None and said["semel.skip"] == name.encode())
            return effect
        in_place = name is not None and said.get("semel.hold") == name.encode()
        act = self._judged(effect, in_place)
        if act is None:
            self._ends(effect)
            self._let_go(key, in_place)
        elif name is not None and not in_place:
            self._behind.setdefault(key, []).append((effect, act))
        else:
            self.held.pop(key, None)
            self._acts(effect, act, in_place)
            self._let_go(key, key not in self.held)
        return effect

    def _ends(self, effect: Effect) -> None:
        self._turns += 1
        effect.turn = self._turns
        self.counts["in"] += 1
        self.counts[effect.counted] += 1

    def _acts(self, effect: Effect, act: Callable[[], None], in_place: bool) -> None:
        act()
        if self._hold_of is not None and (effect.dead == "failed" or (in_place and effect.dead is not None)):
            self.held[effect.record.key or b""] = effect.hold = self._hold_of(effect.record)
        self._ends(effect)

    def _let_go(self, key: bytes, over: bool) -> None:
        """Those behind go on in their order, up to the next that holds their key."""
        if not over:
            return
        self.held.pop(key, None)
        behind = self._behind.get(key, [])
        while behind and key not in self.held:
            self._acts(*behind.pop(0), in_place=False)

    def _judged(self, effect: Effect, in_place: bool) -> Callable[[], None] | None:
        """What it does in its turn; None where it is a duplicate, which has none. `in_place`: it is the replay of the event that
        holds its key."""
        record = effect.record
        try:
            payment = Payment(**orjson.loads(record.value or b""))
        except (ValueError, TypeError):
            return lambda: self._bury(effect, "undecodable")
        if record.offset in self._refused:
            return lambda: self._bury(effect, "refused")
        if not self._stateful:
            self.stream, self.pending, _ = self._moved(record.timestamp)
            return lambda: self._pass_on(effect, payment)
        effect.id = payment.id
        at = record.timestamp
        jump = self.stream is not None and at > self.stream + self._window_ms
        late = self.stream is not None and at < self.stream - self._window_ms
        stream, pending, filed_at = self._moved(at)
        mark = self.marks.get(payment.id)
        revision, edited = _comes_again(record)
        raised = False
        if mark is not None and stream <= mark.filed_at + self._window_ms:
            raised = mark.dead and revision > mark.revision and record.offset not in self._followed and not mark.waits
            if not raised:
                if not jump:
                    # One event again is no second witness of a jump in time.
                    self.stream, self.pending = stream, pending
                known = mark.raised if record.offset in self._conflicting or mark.waits else mark.revision
                if mark.payload != record.value and not (revision and (edited or known)):
                    self.counts["conflicts"] += 1
                    return lambda: self._bury(effect, "conflict")
                if mark.dead and not (in_place and mark.waits):
                    return lambda: self._bury(effect, "duplicate")
                return None
        self.stream, self.pending = stream, pending
        if late and not raised and not in_place:
            return lambda: self._bury(effect, "late")
        misplaced = not self._belongs(record.key)
        failed = payment.kills or misplaced or payment.fails < 0 or payment.fails >= self._attempts
        payload = mark.payload if mark is not None and raised else record.value or b""
        effect.raised = revision if raised else 0
        noted = max(revision if failed else 0, effect.raised)
        self.marks[payment.id] = _Mark(record.offset, filed_at, payload, failed, noted, effect.raised, effect)
        effect.mark = Mark(
            record.offset, at, filed_at, xxhash.xxh3_64_intdigest(payload), DEAD if failed else DONE, noted
        )
        if failed:
            effect.attempts = self._hopeless_attempts if misplaced else self._attempts
            if payment.kills:
                # Whatever it would have failed with, its process ends before.
                effect.attempts = max(LEAST_CRASHES, self._attempts)
            return lambda: self._bury(effect, "failed")
        return lambda: self._book(effect, payment)

    def _book(self, effect: Effect, payment: Payment) -> None:
        if payment.amount < 0:
            self.balances.pop(payment.account, None)
            self.journals.pop(payment.account, None)
            effect.rows = {("balances", payment.account): None, ("journals", payment.account): None}
            effect.output = {"id": payment.id, "account": payment.account, "balance": 0}
            return
        balance = self.balances[payment.account] = self.balances.get(payment.account, 0) + payment.amount
        journal = [*self.journals.get(payment.account, []), payment.id][-JOURNAL_LENGTH:]
        self.journals[payment.account] = journal
        effect.rows = {("balances", payment.account): balance, ("journals", payment.account): journal}
        if payment.amount:
            effect.output = {"id": payment.id, "account": payment.account, "balance": balance}

    def _pass_on(self, effect: Effect, payment: Payment) -> None:
        if payment.kills or payment.fails < 0 or payment.fails >= self._attempts:
            effect.attempts = max(LEAST_CRASHES, self._attempts) if payment.kills else self._attempts
            self._bury(effect, "failed")
        elif payment.amount:
            effect.output = {"id": payment.id, "account": payment.account, "balance": payment.amount}

    @staticmethod
    def _bury(effect: Effect, why: str) -> None:
        effect.dead = why

    def _moved(self, at: int) -> tuple[int, list[int], int]:
        """Stream time, the witnesses of a jump, and what a mark is filed under, after an event of `at` (rule 20)."""
        if self.stream is None:
            return at, [], at
        if at <= self.stream + self._window_ms:
            now = max(self.stream, at)
            return now, [], now
        witnesses = [*self.pending, at]
        if len(witnesses) < IN_A_ROW:
            return self.stream, witnesses, at
        # The first that is further from the one before it than a window, and all after it, are not witnessed yet.
        in_order = sorted(witnesses)
        steps = itertools.pairwise(in_order)
        now = next((one for one, next_one in steps if next_one - one > self._window_ms), in_order[-1])
        return now, [t for t in witnesses if t > now], max(now, at)


def _comes_again(record: MemoryRecord) -> tuple[int, bool]:
    """Which revision of its event a record is, and whether somebody changed it."""
    said = dict(record.headers)
    raw = (said.get("semel.replay") or b"").decode(errors="replace")
    sane = raw in {str(n) for n in range(1, 64)}
    return (int(raw), "semel.edited" in said) if sane else (0, False)
