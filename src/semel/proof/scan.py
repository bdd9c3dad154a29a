"""Scanning what a pipeline wrote: outputs, marks and dead letters, each log once, sorted by the event they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from semel.errors import SemelError
from semel.plan import Plan
from semel.port import TP, Record
from semel.proof import laws
from semel.proof.columns import content_of, in_order, letters_of, marks_of, outputs_of
from semel.proof.findings import Findings, Witness
from semel.proof.laws import Placed
from semel.proof.logs import Logs
from semel.proof.spool import Spool
from semel.proof.survey import Survey
from semel.state import lineage

# As many as fit into the columns; semel never writes more.
_DIGITS, _STEP_DIGITS = 17, 10


class UnknownMark(SemelError):
    """The marks were written by another version."""


class Group:
    """Outputs of one source partition and agent, in the order of their log: parallel columns."""

    __slots__ = ("agent", "at", "keys", "offsets", "source", "steps")

    def __init__(self, source: TP, agent: int) -> None:
        self.source = source
        self.agent = agent
        self.offsets: list[int] = []
        self.steps: list[int] = []
        self.at: list[int] = []
        self.keys: list[bytes | None] = []


@dataclass(frozen=True, slots=True)
class Written:
    """What the logs that the pipeline writes hold, but for the rows themselves, which are in the spool.

    `wheres`: the partitions read, by the number that rows have for them. `strangers`: records without lineage of this app;
    `outputs`: how many of its own are in each partition. `marks_gone`: offsets of marks that are gone, `first_mark`: offset
    and filing time of the first that stands after them, both by source partition; `ahead`: how far event times were ahead of
    the clock, at most, in ms. `gone`: offsets that were deleted while they were to be read. `counts`: of `marks`, and of
    outputs `sent` without an event.
    """

    wheres: list[TP] = field(default_factory=list[TP])
    strangers: Counter[TP] = field(default_factory=Counter[TP])
    stranger_witnesses: dict[TP, list[Witness]] = field(default_factory=dict[TP, list[Witness]])
    outputs: Counter[TP] = field(default_factory=Counter[TP])
    marks_gone: dict[TP, int] = field(default_factory=dict[TP, int])
    first_mark: dict[TP, tuple[int, int]] = field(default_factory=dict[TP, tuple[int, int]])
    ahead: Counter[TP] = field(default_factory=Counter[TP])
    gone: Counter[TP] = field(default_factory=Counter[TP])
    counts: Counter[str] = field(default_factory=Counter[str])


async def read_written(there: Survey, logs: Logs, spool: Spool, findings: Findings) -> Written:
    """Read all of it, each log once. UnknownMark, Unreadable; RpcLost where no broker answers."""
    plan = there.plan
    scan = _Scan(plan, logs, spool, findings)
    logs.phase = "outputs"
    for tp in there.outputs:
        await scan.outputs_in(tp, there.begins(tp), there.ends[tp])
    if plan.dedup is not None:
        logs.phase = "marks"
        [source] = plan.sources
        for tp in there.tps(plan.marks_topic):
            await scan.marks_in(tp, TP(source, tp.partition), there.starts[tp], there.ends[tp])
    logs.phase = "dead letters"
    for tp in there.tps(plan.dead_letter_topic):
        await scan.letters_in(tp, there.begins(tp), there.ends[tp])
    return scan.written


class _Scan:
    def __init__(self, plan: Plan, logs: Logs, spool: Spool, findings: Findings) -> None:
        self.written = Written()
        self._plan = plan
        self._logs = logs
        self._spool = spool
        self._findings = findings
        self._agents = {lineage.signed(a.name): i for i, a in enumerate(plan.agents)}

    def _number(self, tp: TP) -> int:
        self.written.wheres.append(tp)
        return len(self.written.wheres) - 1

    def _agent(self, name: str) -> int:
        return self._agents.get(lineage.signed(name), 0)

    # -- outputs

    async def outputs_in(self, tp: TP, start: int, end: int) -> None:
        """An output partition. Its outputs are mostly in their events' order; where not, it is read again by key."""
        where, disorder = self._number(tp), False
        last: dict[tuple[TP, int], tuple[int, int]] = {}
        async with aclosing(self._logs.read(tp, start, end)) as pieces:
            async for piece in pieces:
                self.written.gone[tp] += piece.missing
                for found in self._ours(tp, piece.records):
                    rows = outputs_of(found.offsets, found.steps, found.agent, found.at, where)
                    before = last.get((found.source, found.agent), (-1, -1))
                    disorder = disorder or not in_order(rows, before)
                    last[(found.source, found.agent)] = found.offsets[-1], found.steps[-1]
                    self.written.outputs[tp] += len(rows)
                    self._spool.add("outputs", found.source, rows)
        if disorder:
            await self._by_key(tp, start, end)

    def _ours(self, tp: TP, records: Sequence[Record], *, again: bool = False) -> list[Group]:
        """The outputs of this app, by where they come from. The others are counted, unless they were (`again`)."""
        groups: dict[bytes, Group] = {}
        # From one output to the next the part before the offset is mostly the same.
        origin, group, length, name = b"\xff", None, 1, lineage.HEADER
        for record in records:
            headers = record.headers
            value = headers[-1][1] if headers and headers[-1][0] == name else lineage.of(headers)
            if value is None or group is None or not value.startswith(origin):
                origin, group = self._origin(groups, value)
                if group is None:
                    self._not_ours(tp, record, value, again)
                    continue
                length = len(origin)
            assert value is not None
            offset, _, rest = value[length:].partition(b"/")
            step, slash, _ = rest.partition(b"/")
            if not (
                slash and offset.isdigit() and step.isdigit() and len(offset) < _DIGITS and len(step) < _STEP_DIGITS
            ):
                # It has our name, and nothing that we write.
                self._stranger(tp, record, again)
                continue
            group.offsets.append(int(offset))
            group.steps.append(int(step))
            group.at.append(record.offset)
            if again:
                group.keys.append(record.key)
        return [group for group in groups.values() if group.at]

    def _origin(self, groups: dict[bytes, Group], value: bytes | None) -> tuple[bytes, Group | None]:
        said = None if value is None else lineage.parse(value)
        if said is None or value is None or said.app != self._plan.app or said.offset < 0:
            return b"\xff", None
        origin = b"/".join(value.split(b"/", 3)[:3]) + b"/"
        group = groups.get(origin)
        if group is None:
            group = groups[origin] = Group(TP(said.topic, said.partition), self._agent(said.agent))
        return origin, group

    def _not_ours(self, tp: TP, record: Record, value: bytes | None, again: bool) -> None:
        said = None if value is None else lineage.parse(value)
        if said is None or (said.app == self._plan.app and said.topic):
            self._stranger(tp, record, again)
        elif again:
            return
        elif said.app == self._plan.app:
            self.written.counts["sent"] += 1

    def _stranger(self, tp: TP, record: Record, again: bool) -> None:
        if again:
            return
        self.written.strangers[tp] += 1
        seen = self.written.stranger_witnesses.setdefault(tp, [])
        if len(seen) < 3:
            key = None if record.key is None else record.key.decode(errors="backslashreplace")
            seen.append(Witness(tp, record.offset, "no lineage", key=key))

    async def _by_key(self, tp: TP, start: int, end: int) -> None:
        last: dict[tuple[bytes | None, TP, str], Placed] = {}
        async with aclosing(self._logs.read(tp, start, end)) as pieces:
            async for piece in pieces:
                for found in self._ours(tp, piece.records, again=True):
                    name = str(found.agent)
                    rows = zip(found.at, found.keys, found.offsets, found.steps, strict=True)
                    placed = (Placed(at, key, found.source, name, offset, step) for at, key, offset, step in rows)
                    self._findings.add(laws.order_per_key(tp, placed, last))

    # -- marks and dead letters

    async def marks_in(self, tp: TP, source: TP, start: int, end: int) -> None:
        """A partition of the marks' changelog. What is missing at its start was trimmed when its window was over."""
        self.written.marks_gone[source] = start
        async with aclosing(self._logs.read(tp, start, end)) as pieces:
            async for piece in pieces:
                if piece.missing:
                    self.written.marks_gone[source] += piece.missing
                    self.written.first_mark.pop(source, None)
                try:
                    rows, ahead = marks_of(piece.records)
                except ValueError as exc:
                    raise UnknownMark(
                        f"{tp.topic}[{tp.partition}] holds {exc}, between {piece.start} and {piece.next}: it was written by "
                        "another version of semel; prove with that one"
                    ) from exc
                if len(rows):
                    self.written.first_mark.setdefault(source, (int(rows["offset"].min()), int(rows["filed"][0])))
                    self.written.ahead[source] = max(self.written.ahead[source], ahead)
                    self.written.counts["marks"] += len(rows)
                    self._spool.add("marks", source, rows)

    async def letters_in(self, tp: TP, start: int, end: int) -> None:
        """A partition of the dead-letter topic. Who wrote without semel's headers there is nobody's witness."""
        where, app = self._number(tp), self._plan.app.encode()
        async with aclosing(self._logs.read(tp, start, end)) as pieces:
            async for piece in pieces:
                self.written.gone[tp] += piece.missing
                rows: dict[TP, list[tuple[int, int, int, int]]] = {}
                for record in piece.records:
                    said = dict(record.headers)
                    topic, partition, offset = (said.get(f"semel.{n}") for n in ("topic", "partition", "offset"))
                    if said.get("semel.pipeline") != app or not (topic and partition and offset):
                        continue
                    if not (partition.isdigit() and offset.isdigit() and len(offset) < _DIGITS):
                        continue
                    source = TP(topic.decode(errors="replace"), int(partition))
                    agent = self._agent((said.get("semel.agent") or b"").decode(errors="replace"))
                    content = 0 if "semel.left_out" in said else content_of(record)
                    rows.setdefault(source, []).append((int(offset), agent, record.offset, content))
                for source, found in rows.items():
                    offsets, agents, at, contents = zip(*found, strict=True)
                    self._spool.add("letters", source, letters_of(offsets, agents, at, contents, where))
