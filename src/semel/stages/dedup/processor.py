"""Dedup processor: which records of a work unit the agent gets (protocol rules 19 to 21 and 23).

These loops are the hot path: a record is looked at in them, in `classify`, and in
`AgentRunner.begin` and `Completion.finish`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

from semel.dedup import Dedup, payload_hash
from semel.errors import described
from semel.event_time import time_reader
from semel.plan import AgentPlan
from semel.port import NO_TIMESTAMP, Record
from semel.stages.dedup.classify import Classified, Columns, Moment, Verdict, classify
from semel.stages.dedup.side_outputs import SideOutputs
from semel.stages.dedup.wall_clock import WallClock
from semel.stages.fetch.decode import Undecodable, decoder
from semel.stages.fetch.work_unit import WorkUnit
from semel.stages.services import Services
from semel.state import replay
from semel.state.dedup_marks import DEAD, PARKED, Mark, Marks, unpack, with_outcome
from semel.state.event_context import EventContext
from semel.state.parked import ParkedQueue, Queued
from semel.state.parked_event import ParkedEvent

log = logging.getLogger("semel.agent")

_FOLLOWS = "its first occurrence, offset %d, is in the dead letters"
Reader = Callable[[Any, Any], Any]
_TIMELESS = (
    "the record has no timestamp (-1), and the dedup rule needs one; have its producer set it, or give Topic(time=...)"
)


class DedupProcessor:
    """One agent's. `values` leaves nothing undone: a record that the agent does not get is set aside on the way."""

    def __init__(self, services: Services, plan: AgentPlan, side_outputs: SideOutputs, wall_clock: WallClock) -> None:
        self._side_outputs = side_outputs
        self._ends = services.interrupts
        self._decoders = {t.name: decoder(t.value) for t in plan.sources}
        self._time_of = {t.name: time_reader(plan.event_time(t)) for t in plan.sources}
        rule = plan.dedup
        self._filter = (
            DedupFilter(services, rule, self._time_of, side_outputs, wall_clock) if rule is not None else None
        )

    def values(self, unit: WorkUnit, context: EventContext) -> Iterator[Any]:
        """The values that are to take effect, one by one; `context.record` is each one's record,
        `context.id` its dedup id.

        Whoever iterates is done with a value, or has failed with it, before it asks for the next.
        """
        records = unit.records
        values = self._decoders[unit.cursor.tp.topic](records)
        if unit.retried is not None:
            return self._judged_before(unit, unit.retried, context, values)
        marks = unit.cursor.task.marks
        if self._filter is None or marks is None:
            return self._all(unit, context, values, records)
        return self._filter.fresh(unit, context, values, records, marks)

    def _all(
        self, unit: WorkUnit, context: EventContext, values: Sequence[Any], records: Sequence[Record]
    ) -> Iterator[Any]:
        poisoned, untimed = unit.cursor.poisoned, self._untimed(unit, values, records)
        apart = {*poisoned, *untimed}
        if unit.cursor.task.marks is None and unit.cursor.first:
            # Where there are marks, their rule moves stream time. Of several agents the first does: an event is one witness.
            unit.timed = unit.start
        queue = unit.cursor.parked
        keys, ahead = queue.keys if queue is not None else {}, unit.ahead
        skips = _skips(records)
        for index, value, record in zip(range(unit.start, unit.end), values, records, strict=True):
            unit.index = index
            context.record = record
            if skips and record.offset in skips:
                unit.leave_out(index)
                self._side_outputs.skip(unit, record)
                continue
            waits = ahead or (record.key in keys if keys else False)
            if waits and self._side_outputs.no_room(unit, record):
                return
            if type(value) is Undecodable or (apart and record.offset in apart):
                unit.leave_out(index)
                if type(value) is Undecodable or record.offset in poisoned:
                    self._side_outputs.unfit(unit, record, value)
                else:
                    self._side_outputs.quarantine(unit, record, "missing", untimed[record.offset])
            elif waits:
                self._side_outputs.park(unit, ParkedEvent(record))
            else:
                yield value
        unit.index = unit.end

    def _judged_before(
        self,
        unit: WorkUnit,
        retried: Sequence[tuple[Queued, ParkedEvent]],
        context: EventContext,
        values: Sequence[Any],
    ) -> Iterator[Any]:
        """Parked events: what they are was decided when they came."""
        poisoned = unit.cursor.poisoned
        for index, value in enumerate(values):
            queued, event = retried[index]
            record = event.record
            unit.index = index
            context.record = record
            context.id = event.id
            if event.first >= 0 and unit.batch is not None and index > unit.start:
                # A batch is done as one, and how the first of that id ends may be up to this one.
                unit.cut(index)
                return
            if event.letter is None and type(value) is not Undecodable and record.offset not in poisoned:
                yield value
                if unit.end <= index:
                    # It was cut there: the event is not done.
                    return
                continue
            queued.given_up = True
            if event.letter is None:
                self._side_outputs.unfit(unit, record, value)
            elif event.first >= 0 and not self._first_is_dead(unit, queued):
                self._side_outputs.done(unit, "duplicates")
            else:
                self._side_outputs.quarantine(unit, record, *event.letter)
            if queued.to_hold:
                # What is behind it, also in this unit, waits for its letter from now on.
                unit.index = index + 1
                unit.cut(index + 1)
                return
        unit.index = len(values)

    @staticmethod
    def _first_is_dead(unit: WorkUnit, queued: Queued) -> bool:
        """Whether the event that it is a duplicate of went to the dead letters. StoreError."""
        # How that one ended is noted when its unit is left, and this one may be of the same.
        unit.unpark()
        return queued.first_dead

    def _untimed(self, unit: WorkUnit, values: Sequence[Any], records: Sequence[Record]) -> dict[int, str]:
        """Why the time of an event cannot be read, by offset. Where the timestamp is it, nothing is to be read."""
        read = self._time_of[unit.cursor.tp.topic]
        if read is None:
            return {}
        unit.times = _read_all(read, values, records, "the event time", self._ends)
        return {r.offset: at for r, at in zip(records, unit.times, strict=True) if type(at) is str}

    def value(self, unit: WorkUnit, record: Record) -> Any:
        """The value of one record of the work unit, decoded anew: nobody has changed it."""
        return self._decoders[unit.cursor.tp.topic]([record])[0]


def _skips(records: Sequence[Record]) -> set[int]:
    """The offsets of those that are no events, but let a held key go on."""
    return {r.offset for r in records if r.headers and replay.is_skip(r.headers)}


def _takes_the_place(queue: ParkedQueue, records: Sequence[Record], nth: int) -> bool:
    """Whether a record is the replay of an event that holds its key, and none before it in its unit ends that hold."""
    held = queue.held_by(records[nth])
    return held is not None and all(queue.held_by(before) is not held for before in records[:nth])


def _read_all(
    read: Reader, values: Sequence[Any], records: Sequence[Record], what: str, ends: tuple[type[BaseException], ...]
) -> list[Any]:
    """What a function of the pipeline gives for each record, in words what went wrong; None where there is no value.

    Whatever it raises is that event's affair, but for what `ends` the worker: it is called once a record, and not awaited.
    """
    read_so_far: list[Any] = []
    add = read_so_far.append
    for value, record in zip(values, records, strict=True):
        if type(value) is Undecodable:
            add(None)
            continue
        try:
            add(read(value, record))
        except BaseException as exc:
            if isinstance(exc, ends):
                raise
            add(f"{what} cannot be read: {described(exc)}")
    return read_so_far


class DedupFilter:
    """A dedup rule over work units. A work unit is judged as a whole when it is taken: until it is given back nothing but its own
    events changes the marks and the stream time of its task, and one that fails gives it back."""

    def __init__(
        self,
        services: Services,
        rule: Dedup,
        time_of: Mapping[str, Reader | None],
        side_outputs: SideOutputs,
        wall_clock: WallClock,
    ) -> None:
        self._services = services
        self._ends = services.interrupts
        self._rule = rule
        self._side_outputs = side_outputs
        self._wall_clock = wall_clock
        self._said_keyless = False
        self._id_of = rule.key_reader()
        self._time_of = time_of
        self._payload_of = rule.payload_reader()

    def fresh(
        self, unit: WorkUnit, context: EventContext, values: Sequence[Any], records: Sequence[Record], marks: Marks
    ) -> Iterator[Any]:
        task, written = unit.cursor.task, context.writes.marks
        if not self._said_keyless:
            self._see_keys(unit, records)
        skips = _skips(records)
        batch, error = self._columns(unit, values, records, skips)
        ids = batch.ids
        known = marks.known([id for id in ids if type(id) is bytes])
        hashed_from = task.hashed_from(unit.cursor.tp.topic)
        queue = unit.cursor.parked
        judged = classify(
            batch,
            known,
            task.stream,
            self._rule,
            unit.wall_ms,
            hashed_from,
            lambda nth: replay.of(records[nth].headers),
            lambda nth: queue is not None and _takes_the_place(queue, records, nth),
        )
        keys, ahead = queue.keys if queue is not None else {}, unit.ahead
        index = unit.start
        for value, record, id, verdict, mark, stream in zip(
            values, records, ids, judged.verdicts, judged.marks, judged.streams, strict=False
        ):
            unit.index = index
            context.record = record
            context.id = id
            if skips and record.offset in skips:
                self._side_outputs.skip(unit, record)
                index += 1
                continue
            if ahead or (keys and record.key in keys):
                if self._side_outputs.no_room(unit, record):
                    return
                self._wait(unit, context, mark, stream, self._set_aside(unit, verdict, value, record, batch, judged))
                index += 1
                continue
            if mark is not None:
                written.append((id, mark))  # pyright: ignore[reportArgumentType]  (what has a mark has an id)
            elif self._set_aside(unit, verdict, value, record, batch, judged):
                if unit.batch is None:
                    task.stream_ms, task.pending = stream
                else:
                    unit.moved = stream
                index += 1
                continue
            unit.moved = stream
            yield value
            index += 1
        unit.index = index
        if error is not None:
            context.record, unit.unjudged = records[len(ids)], True
            raise error

    def _wait(
        self, unit: WorkUnit, context: EventContext, mark: bytes | None, stream: Moment, dealt_with: bool
    ) -> None:
        """A record whose key is parked. `dealt_with`: it does not take effect."""
        task = unit.cursor.task
        if not dealt_with:
            id = context.id if type(context.id) is bytes else None
            mark = None if mark is None else with_outcome(mark, PARKED)
            self._side_outputs.park(unit, ParkedEvent(context.record, id, mark))
            if id is not None and mark is not None and task.marks is not None:
                if unit.batch is not None:
                    context.writes.marks.append((id, mark))
                else:
                    task.marks.mark(id, mark)
        if unit.batch is None:
            task.stream_ms, task.pending = stream
        else:
            unit.moved = stream
        if dealt_with:
            # In the dead letters it may have taken the place of the one that holds its key; else the key goes on without it.
            self._side_outputs.release(unit, context.record)

    # -- what is known of each record

    def _columns(
        self, unit: WorkUnit, values: Sequence[Any], records: Sequence[Record], skips: Set[int]
    ) -> tuple[Columns, BaseException | None]:
        """Up to the first record whose payload the rule cannot compare; and the error of that one."""
        poisoned = unit.cursor.poisoned
        # What cannot be decoded has no id either.
        ids: list[bytes | str | None] = _read_all(self._id_of, values, records, "the dedup key", self._ends)
        times = self._times(unit, values, records)
        if poisoned or skips:
            ids = [
                None if r.offset in poisoned or r.offset in skips else id for r, id in zip(records, ids, strict=True)
            ]
        payloads, error = self._payloads(values, records, ids)
        end = len(payloads)
        return Columns([r.offset for r in records[:end]], ids[:end], times[:end], payloads), error

    def _payloads(
        self, values: Sequence[Any], records: Sequence[Record], ids: Sequence[object]
    ) -> tuple[list[int], BaseException | None]:
        if self._rule.compare is None:
            # As `payload_reader` reads the value's bytes, for all of them at once: nothing of the pipeline's is called.
            return [
                0 if type(id) is not bytes or (raw := r.value) is None else payload_hash(raw)
                for r, id in zip(records, ids, strict=True)
            ], None
        payloads: list[int] = []
        read, add = self._payload_of, payloads.append
        try:
            for value, record, id in zip(values, records, ids, strict=True):
                add(read(value, record) if type(id) is bytes else 0)
        except BaseException as exc:
            if isinstance(exc, self._ends):
                raise
            return payloads, exc
        return payloads, None

    def _times(self, unit: WorkUnit, values: Sequence[Any], records: Sequence[Record]) -> list[int | str | None]:
        """Event times in ms, None where there is none, or what went wrong reading it."""
        read = self._time_of[unit.cursor.tp.topic]
        if read is None:
            return [at if (at := r.timestamp) != NO_TIMESTAMP else None for r in records]
        return _read_all(read, values, records, "the event time", self._ends)

    # -- what does not take effect

    def _set_aside(
        self, unit: WorkUnit, verdict: Verdict, value: Any, record: Record, batch: Columns, judged: Classified
    ) -> bool:
        """Deal with a record that is not fresh; False where it is, or the rule says that it takes effect all the same."""
        if verdict is Verdict.FRESH:
            return False
        rule, side_outputs, nth = self._rule, self._side_outputs, unit.index - unit.start
        id, at = batch.ids[nth], batch.times[nth]
        if type(value) is Undecodable or record.offset in unit.cursor.poisoned:
            side_outputs.unfit(unit, record, value)
            return True
        known = judged.known.get(nth)
        if known is not None:
            return self._known(unit, verdict, record, known, id)
        match verdict:
            case Verdict.MISSING:
                why = _TIMELESS if type(id) is bytes else id if type(id) is str else "the event has no dedup key"
                return side_outputs.handled(unit, rule.missing, "missing", record, why)
            case Verdict.UNREADABLE:
                side_outputs.quarantine(unit, record, "missing", str(at))
            case Verdict.CLOCK:
                assert isinstance(at, int)
                self._wall_clock.refused(unit, at, self._services.clock.monotonic())
                why = f"event time {at} is more than the dedup window ahead of this worker's clock"
                side_outputs.quarantine(unit, record, "clock", why)
            case _:
                why = f"event time {at} is older than stream time less the dedup window"
                return side_outputs.handled(unit, rule.late, "late", record, why)
        return True

    def _known(self, unit: WorkUnit, verdict: Verdict, record: Record, raw: bytes, id: object) -> bool:
        """Deal with an event whose id is known; False where it takes effect all the same."""
        rule, side_outputs, mark = self._rule, self._side_outputs, unpack(raw)
        if verdict is Verdict.REPLAYED:
            side_outputs.done(unit, "replayed")
        elif verdict is Verdict.CONFLICT:
            if rule.conflict == "pass":
                return False
            side_outputs.count(unit, "conflicts")
            why = f"the same id with another payload was first seen at offset {mark.offset} of this partition"
            side_outputs.handled(unit, rule.conflict, "conflict", record, why)
        elif mark.outcome == DEAD:
            side_outputs.quarantine(unit, record, "duplicate", _FOLLOWS % mark.offset)
        elif unit.waits_for_its_key(record) and type(id) is bytes and self._may_be_parked(unit, mark):
            # How the first one ends is known when this one's turn comes.
            letter = ("duplicate", _FOLLOWS % mark.offset)
            side_outputs.park(unit, ParkedEvent(record, id, letter=letter, first=mark.offset))
        else:
            side_outputs.done(unit, "duplicates")
        return True

    @staticmethod
    def _may_be_parked(unit: WorkUnit, mark: Mark) -> bool:
        """Of one that came with this unit the mark is of when the unit was judged."""
        return mark.outcome == PARKED or mark.offset >= unit.fetched.records[unit.start].offset

    def _see_keys(self, unit: WorkUnit, records: Sequence[Record]) -> None:
        """Say once that a redelivery without a key may land in a partition that does not know the event."""
        name, partition = unit.cursor.tp
        _, partitions = unit.cursor.task.topics[name]
        keyless = next((r for r in records if r.key is None), None) if partitions > 1 else None
        if keyless is not None:
            self._said_keyless = True
            log.warning(
                "records of %s without a key, the first one here %d@%d: their producer spreads them over %d partitions, and the "
                "dedup rule of %s recognises a redelivery only in the partition of the first. Produce them under a key, as "
                "their dedup id", name, partition, keyless.offset, partitions, self._services.app,
            )  # fmt: skip
