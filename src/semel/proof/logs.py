"""Reading logs for a proof: what is committed in them, and what was kept of them before compaction took it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from semel.port import TP, Broker, Clock
from semel.proof.proof import Progress
from semel.proof.recording import Recording, merged
from semel.task.read_committed import CommittedLogs, Piece


class Logs(CommittedLogs):
    """The one reader of a proof. `recording`: what was kept of logs whose records compaction took; it is read as if it were
    still there. `progress` is told of each piece that was looked at; `phase` and `total` are what it is told of them.
    """

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        recording: Recording | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        super().__init__(broker, clock, "proof")
        self.recording = recording
        self.phase = "positions"
        self.total = 0
        self.done = 0
        self._progress = progress

    async def read(self, tp: TP, start: int, end: int) -> AsyncGenerator[Piece]:
        async with aclosing(super().read(tp, start, end)) as pieces:
            async for piece in pieces:
                if self.recording is None or piece.missing:
                    yield piece
                else:
                    kept = self.recording.between(tp, piece.start, piece.next)
                    yield piece._replace(records=merged(piece.records, kept))
                self.done += piece.next - piece.start
                if self._progress is not None:
                    self._progress(Progress(self.phase, self.done, max(self.total, self.done)))
