"""Reading what a pipeline wrote: outputs, marks and dead letters, each log once, sorted by the event they come from."""

from __future__ import annotations

import copy
import re
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

import numpy as np

from semel.errors import SemelError
from semel.plan import Plan
from semel.port import TP, Record
from semel.proof import laws
from semel.proof.columns import (
    LATER,
    LETTER,
    NAMED,
    OUTPUT,
    TIMER,
    Rows,
    chosen,
    columns,
    content_of,
    in_order,
    marks_of,
    offsets_of,
)
from semel.proof.laws import Origin, Placed, Whole
from semel.proof.logs import Logs
from semel.proof.outcomes import Missing
from semel.proof.proof import Remarks, Witness
from semel.proof.spool import Spool
from semel.proof.survey import Survey, partitions
from semel.stages.sink.dead_letters import HELD, split_headers
from semel.state import lineage, replay
from semel.state.parked_event import is_held, read_row
from semel.state.timers import is_name, place_of

# The writer, the source partition, the event's offset and the number of the output, `+` before that of one that was to be sent
# at a time, `~` if it had a name, with as many digits as fit into the columns; semel never writes more.
_LINEAGE = re.compile(rb"([^/]*/[^/]+/[0-9]+)/([0-9]{1,16})/(\+?[0-9]{1,9}|~[0-9]{1,7})/")
_FIRST_STEPS = {b"+": LATER, b"~": NAMED}
# What an output is that is none of this app's with an event.
_STRANGER, _SENT, _OF_OTHERS = -1, -2, -3
STRANGERS_SHOWN = 3
# Within one epoch marks may stand in another order than their events.
_EPOCH_EVENTS = 50_000


class UnknownMark(SemelError):
    """The marks were written by another version."""


class History:
    """All that was recorded, the source's own records aside; its rows are in the spool.

    `closing`: the positions after all of it was read. `outputs`: how many are in each partition; `sent`: how many without an
    event. `strangers`: records without lineage, by topic, and the first of each as witnesses. `marks`: how many.
    `trimmed`: by source partition, of which events the marks are gone. `deleted`: logs from which something went while they
    were to be read. `ended_since`: by task, how many timers with a name were sent, replaced or cancelled since the positions were
    read: of one that was pending by these, nothing need be left.
    """

    def __init__(self, survey: Survey, logs: Logs, spool: Spool) -> None:
        self.survey = survey
        self.spool = spool
        self.closing = copy.deepcopy(survey.cut)
        self.sent = 0
        self.marks = 0
        self.outputs: Counter[TP] = Counter()
        self.strangers: Counter[str] = Counter()
        self.stranger_witnesses: list[Witness] = []
        self.trimmed: dict[TP, Missing] = {}
        self.ended_since: Counter[int] = Counter()
        self._parked: dict[TP, set[tuple[int, int]]] = defaultdict(set)
        self.deleted: set[TP] = set()
        self._logs = logs
        self._agents = {lineage.signed(agent.name): i for i, agent in enumerate(survey.plan.agents)}
        self._origins: dict[Origin, int] = {}
        # What a lineage begins with -> the number of its origin, or what it is else.
        self._numbers: dict[bytes, int] = {}
        self._wheres = {tp: where for where, tp in enumerate(self.wheres)}

    @property
    def plan(self) -> Plan:
        return self.survey.plan

    @property
    def wheres(self) -> Sequence[TP]:
        """The partitions that rows number."""
        return self.survey.outputs + self.survey.letters + tuple(self.survey.timer_ends)

    def untouched(self, tp: TP) -> bool:
        """Nothing was deleted from a log since it began for us."""
        return tp in self.survey.untouched and tp not in self.deleted

    @property
    def whole(self) -> Whole:
        survey = self.survey
        # Of a timer that was sent without lineage nobody knows which it was.
        unsigned = any(position.sent_later.get("") for position in survey.cut.positions.values())
        return Whole(
            outputs=not unsigned
            and not survey.missing - survey.letter_topics
            and all(map(self.untouched, survey.outputs)),
            letters=not survey.missing & survey.letter_topics and all(map(self.untouched, survey.letters)),
        )

    @property
    def bare(self) -> dict[int, int]:
        """By task: outputs that were written without lineage."""
        return {
            task: position.counts.get("out", 0) - sum(position.outputs.values()) + position.sent_later.get("", 0)
            for task, position in self.survey.cut.positions.items()
        }

    async def _records(self, tp: TP) -> AsyncGenerator[list[Record]]:
        """A log of outputs or dead letters, a piece at a time."""
        async with aclosing(self._logs.read(tp, self.survey.starts[tp], self.survey.ends[tp])) as pieces:
            async for piece in pieces:
                if piece.missing:
                    self.deleted.add(tp)
                yield piece.records

    # -- parked events

    async def parked_in(self, tp: TP) -> None:
        """A log of parked events. What is parked at its end is not judged; what was before has led to what it did."""
        [start] = (await self._logs.starts([tp])).values()
        async with aclosing(self._logs.read(tp, start, self.survey.parked_ends[tp])) as pieces:
            async for piece in pieces:
                for record in piece.records:
                    if record.key is not None:
                        (topic, agent), offset = read_row(record.key)
                        entry = offset, self._agents.get(lineage.signed(agent), 0)
                        there = self._parked[TP(topic, tp.partition)]
                        # One that holds its key is dead, and its letter was written with it.
                        done = record.value is None or is_held(record.value)
                        (there.discard if done else there.add)(entry)

    def parked(self, tp: TP) -> Rows:
        """Offset and agent of the events of a source partition that are parked, by offset."""
        entries = sorted(self._parked.get(tp, ()))
        return columns(OUTPUT, [offset for offset, _ in entries], agent=[agent for _, agent in entries])

    async def timers_in(self, tp: TP) -> None:
        """A log of timers. What is pending at its end is an output that is still to be sent."""
        [start] = (await self._logs.starts([tp])).values()
        since = self.survey.timer_begins.get(tp, 0)
        async with aclosing(self._logs.read(tp, start, self.survey.timer_ends[tp])) as pieces:
            async for piece in pieces:
                by_source: dict[TP, list[tuple[int, int, int, int, bool]]] = defaultdict(list)
                for record in piece.records:
                    if record.key is not None and not is_name(record.key):
                        place = place_of(record.key)
                        agent = self._agents.get(lineage.signed(place.agent), 0)
                        step = place.step + (NAMED if place.named else LATER)
                        if place.named and record.value is None and record.offset >= since:
                            self.ended_since[tp.partition] += 1
                        row = place.offset, step, agent, record.offset, record.value is not None
                        by_source[TP(place.topic, tp.partition)].append(row)
                for source, rows in by_source.items():
                    offsets, steps, agents, at, set_ = zip(*rows, strict=True)
                    timers = columns(TIMER, offsets, step=steps, agent=agents, at=at, set=set_, where=self._wheres[tp])
                    self.spool.add("timers", source, timers)

    # -- outputs

    async def outputs_in(self, tp: TP) -> bool:
        """An output partition; whether all of its outputs stand in their events' order, as they mostly do."""
        ordered = True
        last: dict[Origin, tuple[int, int]] = {}
        async for records in self._records(tp):
            numbers, offsets, steps = np.array([self._lineage(r) for r in records], np.int64).reshape(-1, 3).T
            rows = columns(OUTPUT, offsets, step=steps, at=offsets_of(records), where=self._wheres[tp])
            self.sent += int(np.count_nonzero(numbers == _SENT))
            for record in chosen(records, numbers == _STRANGER):
                self.strangers[tp.topic] += 1
                if self.strangers[tp.topic] <= STRANGERS_SHOWN:
                    key = None if record.key is None else record.key.decode(errors="backslashreplace")
                    self.stranger_witnesses.append(Witness(tp, record.offset, "no lineage", key=key))
            for origin, number in self._origins.items():
                outputs = rows[numbers == number]
                if len(outputs):
                    outputs["agent"] = origin.agent
                    at_once = outputs[outputs["step"] < LATER]
                    if len(at_once):
                        ordered = ordered and in_order(at_once, last.get(origin, (-1, -1)))
                        last[origin] = int(at_once["offset"][-1]), int(at_once["step"][-1])
                    self.outputs[tp] += len(outputs)
                    self.spool.add("outputs", origin.source, outputs)
        return ordered

    async def order_in(self, tp: TP, remarks: Remarks) -> None:
        """An output partition, once more, by key; and again, where some that come too early are replays which were to."""
        jumped: set[tuple[TP, int]] = set()
        while True:
            last: dict[tuple[bytes | None, Origin], Placed] = {}
            early: set[tuple[TP, int]] = set()
            async for placed in self._placed(tp):
                early |= {(before.origin.source, before.offset) for before, _ in laws.early(placed, last, jumped)}
            replays = {(source, at) for source, at in early if await self._may_jump(source, at)}
            if not replays:
                break
            jumped |= replays
        last = {}
        if early:
            async for placed in self._placed(tp):
                remarks.add(laws.order_per_key(tp, placed, last, jumped))

    async def _placed(self, tp: TP) -> AsyncGenerator[Iterator[Placed]]:
        origins = list(self._origins)
        async for records in self._records(tp):
            lineages = ((record, *self._lineage(record)) for record in records)
            yield (
                Placed(r.offset, r.key, origins[n], offset, step)
                for r, n, offset, step in lineages
                if n >= 0 and step < LATER
            )

    async def _may_jump(self, source: TP, offset: int) -> bool:
        """Whether an event is the replay of one that held its key, which comes before those that waited behind that."""
        if not self.survey.starts.get(source, 0) <= offset:
            return False
        async with aclosing(self._logs.read(source, offset, offset + 1)) as pieces:
            async for piece in pieces:
                for record in piece.records:
                    if record.offset == offset:
                        return any(name == replay.HOLD for name, _ in record.headers)
        return False

    def _lineage(self, record: Record) -> tuple[int, int, int]:
        """The number of an output's origin, or what it is else; its event's offset; its step."""
        value = lineage.of(record.headers) or b""
        parts = _LINEAGE.match(value)
        if parts is None:
            return min(self._origin(value), _STRANGER), 0, 0
        number = self._numbers.get(parts[1])
        if number is None:
            number = self._numbers[parts[1]] = self._origin(value)
        step = parts[3]
        first = _FIRST_STEPS.get(step[:1])
        return number, int(parts[2]), int(step) if first is None else int(step[1:]) + first

    def _origin(self, value: bytes) -> int:
        parsed = lineage.parse(value)
        if parsed is not None and parsed.app != self.plan.app:
            return _OF_OTHERS
        if parsed is not None and not parsed.topic:
            return _SENT
        if parsed is None or parsed.offset < 0:
            return _STRANGER
        origin = Origin(TP(parsed.topic, parsed.partition), self._agents.get(parsed.agent, 0))
        return self._origins.setdefault(origin, len(self._origins))

    # -- marks and dead letters

    async def marks_in(self, tp: TP, source: TP) -> None:
        """A partition of the marks' changelog. What is missing at its start was trimmed when its window was over."""
        gone = start = self.survey.starts[tp]
        first: tuple[int, int] | None = None
        ahead = 0
        async with aclosing(self._logs.read(tp, start, self.survey.ends[tp])) as pieces:
            async for piece in pieces:
                if piece.missing:
                    gone, first = gone + piece.missing, None
                try:
                    rows, piece_ahead = marks_of(piece.records)
                except ValueError as exc:
                    raise UnknownMark(
                        f"{tp.topic}[{tp.partition}] holds {exc}, between {piece.start} and {piece.next}: it was written by "
                        "another version of semel; prove with that one"
                    ) from exc
                if len(rows):
                    first = first or (int(rows["offset"].min()), int(rows["filed"][0]))
                    ahead = max(ahead, piece_ahead)
                    self.marks += len(rows)
                    self.spool.add("marks", source, rows)
        if gone:
            before, filed = first or (2**61, 2**61)
            self.trimmed[source] = Missing(before + _EPOCH_EVENTS, filed, ahead)

    async def letters_in(self, tp: TP) -> None:
        """A partition of the dead-letter topic. Who wrote without semel's headers there is nobody's witness."""
        async for records in self._records(tp):
            by_source: dict[TP, list[tuple[int, int, int, int]]] = defaultdict(list)
            for record in records:
                # The event may have brought headers of these names: ours are the last.
                headers = split_headers(record.headers)[1]
                topic, partition, offset = (headers.get(f"semel.{n}", b"") for n in ("topic", "partition", "offset"))
                # One that was held back, edited, says of no event that it died once more.
                ours = headers.get("semel.pipeline") == self.plan.app.encode() and topic and HELD not in headers
                if not ours or not (partition.isdigit() and offset.isdigit() and len(offset) <= 16):
                    continue
                agent = lineage.signed(headers.get("semel.agent", b"").decode(errors="replace"))
                content = 0 if "semel.left_out" in headers else content_of(record)
                source = TP(topic.decode(errors="replace"), int(partition))
                by_source[source].append((int(offset), self._agents.get(agent, 0), record.offset, content))
            for source, letters in by_source.items():
                offsets, agents, at, contents = zip(*letters, strict=True)
                rows = columns(LETTER, offsets, agent=agents, at=at, content=contents, where=self._wheres[tp])
                self.spool.add("letters", source, rows)


async def read(survey: Survey, logs: Logs, spool: Spool, remarks: Remarks) -> History:
    """Read all of it, each log once, and at last the positions again.

    UnknownMark, Unreadable, NothingToProve; RpcLost where no broker answers.
    """
    history, plan = History(survey, logs, spool), survey.plan
    logs.phase = "parked events"
    for tp in survey.parked_ends:
        await history.parked_in(tp)
    logs.phase = "timers"
    for tp in survey.timer_ends:
        await history.timers_in(tp)
    logs.phase = "outputs"
    for tp in survey.outputs:
        if not await history.outputs_in(tp):
            await history.order_in(tp, remarks)
    logs.phase = "marks"
    for tp in survey.marks:
        [source] = plan.sources
        await history.marks_in(tp, TP(source, tp.partition))
    logs.phase = "dead letters"
    for tp in survey.letters:
        await history.letters_in(tp)
    logs.phase = "positions"
    await history.closing.read(logs, plan, partitions(survey.topics, plan.positions_topic), remarks)
    return history
