"""Fates: what becomes of letters that are replayed, seen from outside: the pipeline has passed them, or they are back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing

from semel.dead_letters.decisions import Fates
from semel.dead_letters.reading import LetterReader
from semel.port import TP, Clock, Record
from semel.stages.commit.epoch import by_partition
from semel.stages.sink.destination import ProducerRecord
from semel.state import replay
from semel.state.parked_event import decode, is_held, read_row
from semel.task.read_committed import CommittedLogs

_LOOK_S = 0.2
# Replays of which nobody knows yet what becomes of them, at most: a slow pipeline is not run over.
MOST_UNKNOWN = 5_000
_LATE = ("semel.reason", b"late")
# Where nobody is to wait for them: of so many the fate is looked for, of more it stays unknown.
MOST_WATCHED = 100_000


class FateWatch:
    """What becomes of replays: the pipeline has passed them and does not have them parked, and those that died again stand in the
    dead letters.

    `wait_s`: for so long it is waited for a worker that takes them.
    """

    def __init__(
        self, reader: LetterReader, logs: CommittedLogs, clock: Clock, group: str, parked_topic: str, *, wait_s: float
    ) -> None:
        self._reader = reader
        self._parked_topic = parked_topic
        # By partition and row of the log of parked events, the letter that a replay came from.
        self._parked: dict[tuple[int, bytes], bytes] = {}
        self._parked_read: dict[TP, int] = {}
        self._logs = logs
        self._clock = clock
        self._group = group
        self._wait_s = wait_s
        self._read: dict[TP, int] = {}
        # Behind which offset of the source the fate of which letters is known.
        self._pending: list[tuple[TP, int, frozenset[bytes]]] = []
        self._waiting: set[bytes] = set()
        self._all = self._known = self._back = 0
        # Of those that came back, how many did because their dedup window is over.
        self.late = 0

    async def begin(self) -> None:
        """From here on what comes back is looked for."""
        self._read = await self._logs.ends(await self._reader.partitions())
        topic = (await self._logs.asked(lambda: self._logs.broker.topics([self._parked_topic]))).get(self._parked_topic)
        tps = [TP(topic.name, p) for p in range(topic.partitions)] if topic is not None else []
        self._parked_read = await self._logs.ends(tps)

    @property
    def fates(self) -> Fates:
        return Fates(self._all, self._known, self._back)

    def sent(self, records: Sequence[ProducerRecord], offsets: Mapping[TP, int]) -> None:
        """`offsets`: where the records of each partition begin."""
        self._all += len(records)
        for tp, there in by_partition(list(records)).items():
            letters = frozenset(dict(record.headers)[replay.LETTER] or b"" for record in there)
            if tp in offsets and len(self._waiting) < MOST_WATCHED:
                self._pending.append((tp, offsets[tp] + len(there), letters))
                self._waiting |= letters

    async def verdict(self, *, wait: bool, last: bool = False) -> str:
        """Why it is to stop, empty where it is not. `wait`: until it is known what became of all so far; else until it is of all
        but some. `last`: there is nothing more to stop."""
        clock = self._clock
        until, known = clock.monotonic() + self._wait_s, self._known
        while True:
            await self.look()
            if self._known > known:
                until, known = clock.monotonic() + self._wait_s, self._known
            over = clock.monotonic() >= until
            if self.fates.most_come_back and not last and (over or not (wait and self._pending)):
                return (
                    f"{self.fates}: the cause is still there. Nothing more is replayed; mend it and run the same command again, "
                    "or say --keep-going"
                )
            if not self._pending or (not wait and len(self._waiting) <= MOST_UNKNOWN):
                return ""
            if over:
                return "" if last else (
                    f"no worker of {self._group!r} has taken {len(self._waiting):,} replayed letters within "
                    f"{self._wait_s:g} s, so that nobody knows how they fare; start one, or say --keep-going"
                )  # fmt: skip
            await clock.sleep(_LOOK_S)

    async def look(self) -> None:
        """Learn what became of those that are watched."""
        offsets: Mapping[TP, int] = {}
        if self._pending:
            tps = sorted({tp for tp, *_ in self._pending})
            offsets = await self._logs.asked(lambda: self._logs.broker.stable_offsets(self._group, tps))
        # After the offsets: what was committed with them is below these ends, and is read to there whatever markers are late.
        # And the dead letters last: what is parked no more and died is among them.
        await self._read_on(self._parked_read, self._see_parked)
        await self._read_on(self._read, self._see_letter)
        parked = frozenset(self._parked.values())
        pending: list[tuple[TP, int, frozenset[bytes]]] = []
        for tp, end, letters in self._pending:
            if offsets.get(tp, -1) < end:
                pending.append((tp, end, letters))
                continue
            # Whatever of them was not seen came to its end.
            ended = (letters & self._waiting) - parked
            self._known += len(ended)
            self._waiting -= ended
            if left := letters & self._waiting:
                pending.append((tp, end, left))
        self._pending = pending

    async def _read_on(self, read: dict[TP, int], see: Callable[[TP, Record], None]) -> None:
        for tp, end in (await self._logs.ends(list(read))).items():
            async with aclosing(self._logs.read(tp, read[tp], end)) as pieces:
                async for piece in pieces:
                    for record in piece.records:
                        see(tp, record)
            read[tp] = max(end, read[tp])

    def _see_parked(self, tp: TP, record: Record) -> None:
        row = tp.partition, record.key or b""
        if record.value is None:
            self._parked.pop(row, None)
            return
        _, offset = read_row(row[1])
        if is_held(record.value):
            # It is back, and its key waits for its letter.
            self._parked.pop(row, None)
            return
        letter = dict(decode(offset, record.value).record.headers).get(replay.LETTER)
        if letter in self._waiting:
            self._parked[row] = letter

    def _see_letter(self, tp: TP, record: Record) -> None:
        for name, value in record.headers:
            if name == replay.LETTER and value in self._waiting:
                self._waiting.discard(value)
                self._back += 1
                self._known += 1
                self.late += _LATE in record.headers
                return
