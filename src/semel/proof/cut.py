"""The cut: the position records of every task, read first; whatever is judged lies below them.

Read again at the end, they bound what may have been committed meanwhile. On the way every record that is still there is
held against the ones before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from semel.errors import SemelError
from semel.plan import Plan
from semel.port import TP, Record
from semel.proof import laws
from semel.proof.logs import Logs
from semel.proof.proof import Remarks
from semel.state import positions
from semel.state.positions import Position


class NothingToProve(SemelError):
    """The pipeline has never run here, is being reset, or its topics are not there."""


@dataclass(slots=True)
class Cut:
    """`positions`: by task. `began`: where topics, by name and id, ended when `semel reset` was run last. `records`: how many
    positions were read.
    """

    positions: dict[int, Position] = field(default_factory=dict[int, Position])
    began: dict[tuple[str, str], list[int]] = field(default_factory=dict[tuple[str, str], list[int]])
    records: int = 0
    _read_to: dict[TP, int] = field(default_factory=dict[TP, int])
    _recent: dict[int, list[tuple[int, Position]]] = field(default_factory=dict[int, list[tuple[int, Position]]])
    _resetting: set[int] = field(default_factory=set[int])

    async def read(self, logs: Logs, plan: Plan, tps: list[TP], remarks: Remarks) -> None:
        """Read on to the ends as they are now. NothingToProve while a reset is under way."""
        ends, starts = await logs.ends(tps), await logs.starts(tps)
        for tp in tps:
            async for piece in logs.read(tp, max(self._read_to.get(tp, 0), starts[tp]), ends[tp]):
                for record in piece.records:
                    self._see(tp, record, remarks)
            self._read_to[tp] = ends[tp]
        if self._resetting:
            raise NothingToProve(
                f"{plan.positions_topic} says that a reset of {plan.app!r} is under way or was broken off; run `semel reset` "
                "again, then prove"
            )

    def _see(self, tp: TP, record: Record, remarks: Remarks) -> None:
        task, value = tp.partition, record.value
        if record.key == positions.RESETTING_KEY:
            (self._resetting.discard if value is None else self._resetting.add)(task)
        elif record.key == positions.BEGAN_KEY and value is not None:
            told: dict[str, Any] = orjson.loads(value)
            self.began = {(name, at["id"]): [int(end) for end in at["ends"]] for name, at in told["topics"].items()}
        elif record.key == positions.KEY and value is None:
            self.positions.pop(task, None)
            self._recent.pop(task, None)
        elif record.key == positions.KEY and value is not None:
            position = self.positions[task] = positions.decode(value, f"{tp.topic}[{task}]@{record.offset}")
            self.records += 1
            recent = self._recent[task] = [*self._recent.get(task, [])[-2:], (record.offset, position)]
            if len(recent) > 1:
                remarks.add(laws.position_never_back(tp, record.offset, recent[-2][1], position))
            if len(recent) > 2:
                at, late = recent[1]
                remarks.add(laws.fenced_writes_nothing(tp, at, recent[0][1], late, position))

    def next(self, tp: TP) -> int:
        """How far the last of the agents has come in a source partition; -1 where none ever was."""
        return max(self.by_agent(tp).values(), default=-1)

    def by_agent(self, tp: TP) -> dict[str, int]:
        """How far each agent has come; those that are no further than the common position go by ''."""
        position = self.positions.get(tp.partition)
        at = position.topics.get(tp.topic) if position is not None else None
        return {} if at is None else {"": at.next, **at.cursors}
