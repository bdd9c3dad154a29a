"""Catalogue: the dead letters of a pipeline for views that stay: read once, kept up to date, looked up in parts.

It reads beside a worker that commits, so that every step is paid for (`Pace`); only what came since is read again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from semel.dead_letters import audit
from semel.dead_letters.decisions import NotReplayable, Selection
from semel.dead_letters.description import describe, entry_shown
from semel.dead_letters.groups import row_of
from semel.dead_letters.index import Index
from semel.dead_letters.letter import Letter, is_of, key_of, letter_of, mentions
from semel.dead_letters.operator import Operator
from semel.dead_letters.reading import NoLetters
from semel.plan import Plan
from semel.port import TP, Broker, Clock
from semel.runtime.settings import EngineSettings
from semel.task.read_committed import CommittedLogs, Piece

# Told how long a step took; returns when the next one may be.
Pace = Callable[[float], Awaitable[None]]

# Records looked at in one step: a millisecond or two.
STEP_RECORDS = 50
# What fetching and decoding a record takes before it is looked at.
RECORD_S = 4e-6
# What it takes to forget `LOOKED_AT_MAX` letters that are gone.
GONE_S = 0.01
# A step that waits for a commit is not charged for what others do meanwhile.
STEP_S_MAX = 0.02
# For so long a view waits for what came since; then it shows what is known.
PATIENCE_S = 1.0
# Offsets that one look-up of a search passes.
SEARCHED_OFFSETS = 5_000
_WINDOW = 1_000
# Letters so close together are read in one.
_GAP = 200
AUDIT_ENTRIES = 100


class PacedLogs(CommittedLogs):
    """Reads in small pieces, each paid for before the next."""

    piece_bytes = 256 << 10

    def __init__(self, broker: Broker, clock: Clock, purpose: str, pace: Pace) -> None:
        super().__init__(broker, clock, purpose)
        self._pace = pace

    async def read(self, tp: TP, start: int, end: int) -> AsyncGenerator[Piece]:
        async with aclosing(super().read(tp, start, end)) as pieces:
            async for piece in pieces:
                at, records = piece.start, piece.records
                for first in range(0, max(1, len(records)), STEP_RECORDS):
                    step = records[first : first + STEP_RECORDS]
                    after = piece.next if first + STEP_RECORDS >= len(records) else step[-1].offset + 1
                    # What the machine's other processes take meanwhile is not ours to pay.
                    began = time.thread_time()
                    yield Piece(step, at, after, 0 if first else piece.missing)
                    at = after
                    await self._pace(min(STEP_S_MAX, time.thread_time() - began + len(step) * RECORD_S))


class PacedOperator(Operator):
    """Acts beside a worker: what it reads is paid for; it finds a group by the index; a transaction is finished, also where it is
    cancelled meanwhile."""

    def __init__(
        self, broker: Broker, clock: Clock, plan: Plan, settings: EngineSettings, pace: Pace, index: Index | None = None
    ) -> None:
        super().__init__(broker, clock, plan, settings, logs=PacedLogs(broker, clock, "dead letters", pace))
        self._index = index

    async def commit(self, entry: audit.Entry, records: Sequence[Any]) -> dict[TP, int]:
        committing = asyncio.ensure_future(super().commit(entry, records))
        try:
            return await asyncio.shield(committing)
        except asyncio.CancelledError:
            await asyncio.wait({committing})
            if not committing.cancelled():
                committing.exception()
            raise

    async def selected(self, selection: Selection) -> AsyncGenerator[Letter]:
        index = self._index
        if selection.at is not None or selection.group is None or index is None or index.topic_id != self.topic_id:
            async with aclosing(super().selected(selection)) as letters:
                async for letter in letters:
                    yield letter
            return
        for partition, offsets in sorted(index.positions(selection.group).items()):
            async with aclosing(self.read_at(TP(self.plan.dead_letter_topic, partition), offsets)) as letters:
                async for letter in letters:
                    if selection.meets(letter, self.ledger):
                        yield letter

    async def read_at(self, tp: TP, offsets: Sequence[int]) -> AsyncGenerator[Letter]:
        """The pipeline's letters at these offsets, ascending; those that are gone are left out."""
        start = (await self.logs.starts([tp]))[tp]
        at, count = 0, len(offsets)
        while at < count:
            end = at + 1
            while end < count and offsets[end] - offsets[end - 1] <= _GAP and offsets[end] - offsets[at] < _WINDOW:
                end += 1
            wanted = frozenset(offsets[at:end])
            first, last = max(start, offsets[at]), offsets[end - 1]
            at = end
            if last < start:
                continue
            async with aclosing(self.logs.read(tp, first, last + 1)) as pieces:
                async for piece in pieces:
                    for record in piece.records:
                        if record.offset in wanted and is_of(letter := letter_of(tp, record), self.plan.app):
                            yield letter


@dataclass(slots=True)
class Progress:
    """Of reading what the views show: offsets read, of how many."""

    done: int = 0
    total: int = 0
    complete: bool = False


class Catalogue:
    """Every question is preceded by `refresh`. NoLetters where there is no topic; errors of brokers pass through."""

    def __init__(self, broker: Broker, clock: Clock, plan: Plan, settings: EngineSettings, pace: Pace) -> None:
        self.plan = plan
        self.progress = Progress()
        self.index = Index("")
        self._operator = PacedOperator(broker, clock, plan, settings, pace)
        self._pace = pace
        self._audit_id = ""
        self._audit_next = 0
        self._refreshing: asyncio.Task[None] | None = None

    async def refresh(self, patience_s: float = PATIENCE_S) -> Progress:
        """Take in what came since; where that takes longer, it goes on by itself."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(), name="dead letters")
            # Who asks next is told; where nobody does, it is no loss.
            self._refreshing.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        refreshing = self._refreshing
        await asyncio.wait({refreshing}, timeout=patience_s)
        if refreshing.done():
            await refreshing
        return self.progress

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._refreshing

    async def _refresh(self) -> None:
        operator, reader, logs = self._operator, self._operator.reader, self._operator.logs
        topic = await reader.topic()
        infos = await logs.asked(lambda: logs.broker.topics([operator.audit_topic]))
        audit_id = "" if (info := infos.get(operator.audit_topic)) is None else info.id
        if topic.id != self.index.topic_id or (self._audit_id and audit_id != self._audit_id):
            self.index, self._audit_next = Index(topic.id), 0
        self._audit_id = audit_id
        operator.topic_id, operator.ledger = topic.id, self.index.ledger
        await self._read_audit()
        tps = await reader.partitions()
        starts, ends = await logs.starts(tps), await logs.ends(tps)
        at = {tp: max(starts[tp], self.index.next.get(tp.partition, 0)) for tp in tps}
        progress = self.progress = Progress(0, sum(max(0, ends[tp] - at[tp]) for tp in tps))
        for tp in tps:
            while self.index.gone(tp.partition, starts[tp]):
                await self._pace(GONE_S)
            async with aclosing(logs.read(tp, at[tp], ends[tp])) as pieces:
                async for piece in pieces:
                    for record in piece.records:
                        if is_of(letter := letter_of(tp, record), self.plan.app):
                            self.index.add(letter)
                    # Only now: what is cancelled between is read again from here.
                    self.index.next[tp.partition] = piece.next
                    progress.done += piece.next - piece.start
        progress.complete = True

    async def _read_audit(self) -> None:
        operator = self._operator
        if not self._audit_id:
            return
        tp = TP(operator.audit_topic, 0)
        end = (await operator.logs.ends([tp]))[tp]
        async for entry, after in self._entries(self._audit_next, end):
            self.index.take(entry)
            self._audit_next = after
        self._audit_next = max(end, self._audit_next)

    async def _entries(self, start: int, end: int) -> AsyncGenerator[tuple[audit.Entry, int]]:
        tp = TP(self._operator.audit_topic, 0)
        first = (await self._operator.logs.starts([tp]))[tp]
        async with aclosing(self._operator.logs.read(tp, max(start, first), end)) as pieces:
            async for piece in pieces:
                for record in piece.records:
                    where = f"{tp.topic}[0]@{record.offset}"
                    yield audit.decode(record.value or b"", where), record.offset + 1

    # -- questions

    async def rows(
        self, fingerprint: str, limit: int, *, done: bool, upto: Mapping[int, int] | None
    ) -> tuple[list[dict[str, Any]], dict[int, int] | None]:
        """Letters of a group, the last first, and from where to go on."""
        places, after = self.index.places(fingerprint, limit, done=done, upto=upto)
        by_partition: dict[int, list[int]] = {}
        for partition, offset in places:
            by_partition.setdefault(partition, []).append(offset)
        rows: dict[tuple[int, int], dict[str, Any]] = {}
        for partition, offsets in by_partition.items():
            tp = TP(self.plan.dead_letter_topic, partition)
            async for letter in self._operator.read_at(tp, sorted(offsets)):
                rows[partition, letter.offset] = self._row(letter)
        return [rows[place] for place in places if place in rows], after

    def _row(self, letter: Letter) -> dict[str, Any]:
        return row_of(letter, key_of(letter, self.plan.sources), self.index.ledger.state(letter)) | {
            "fingerprint": letter.fingerprint
        }

    async def search(
        self, text: str, limit: int, upto: Mapping[int, int] | None
    ) -> tuple[list[dict[str, Any]], int, dict[int, int] | None]:
        """Letters that have this text in key, value, trace or headers, the last of each partition first; how many offsets were
        passed; and from where to go on."""
        operator = self._operator
        tps = await operator.reader.partitions()
        starts, ends = await operator.logs.starts(tps), await operator.logs.ends(tps)
        left = {tp: ends[tp] if upto is None else min(upto.get(tp.partition, 0), ends[tp]) for tp in tps}
        letters: list[Letter] = []
        passed = 0
        while passed < SEARCHED_OFFSETS and len(letters) < limit:
            tp = max(tps, key=lambda one: left[one] - starts[one])
            if left[tp] <= starts[tp]:
                break
            first = max(starts[tp], left[tp] - _WINDOW)
            async with aclosing(operator.logs.read(tp, first, left[tp])) as pieces:
                async for piece in pieces:
                    for record in piece.records:
                        if is_of(letter := letter_of(tp, record), self.plan.app) and mentions(letter, text):
                            letters.append(letter.with_value(None))
            passed += left[tp] - first
            left[tp] = first
        more = any(left[tp] > starts[tp] for tp in tps)
        letters.sort(key=lambda letter: letter.last_ms, reverse=True)
        return (
            [self._row(letter) for letter in letters],
            passed,
            {tp.partition: at for tp, at in left.items()} if more else None,
        )

    async def letter(self, tp: TP, offset: int) -> Letter:
        letter = await self._operator.reader.letter(tp, offset)
        if not is_of(letter, self.plan.app):
            raise NoLetters(f"{letter.position} is no dead letter of {self.plan.app!r}")
        return letter

    async def whole(self, tp: TP, offset: int) -> tuple[Letter, str]:
        """With the value that was left out, and where it was read, or why it was not."""
        letter = await self.letter(tp, offset)
        if "semel.left_out" not in letter.own:
            return letter, ""
        try:
            return letter.with_value(await self._operator.value_of(letter)), letter.source
        except NotReplayable as exc:
            return letter, str(exc)

    async def document(self, tp: TP, offset: int) -> dict[str, Any]:
        letter, value_from = await self.whole(tp, offset)
        about: list[audit.Entry] = []
        if self._audit_id:
            async for entry, _ in self._entries(0, self._audit_next):
                about += audit.history([entry], self.index.topic_id, letter)
        return describe(letter, self.plan, self.index.ledger.state(letter), value_from, about)

    async def entries(self, before: int | None) -> tuple[list[dict[str, Any]], int | None]:
        """What was done, the last first, and before which offset of the audit to go on."""
        if not self._audit_id:
            return [], None
        tp = TP(self._operator.audit_topic, 0)
        start = (await self._operator.logs.starts([tp]))[tp]
        end = self._audit_next if before is None else min(before, self._audit_next)
        # An entry and the marker of its transaction each.
        first = max(start, end - 2 * AUDIT_ENTRIES)
        latest = [
            entry_shown(entry) | {"groups": dict(entry.groups), "topic": entry.topic}
            async for entry, _ in self._entries(first, end)
        ]
        return latest[::-1], first if first > start else None
