"""Reading what a pipeline wrote: outputs, marks and dead letters, each log once, sorted by the event they come from."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from semel.errors import SemelError
from semel.plan import Plan
from semel.port import TP, Record
from semel.proof import laws
from semel.proof.columns import LETTER, OUTPUT, chosen, columns, content_of, in_order, marks_of, offsets_of
from semel.proof.laws import Origin, Placed, Whole
from semel.proof.logs import Logs
from semel.proof.outcomes import Missing
from semel.proof.proof import Remarks, Witness
from semel.proof.spool import Spool
from semel.proof.survey import Cut, Survey, partitions
from semel.state import lineage

# As many as fit into the columns; semel never writes more.
_DIGITS, _STEP_DIGITS = 17, 10
# What an output is that is none of this app's with an event. A prefix that no lineage has.
_STRANGER, _SENT, _OF_OTHERS, _NO_PREFIX = -1, -2, -3, b"\xff"
STRANGERS_SHOWN = 3
# Within one epoch marks may stand in another order than their events.
_EPOCH_EVENTS = 50_000


class UnknownMark(SemelError):
    """The marks were written by another version."""


@dataclass(slots=True)
class History:
    """All that was recorded, the source's own records aside; its rows are in the spool.

    `closing`: the positions after all of it was read. `outputs`: how many are in each partition; `sent`: how many without an
    event. `strangers`: records without lineage, by topic, and the first of each as witnesses. `marks`: how many.
    `trimmed`: by source partition, of which events the marks are gone. `deleted`: logs from which something went while they
    were to be read.
    """

    survey: Survey
    spool: Spool
    closing: Cut
    sent: int = 0
    marks: int = 0
    outputs: Counter[TP] = field(default_factory=Counter[TP])
    strangers: Counter[str] = field(default_factory=Counter[str])
    stranger_witnesses: list[Witness] = field(default_factory=list[Witness])
    trimmed: dict[TP, Missing] = field(default_factory=dict[TP, Missing])
    deleted: set[TP] = field(default_factory=set[TP])

    @property
    def plan(self) -> Plan:
        return self.survey.plan

    @property
    def wheres(self) -> Sequence[TP]:
        """The partitions that rows number."""
        return self.survey.outputs + self.survey.letters

    def untouched(self, tp: TP) -> bool:
        """Nothing was deleted from a log since it began for us."""
        return tp in self.survey.untouched and tp not in self.deleted

    @property
    def whole(self) -> Whole:
        survey, letters = self.survey, self.plan.dead_letter_topic
        return Whole(
            outputs=not survey.missing - {letters} and all(map(self.untouched, survey.outputs)),
            letters=letters not in survey.missing and all(map(self.untouched, survey.letters)),
        )

    @property
    def bare(self) -> dict[int, int]:
        """By task: outputs that were written without lineage."""
        return {
            task: position.counts.get("out", 0) - sum(position.outputs.values())
            for task, position in self.survey.cut.positions.items()
        }


async def read(survey: Survey, logs: Logs, spool: Spool, remarks: Remarks) -> History:
    """Read all of it, each log once, and at last the positions again.

    UnknownMark, Unreadable, NothingToProve; RpcLost where no broker answers.
    """
    history, plan = History(survey, spool, copy.deepcopy(survey.cut)), survey.plan
    reading = _Reading(history, logs)
    logs.phase = "outputs"
    for tp in survey.outputs:
        if not await reading.outputs_in(tp):
            await reading.order_in(tp, remarks)
    logs.phase = "marks"
    for tp in survey.marks:
        [source] = plan.sources
        await reading.marks_in(tp, TP(source, tp.partition))
    logs.phase = "dead letters"
    for tp in survey.letters:
        await reading.letters_in(tp)
    logs.phase = "positions"
    await history.closing.read(logs, plan, partitions(survey.topics, plan.positions_topic), remarks)
    return history


class _Lineages(NamedTuple):
    """Of each record the number of its origin, or what it is else; its event's offset; its step."""

    numbers: list[int]
    offsets: list[int]
    steps: list[int]


class _Reading:
    def __init__(self, history: History, logs: Logs) -> None:
        self._history = history
        self._logs = logs
        self._app = history.plan.app
        self._agents = {lineage.signed(a.name): i for i, a in enumerate(history.plan.agents)}
        self._origins: dict[Origin, int] = {}
        self._wheres = {tp: where for where, tp in enumerate(history.wheres)}

    async def _records(self, tp: TP) -> AsyncGenerator[list[Record]]:
        """A log of outputs or dead letters, a piece at a time."""
        survey = self._history.survey
        async with aclosing(self._logs.read(tp, survey.starts[tp], survey.ends[tp])) as pieces:
            async for piece in pieces:
                if piece.missing:
                    self._history.deleted.add(tp)
                yield piece.records

    # -- outputs

    async def outputs_in(self, tp: TP) -> bool:
        """An output partition; whether all of its outputs stand in their events' order, as they mostly do."""
        history, ordered = self._history, True
        last: dict[Origin, tuple[int, int]] = {}
        async for records in self._records(tp):
            lineages = self._lineages(records)
            numbers = np.array(lineages.numbers, np.int64)
            rows = columns(
                OUTPUT, lineages.offsets, step=lineages.steps, at=offsets_of(records), where=self._wheres[tp]
            )
            history.sent += int(np.count_nonzero(numbers == _SENT))
            for record in chosen(records, numbers == _STRANGER):
                self._note_stranger(tp, record)
            for origin, number in self._origins.items():
                outputs = rows[numbers == number]
                if len(outputs):
                    outputs["agent"] = origin.agent
                    ordered = ordered and in_order(outputs, last.get(origin, (-1, -1)))
                    last[origin] = int(outputs["offset"][-1]), int(outputs["step"][-1])
                    history.outputs[tp] += len(outputs)
                    history.spool.add("outputs", origin.source, outputs)
        return ordered

    async def order_in(self, tp: TP, remarks: Remarks) -> None:
        """An output partition, once more, by key."""
        by_key: dict[tuple[bytes | None, Origin], Placed] = {}
        async for records in self._records(tp):
            lineages, origins = self._lineages(records), list(self._origins)
            placed = (
                Placed(record.offset, record.key, origins[number], offset, step)
                for record, number, offset, step in zip(records, *lineages, strict=True)
                if number >= 0
            )
            remarks.add(laws.order_per_key(tp, placed, by_key))

    def _lineages(self, records: Sequence[Record]) -> _Lineages:
        lineages = _Lineages([], [], [])
        numbers, offsets, steps = lineages
        # From one output to the next the part before the offset is mostly the same.
        prefix, number = _NO_PREFIX, _STRANGER
        for record in records:
            value = lineage.of(record.headers) or b""
            if not value.startswith(prefix):
                prefix, number = self._origin(value)
            offset, _, rest = value[len(prefix) :].partition(b"/")
            step, slash, _ = rest.partition(b"/")
            if (
                number >= 0 and slash and offset.isdigit() and step.isdigit()
                and len(offset) < _DIGITS and len(step) < _STEP_DIGITS
            ):  # fmt: skip
                numbers.append(number)
                offsets.append(int(offset))
                steps.append(int(step))
            else:
                numbers.append(min(number, _STRANGER))
                offsets.append(0)
                steps.append(0)
        return lineages

    def _origin(self, value: bytes) -> tuple[bytes, int]:
        parsed = lineage.parse(value)
        if parsed is not None and parsed.app != self._app:
            return _NO_PREFIX, _OF_OTHERS
        if parsed is not None and not parsed.topic:
            return _NO_PREFIX, _SENT
        if parsed is None or parsed.offset < 0:
            return _NO_PREFIX, _STRANGER
        origin = Origin(TP(parsed.topic, parsed.partition), self._agents.get(parsed.agent, 0))
        return b"/".join(value.split(b"/", 3)[:3]) + b"/", self._origins.setdefault(origin, len(self._origins))

    def _note_stranger(self, tp: TP, record: Record) -> None:
        self._history.strangers[tp.topic] += 1
        if self._history.strangers[tp.topic] <= STRANGERS_SHOWN:
            key = None if record.key is None else record.key.decode(errors="backslashreplace")
            self._history.stranger_witnesses.append(Witness(tp, record.offset, "no lineage", key=key))

    # -- marks and dead letters

    async def marks_in(self, tp: TP, source: TP) -> None:
        """A partition of the marks' changelog. What is missing at its start was trimmed when its window was over."""
        survey = self._history.survey
        gone = start = survey.starts[tp]
        first: tuple[int, int] | None = None
        ahead = 0
        async with aclosing(self._logs.read(tp, start, survey.ends[tp])) as pieces:
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
                    self._history.marks += len(rows)
                    self._history.spool.add("marks", source, rows)
        if gone:
            before, filed = first or (2**61, 2**61)
            self._history.trimmed[source] = Missing(before + _EPOCH_EVENTS, filed, ahead)

    async def letters_in(self, tp: TP) -> None:
        """A partition of the dead-letter topic. Who wrote without semel's headers there is nobody's witness."""
        async for records in self._records(tp):
            by_source: dict[TP, list[tuple[int, int, int, int]]] = defaultdict(list)
            for record in records:
                headers = {name: value or b"" for name, value in record.headers}
                topic, partition, offset = (headers.get(f"semel.{n}", b"") for n in ("topic", "partition", "offset"))
                ours = headers.get("semel.pipeline") == self._app.encode() and topic
                if not ours or not (partition.isdigit() and offset.isdigit() and len(offset) < _DIGITS):
                    continue
                agent = lineage.signed(headers.get("semel.agent", b"").decode(errors="replace"))
                content = 0 if "semel.left_out" in headers else content_of(record)
                source = TP(topic.decode(errors="replace"), int(partition))
                by_source[source].append((int(offset), self._agents.get(agent, 0), record.offset, content))
            for source, letters in by_source.items():
                offsets, agents, at, contents = zip(*letters, strict=True)
                rows = columns(LETTER, offsets, agent=agents, at=at, content=contents, where=self._wheres[tp])
                self._history.spool.add("letters", source, rows)
