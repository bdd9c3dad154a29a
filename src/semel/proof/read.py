"""Reading what a pipeline wrote: outputs, marks and dead letters, each log once, sorted by the event they come from."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

from semel.errors import SemelError
from semel.plan import Plan
from semel.port import TP, Record
from semel.proof import laws
from semel.proof.columns import LETTER, OUTPUT, columns, content_of, in_order, marks_of
from semel.proof.cut import Cut
from semel.proof.laws import Origin, Placed, Whole
from semel.proof.logs import Logs
from semel.proof.outcomes import Missing, Rule
from semel.proof.proof import Findings, Witness
from semel.proof.spool import Spool
from semel.proof.survey import Survey
from semel.state import lineage

# As many as fit into the columns; semel never writes more.
_DIGITS, _STEP_DIGITS = 17, 10
# Within one epoch marks may stand in another order than their events.
_EPOCH_EVENTS = 50_000


class UnknownMark(SemelError):
    """The marks were written by another version."""


@dataclass(frozen=True, slots=True)
class History:
    """All that was recorded, the source's own records aside; its rows are in the spool.

    `closing`: the positions after all of it was read. `wheres`: the partitions read, by the number that rows have for them.
    `strangers`: records without lineage of this app; `outputs`: how many of its own are in each partition. `sent`: outputs
    without an event, `marks`: how many there are, both by partition. `gone`: offsets that were deleted while they were to
    be read. `trimmed`: by source partition, of which events the marks are gone.
    """

    survey: Survey
    spool: Spool
    closing: Cut
    wheres: list[TP] = field(default_factory=list[TP])
    strangers: Counter[TP] = field(default_factory=Counter[TP])
    stranger_witnesses: list[Witness] = field(default_factory=list[Witness])
    outputs: Counter[TP] = field(default_factory=Counter[TP])
    sent: Counter[TP] = field(default_factory=Counter[TP])
    marks: Counter[TP] = field(default_factory=Counter[TP])
    gone: Counter[TP] = field(default_factory=Counter[TP])
    trimmed: dict[TP, Missing] = field(default_factory=dict[TP, Missing])

    @property
    def plan(self) -> Plan:
        return self.survey.plan

    def untouched(self, tp: TP) -> bool:
        """Nothing was deleted from a log since it began for us."""
        return self.survey.untouched(tp) and not self.gone[tp]

    @property
    def whole(self) -> Whole:
        survey, letters = self.survey, self.plan.dead_letter_topic
        return Whole(
            outputs=not survey.missing.keys() - {letters} and all(map(self.untouched, survey.outputs)),
            letters=letters not in survey.missing and all(map(self.untouched, survey.tps(letters))),
        )

    @property
    def bare(self) -> dict[int, int]:
        """By task: outputs that were written without lineage."""
        return {
            task: position.counts.get("out", 0) - sum(position.outputs.values())
            for task, position in self.survey.cut.positions.items()
        }

    def rule(self, tp: TP) -> Rule | None:
        """As it judged the events of a source partition."""
        dedup = self.plan.dedup
        if dedup is None:
            return None
        position = self.survey.cut.positions[tp.partition]
        hashed_from = position.topics[tp.topic].hashed_from
        rule = Rule(
            dedup.window_ms, dedup.bucket_ms, dedup.missing, dedup.conflict, dedup.late, hashed_from=hashed_from
        )
        # What an earlier declaration let pass took effect without a mark, and still has its outputs.
        passed = [name for name in ("missing", "conflict", "late") if name in position.passed]
        rule = rule._replace(**dict.fromkeys(passed, "pass"))
        windows = self.survey.windows(tp)
        if windows is None:
            return rule
        # Marks were trimmed by whole buckets, of a quarter of the window of then.
        bucket_ms = max(rule.bucket_ms, windows.most_ms // 4)
        return rule._replace(since=windows.since, least_ms=windows.least_ms, bucket_ms=bucket_ms)


async def read(survey: Survey, logs: Logs, spool: Spool, findings: Findings) -> History:
    """Read all of it, each log once, and at last the positions again.

    UnknownMark, Unreadable, NothingToProve; RpcLost where no broker answers.
    """
    history = History(survey, spool, copy.deepcopy(survey.cut))
    reading, plan = _Reading(history, logs, findings), survey.plan
    logs.phase = "outputs"
    for tp in survey.outputs:
        await reading.outputs_in(tp)
    if plan.dedup is not None:
        logs.phase = "marks"
        [source] = plan.sources
        for tp in survey.tps(plan.marks_topic):
            await reading.marks_in(tp, TP(source, tp.partition))
    logs.phase = "dead letters"
    for tp in survey.tps(plan.dead_letter_topic):
        await reading.letters_in(tp)
    logs.phase = "positions"
    await history.closing.read(logs, plan, survey.position_tps, findings)
    return history


class _Outputs(NamedTuple):
    """Outputs of one origin, in the order of their log."""

    offsets: list[int]
    steps: list[int]
    at: list[int]


class _Reading:
    def __init__(self, history: History, logs: Logs, findings: Findings) -> None:
        self._history = history
        self._survey = history.survey
        self._logs = logs
        self._findings = findings
        self._app = history.plan.app
        self._agents = {lineage.signed(a.name): i for i, a in enumerate(history.plan.agents)}

    def _number(self, tp: TP) -> int:
        self._history.wheres.append(tp)
        return len(self._history.wheres) - 1

    # -- outputs

    async def outputs_in(self, tp: TP) -> None:
        """An output partition. Its outputs are mostly in their events' order; where not, it is read again by key."""
        start, end = self._survey.begins(tp), self._survey.ends[tp]
        history, where, disorder = self._history, self._number(tp), False
        last: dict[Origin, tuple[int, int]] = {}
        async with aclosing(self._logs.read(tp, start, end)) as pieces:
            async for piece in pieces:
                history.gone[tp] += piece.missing
                by_origin: dict[Origin, _Outputs] = {}
                last_origin, outputs = None, _Outputs([], [], [])
                for record, origin, offset, step in self._outputs(piece.records):
                    if origin is None:
                        self._not_ours(tp, record)
                        continue
                    if origin is not last_origin:
                        last_origin, outputs = origin, by_origin.setdefault(origin, _Outputs([], [], []))
                    outputs.offsets.append(offset)
                    outputs.steps.append(step)
                    outputs.at.append(record.offset)
                for origin, (offsets, steps, at) in by_origin.items():
                    rows = columns(OUTPUT, offsets, step=steps, agent=origin.agent, at=at, where=where)
                    disorder = disorder or not in_order(rows, last.get(origin, (-1, -1)))
                    last[origin] = offsets[-1], steps[-1]
                    history.outputs[tp] += len(rows)
                    history.spool.add("outputs", origin.source, rows)
        if disorder:
            by_key: dict[tuple[bytes | None, Origin], Placed] = {}
            async with aclosing(self._logs.read(tp, start, end)) as pieces:
                async for piece in pieces:
                    placed = (
                        Placed(record.offset, record.key, origin, offset, step)
                        for record, origin, offset, step in self._outputs(piece.records)
                        if origin is not None
                    )
                    self._findings.add(laws.order_per_key(tp, placed, by_key))

    def _outputs(self, records: Sequence[Record]) -> Iterator[tuple[Record, Origin | None, int, int]]:
        """Each record with its origin, None where it is none of this app's outputs, the offset of its event and its step."""
        # From one output to the next the part before the offset is mostly the same.
        prefix, origin = b"\xff", None
        for record in records:
            value = lineage.of(record.headers) or b""
            if not value.startswith(prefix):
                prefix, origin = self._origin(value)
            offset, _, rest = value[len(prefix) :].partition(b"/")
            step, slash, _ = rest.partition(b"/")
            if (
                origin is not None and slash and offset.isdigit() and step.isdigit()
                and len(offset) < _DIGITS and len(step) < _STEP_DIGITS
            ):  # fmt: skip
                yield record, origin, int(offset), int(step)
            else:
                yield record, None, 0, 0

    def _origin(self, value: bytes) -> tuple[bytes, Origin | None]:
        parsed = lineage.parse(value)
        if parsed is None or parsed.app != self._app or parsed.offset < 0:
            return b"\xff", None
        prefix = b"/".join(value.split(b"/", 3)[:3]) + b"/"
        return prefix, Origin(TP(parsed.topic, parsed.partition), self._agents.get(parsed.agent, 0))

    def _not_ours(self, tp: TP, record: Record) -> None:
        parsed = lineage.parse(lineage.of(record.headers) or b"")
        if parsed is None or (parsed.app == self._app and parsed.topic):
            self._history.strangers[tp] += 1
            if self._history.strangers[tp] <= 3:
                key = None if record.key is None else record.key.decode(errors="backslashreplace")
                self._history.stranger_witnesses.append(Witness(tp, record.offset, "no lineage", key=key))
        elif parsed.app == self._app:
            self._history.sent[tp] += 1

    # -- marks and dead letters

    async def marks_in(self, tp: TP, source: TP) -> None:
        """A partition of the marks' changelog. What is missing at its start was trimmed when its window was over."""
        gone = start = self._survey.starts[tp]
        first: tuple[int, int] | None = None
        ahead = 0
        async with aclosing(self._logs.read(tp, start, self._survey.ends[tp])) as pieces:
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
                    self._history.marks[tp] += len(rows)
                    self._history.spool.add("marks", source, rows)
        if gone:
            before, filed = first or (2**61, 2**61)
            self._history.trimmed[source] = Missing(before + _EPOCH_EVENTS, filed, ahead)

    async def letters_in(self, tp: TP) -> None:
        """A partition of the dead-letter topic. Who wrote without semel's headers there is nobody's witness."""
        where, app = self._number(tp), self._app.encode()
        async with aclosing(self._logs.read(tp, self._survey.begins(tp), self._survey.ends[tp])) as pieces:
            async for piece in pieces:
                self._history.gone[tp] += piece.missing
                by_source: dict[TP, list[tuple[int, int, int, int]]] = defaultdict(list)
                for record in piece.records:
                    headers = {name: value or b"" for name, value in record.headers}
                    topic, partition, offset = (
                        headers.get(f"semel.{n}", b"") for n in ("topic", "partition", "offset")
                    )
                    if headers.get("semel.pipeline") != app or not topic:
                        continue
                    if not (partition.isdigit() and offset.isdigit() and len(offset) < _DIGITS):
                        continue
                    agent = lineage.signed(headers.get("semel.agent", b"").decode(errors="replace"))
                    content = 0 if "semel.left_out" in headers else content_of(record)
                    source = TP(topic.decode(errors="replace"), int(partition))
                    by_source[source].append((int(offset), self._agents.get(agent, 0), record.offset, content))
                for source, letters in by_source.items():
                    offsets, agents, at, contents = zip(*letters, strict=True)
                    rows = columns(LETTER, offsets, agent=agents, at=at, content=contents, where=where)
                    self._history.spool.add("letters", source, rows)
