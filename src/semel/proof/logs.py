"""Reading logs for a proof: what is committed in them, and what was kept of them before compaction took it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

from semel.port import TP, Broker, Clock, Record
from semel.proof.columns import Offsets
from semel.proof.proof import Progress
from semel.task.read_committed import CommittedLogs, Piece

Tell = Callable[[Progress], None]


class Recording(Protocol):
    """Committed records of some logs, kept before compaction took them: all that it takes must be in here."""

    def between(self, tp: TP, start: int, end: int) -> Sequence[Record]:
        """Those from offset `start` to `end` (exclusive), by offset; none of a log that is not recorded."""
        ...

    def unread(self, tp: TP, start: int, end: int) -> Offsets:
        """The offsets of those of them that compaction may have taken before they were read; sorted. Only of these may the
        effects be absent."""
        ...


class Logs(CommittedLogs):
    """The one reader of a proof. What a `recording` has of a log is read as if it were still there. `tell` is told of each
    piece that was looked at; `phase` and `total` are what it is told of them.
    """

    def __init__(
        self, broker: Broker, clock: Clock, recording: Recording | None = None, tell: Tell | None = None
    ) -> None:
        super().__init__(broker, clock, "proof")
        self.recording = recording
        self.phase = "positions"
        self.total = 0
        self.done = 0
        self._tell = tell

    async def read(self, tp: TP, start: int, end: int) -> AsyncGenerator[Piece]:
        async with aclosing(super().read(tp, start, end)) as pieces:
            async for piece in pieces:
                if self.recording is not None and not piece.missing:
                    there = {r.offset: r for r in self.recording.between(tp, piece.start, piece.next)}
                    there |= {r.offset: r for r in piece.records}
                    piece = piece._replace(records=[there[offset] for offset in sorted(there)])
                yield piece
                self.done += piece.next - piece.start
                if self._tell is not None:
                    self._tell(Progress(self.phase, self.done, max(self.total, self.done)))
