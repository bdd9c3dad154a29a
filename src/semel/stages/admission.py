"""Admission: which records of a slice the agent gets, and as what (protocol rules 19 to 21 and 23).

These loops are the hot path: a record is looked at in them, and in `Lane.begin` and `Lane.finish`, and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from semel.dedup import Dedup
from semel.errors import described
from semel.hand import Hand
from semel.plan import AgentPlan
from semel.port import NO_TIMESTAMP, Record
from semel.stages.aside import Aside
from semel.stages.dedup import Verdict, judge, move_time
from semel.stages.host import Host
from semel.stages.slice import Slice
from semel.stages.source import Undecodable, decoder
from semel.stages.wallclock import WallClock
from semel.state.marks import DEAD, DONE, Marks, pack, unpack
from semel.state.overlay import MISSING

log = logging.getLogger("semel.agent")

# Event times beyond this fit no mark (64 bits, with room for a window).
_FAR_MS = 2**62
_TIMELESS = (
    "the record has no timestamp (-1), and the dedup rule needs one; have its producer set it, or give Dedup(time=...)"
)


class Admission:
    """One agent's. `values` leaves nothing undone: a record that the agent does not get is set aside on the way."""

    def __init__(self, host: Host, plan: AgentPlan, aside: Aside, wall_clock: WallClock) -> None:
        self._aside = aside
        self._decoders = {t.name: decoder(t.value) for t in plan.sources}
        self._filter = DedupFilter(host, plan.dedup, aside, wall_clock) if plan.dedup is not None else None

    def values(self, s: Slice, hand: Hand) -> Iterator[Any]:
        """The values that are to take effect, one by one; `hand.record` is each one's record, `hand.id` its dedup id.

        Whoever iterates is done with a value, or has failed with it, before it asks for the next.
        """
        records = s.records
        values = self._decoders[s.cursor.tp.topic](records)
        marks = s.cursor.task.marks
        if self._filter is None or marks is None:
            return self._all(s, hand, values, records)
        return self._filter.fresh(s, hand, values, records, marks)

    def _all(self, s: Slice, hand: Hand, values: Sequence[Any], records: Sequence[Record]) -> Iterator[Any]:
        condemned = s.cursor.condemned
        for index, value, record in zip(range(s.start, s.end), values, records, strict=True):
            s.index = index
            hand.record = record
            if type(value) is Undecodable or (condemned and record.offset in condemned):
                self._aside.unfit(s, record, value)
            else:
                yield value
        s.index = s.end

    def value(self, s: Slice, record: Record) -> Any:
        """The value of one record of the slice, decoded anew: nobody has changed it."""
        return self._decoders[s.cursor.tp.topic]([record])[0]

    def mark_dead(self, s: Slice, record: Record) -> None:
        """Remember the id of an event that is dead-lettered: its duplicates follow it there."""
        marks = s.cursor.task.marks
        if self._filter is not None and marks is not None:
            self._filter.mark_dead(s, record, self.value(s, record), marks)


class DedupFilter:
    """A dedup rule over slices: each event is judged by its time and by the mark of its id, and marked if it is new."""

    def __init__(self, host: Host, rule: Dedup, aside: Aside, wall_clock: WallClock) -> None:
        self._host = host
        self._rule = rule
        self._aside = aside
        self._wall_clock = wall_clock
        self._said_keyless = False
        self._id_of = rule.key_reader()
        self._time_of = rule.time_reader()
        self._payload_of = rule.payload_reader()

    def fresh(
        self, s: Slice, hand: Hand, values: Sequence[Any], records: Sequence[Record], marks: Marks
    ) -> Iterator[Any]:
        host, aside, rule, task = self._host, self._aside, self._rule, s.cursor.task
        condemned, batch, undo = s.cursor.condemned, s.batch, hand.undo
        time_of, payload_of = self._time_of, self._payload_of
        window, wall = rule.window_ms, s.wall_ms
        if not self._said_keyless:
            self._see_keys(s, records)
        hashed_from = task.hashed_from(s.cursor.tp.topic)
        ids = self._ids(values, records)
        known: dict[bytes, bytes] = marks.stored([i for i in ids if type(i) is bytes]) if marks.buckets else {}
        seen = host.landings
        for index, value, record, key in zip(range(s.start, s.end), values, records, ids, strict=True):
            s.index = index
            hand.record = record
            hand.id = key
            if type(value) is Undecodable or (condemned and record.offset in condemned):
                aside.unfit(s, record, value)
                continue
            if type(key) is not bytes:
                why = key if type(key) is str else "the event has no dedup key"
                if not aside.handled(s, rule.missing, "missing", record, why):
                    yield value
                continue
            if time_of is None:
                at = record.timestamp
            else:
                try:
                    at = time_of(value, record)
                    if not -_FAR_MS < at < _FAR_MS:
                        raise ValueError(f"{at} ms is no time")
                except Exception as exc:
                    why = f"the event time cannot be read: {described(exc)}"
                    aside.quarantine(s, record, "missing", why)
                    continue
            now = task.stream_ms
            if now is not None and now - window <= at <= wall and at <= now + window and not task.pending:
                # What `move_time` would say of almost every event.
                filed = stream = at if at > now else now
                pending: tuple[int, ...] = ()
            else:
                if at == NO_TIMESTAMP and time_of is None:
                    if not aside.handled(s, rule.missing, "missing", record, _TIMELESS):
                        yield value
                    continue
                timed = move_time(task.stream, at, wall, window)
                if timed.verdict is not None:
                    task.stream = timed.stream_time
                    if not self._untimely(s, timed.verdict, key, at, record, value, marks):
                        yield value
                    continue
                filed, pending = timed.filed_at, timed.stream_time.pending
                stream = timed.stream_time.ms or 0
            if host.landings != seen:
                # A commit landed since the lookup: a mark it knew nothing of may have moved into the store.
                known = marks.stored([i for i in ids[index - s.start :] if type(i) is bytes])
                seen = host.landings
            payload = payload_of(value, record)
            raw = marks.open.get(key) or marks.sealed.get(key) or known.get(key)
            if (
                raw is None
                or (verdict := judge(unpack(raw), record.offset, payload, stream, window, hashed_from)) is Verdict.FRESH
            ):
                undo.append((marks, key, key, marks.open.get(key, MISSING)))
                marks.mark(key, pack(record.offset, at, filed, payload, DONE))
            elif self._known(s, verdict, record, raw):
                if now is None or min(at, wall) <= now + window:
                    # One event again is no second witness of a jump in time.
                    task.stream_ms, task.pending = stream, pending
                continue
            if batch is None:
                s.moved = stream, pending
            else:
                task.stream_ms, task.pending = stream, pending
            yield value
        s.index = s.end

    def _see_keys(self, s: Slice, records: Sequence[Record]) -> None:
        """Say once that a redelivery without a key may land in a partition that does not know the event."""
        name, partition = s.cursor.tp
        _, partitions = s.cursor.task.topics[name]
        keyless = next((r for r in records if r.key is None), None) if partitions > 1 else None
        if keyless is not None:
            self._said_keyless = True
            log.warning(
                "records of %s without a key, the first one here %d@%d: their producer spreads them over %d partitions, and the "
                "dedup rule of %s recognises a redelivery only in the partition of the first. Produce them under a key, as "
                "their dedup id", name, partition, keyless.offset, partitions, self._host.app,
            )  # fmt: skip

    def _ids(self, values: Sequence[Any], records: Sequence[Record]) -> list[bytes | str | None]:
        read = self._id_of
        try:
            return [None if type(v) is Undecodable else read(v, r) for v, r in zip(values, records, strict=True)]
        except Exception:
            return [self._id(v, r) for v, r in zip(values, records, strict=True)]

    def _id(self, value: Any, record: Record) -> bytes | str | None:
        """The key, None where there is none, or what went wrong reading it."""
        if type(value) is Undecodable:
            return None
        try:
            return self._id_of(value, record)
        except Exception as exc:
            return f"the dedup key cannot be read: {described(exc)}"

    def _untimely(
        self, s: Slice, verdict: Verdict, key: bytes, at_ms: int, record: Record, value: Any, marks: Marks
    ) -> bool:
        """Deal with an event that is CLOCK or LATE; False where it takes effect all the same."""
        rule, aside = self._rule, self._aside
        if verdict is Verdict.CLOCK:
            self._wall_clock.refused(s, at_ms, self._host.clock.monotonic())
            why = f"event time {at_ms} is more than the dedup window ahead of this worker's clock"
            aside.quarantine(s, record, "clock", why)
            return True
        raw = marks.find(key)
        if raw is not None:
            # A late event is protected for a whole window, in which its redelivery is later still.
            stream_ms = s.cursor.task.stream_ms or 0
            hashed_from = s.cursor.task.hashed_from(s.cursor.tp.topic)
            payload = self._payload_of(value, record)
            found = judge(unpack(raw), record.offset, payload, stream_ms, rule.window_ms, hashed_from)
            if found is not Verdict.FRESH:
                return self._known(s, found, record, raw)
        why = f"event time {at_ms} is older than stream time less the dedup window"
        return aside.handled(s, rule.late, "late", record, why)

    def _known(self, s: Slice, verdict: Verdict, record: Record, raw: bytes) -> bool:
        """Deal with an event whose id is known; False where it takes effect all the same."""
        rule, aside, mark = self._rule, self._aside, unpack(raw)
        if verdict is Verdict.REPLAYED:
            aside.done(s, "replayed")
        elif verdict is Verdict.CONFLICT:
            if rule.conflict == "pass":
                return False
            aside.count(s, "conflicts")
            why = f"the same id with another payload was first seen at offset {mark.offset} of this partition"
            aside.handled(s, rule.conflict, "conflict", record, why)
        elif mark.outcome == DEAD:
            why = f"its first occurrence, offset {mark.offset}, is in the dead letters"
            aside.quarantine(s, record, "duplicate", why)
        else:
            aside.done(s, "duplicates")
        return True

    def mark_dead(self, s: Slice, record: Record, value: Any, marks: Marks) -> None:
        key = self._id(value, record)
        if not isinstance(key, bytes):
            return
        task = s.cursor.task
        at = record.timestamp if self._time_of is None else self._time_of(value, record)
        timed = move_time(task.stream, at, s.wall_ms, self._rule.window_ms)
        if timed.verdict is None:
            task.stream = timed.stream_time
            marks.mark(key, pack(record.offset, at, timed.filed_at, self._payload_of(value, record), DEAD))
