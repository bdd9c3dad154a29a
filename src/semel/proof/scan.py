"""Scanning what a pipeline wrote: outputs, marks and dead letters, each log once, sorted by the event they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing

from semel import lineage
from semel.errors import SemelError
from semel.plan import Plan
from semel.port import TP, Record
from semel.proof import laws
from semel.proof.columns import letters_of, marks_of, outputs_of
from semel.proof.findings import Findings, Witness
from semel.proof.laws import Placed
from semel.proof.logs import Logs
from semel.proof.spool import Spool

Read = Callable[[int], None]


class UnknownMark(SemelError):
    """The marks were written by another version."""


class Scan:
    """`wheres`: the partitions read, by the number that rows have for them."""

    def __init__(self, plan: Plan, logs: Logs, spool: Spool, findings: Findings, read: Read) -> None:
        self.wheres: list[TP] = []
        self.strangers: Counter[TP] = Counter()
        self.stranger_witnesses: dict[TP, list[Witness]] = {}
        self.sent = 0
        self.outputs = 0
        self.letters = 0
        self.marks = 0
        # Offsets of marks that are gone, and the first mark that stands after them.
        self.marks_gone: dict[TP, int] = {}
        self.first_mark: dict[TP, tuple[int, int]] = {}
        # Offsets that were deleted while they were to be read.
        self.gone: Counter[TP] = Counter()
        self._plan = plan
        self._logs = logs
        self._spool = spool
        self._findings = findings
        self._read = read
        self._agents = [a.name.replace("/", "_") for a in plan.agents]

    def _number(self, tp: TP) -> int:
        self.wheres.append(tp)
        return len(self.wheres) - 1

    # -- outputs

    async def outputs_in(self, tp: TP, start: int, end: int) -> None:
        """An output partition. Its outputs are mostly in their events' order; where not, it is read again by key."""
        where, disorder = self._number(tp), False
        last: dict[tuple[str, int, int], tuple[int, int]] = {}
        async with aclosing(self._logs.read(tp, start, end)) as pieces:
            async for piece in pieces:
                self.gone[tp] += piece.missing
                rows: dict[TP, list[tuple[int, int, int, int]]] = {}
                for found, record in self._ours(tp, piece.records):
                    source, agent, offset, step = found
                    place = (source.topic, source.partition, agent)
                    if (offset, step) < last.get(place, (-1, -1)):
                        disorder = True
                    else:
                        last[place] = (offset, step)
                    rows.setdefault(source, []).append((offset, step, agent, record.offset))
                for source, found in rows.items():
                    self.outputs += len(found)
                    self._spool.add("outputs", source, outputs_of(found, where))
                self._read(piece.next - piece.start)
        if disorder:
            await self._by_key(tp, start, end)

    def _ours(
        self, tp: TP, records: Sequence[Record], *, again: bool = False
    ) -> Iterator[tuple[tuple[TP, int, int, int], Record]]:
        """(source partition, agent, source offset, step) of the outputs that are of this app, with their records.

        The others are counted, unless they were (`again`).
        """
        app = self._plan.app
        agents = {"": 0, **{name: i for i, name in enumerate(self._agents)}}
        # The part that stays the same from one output to the next is looked at once.
        known: dict[bytes, tuple[TP, int] | None] = {}
        for record in records:
            value = lineage.of(record.headers)
            if value is None:
                if not again:
                    self._stranger(tp, record)
                continue
            try:
                writer, topic, partition, offset, step, _ = value.split(b"/", 5)
            except ValueError:
                found = lineage.parse(value)
                if not again and found is None:
                    self._stranger(tp, record)
                elif not again and found is not None and found.app == app:
                    self.sent += 1
                continue
            place = b"%b/%b/%b" % (writer, topic, partition)
            if place not in known:
                found = lineage.parse(value)
                known[place] = (
                    (TP(found.topic, found.partition), agents.get(found.agent, 0))
                    if found is not None and found.app == app
                    else None
                )
            source = known[place]
            if source is not None:
                yield (source[0], source[1], int(offset), int(step)), record

    def _stranger(self, tp: TP, record: Record) -> None:
        self.strangers[tp] += 1
        seen = self.stranger_witnesses.setdefault(tp, [])
        if len(seen) < 3:
            key = None if record.key is None else record.key.decode(errors="backslashreplace")
            seen.append(Witness(tp, record.offset, "no lineage", key=key))

    async def _by_key(self, tp: TP, start: int, end: int) -> None:
        placed: list[Placed] = []
        async with aclosing(self._logs.read(tp, start, end)) as pieces:
            async for piece in pieces:
                placed += [
                    Placed(record.offset, record.key, source, self._agents[agent], offset, step)
                    for (source, agent, offset, step), record in self._ours(tp, piece.records, again=True)
                ]
        self._findings.add(laws.order_per_key(tp, placed))

    # -- marks and dead letters

    async def marks_in(self, tp: TP, source: TP, start: int, end: int) -> None:
        """A partition of the marks' changelog. What is missing at its start was trimmed when its window was over."""
        self.marks_gone[source] = start
        async with aclosing(self._logs.read(tp, start, end)) as pieces:
            async for piece in pieces:
                if piece.missing:
                    self.marks_gone[source] += piece.missing
                    self.first_mark.pop(source, None)
                try:
                    rows = marks_of(piece.records)
                except ValueError as exc:
                    raise UnknownMark(
                        f"{tp.topic}[{tp.partition}] holds {exc}, between {piece.start} and {piece.next}: it was written by "
                        "another version of semel; prove with that one"
                    ) from exc
                if len(rows):
                    self.first_mark.setdefault(source, (int(rows["offset"].min()), int(rows["filed"][0])))
                    self.marks += len(rows)
                    self._spool.add("marks", source, rows)
                self._read(piece.next - piece.start)

    async def letters_in(self, tp: TP, start: int, end: int) -> None:
        """A partition of the dead-letter topic. Who wrote without semel's headers there is nobody's witness."""
        where, app = self._number(tp), self._plan.app.encode()
        async with aclosing(self._logs.read(tp, start, end)) as pieces:
            async for piece in pieces:
                self.gone[tp] += piece.missing
                rows: dict[TP, list[tuple[int, int]]] = {}
                for record in piece.records:
                    said = dict(record.headers)
                    topic, partition, offset = (said.get(f"semel.{n}") for n in ("topic", "partition", "offset"))
                    if said.get("semel.pipeline") != app or not (topic and partition and offset):
                        continue
                    source = TP(topic.decode(), int(partition))
                    rows.setdefault(source, []).append((int(offset), record.offset))
                for source, found in rows.items():
                    self.letters += len(found)
                    self._spool.add("letters", source, letters_of(found, where))
                self._read(piece.next - piece.start)
