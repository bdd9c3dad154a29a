"""Committed records of a partition, from an offset up to an end, in pieces, however brokers come and go.

The one reader of logs to an end. How long it is patient, and what it does meanwhile, is for whoever reads to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple, TypeVar

from semel.broker.answers import needs_a_person
from semel.broker.asking import ask
from semel.codes import Code
from semel.errors import SemelError
from semel.port import EARLIEST, LATEST, TP, Broker, Clock, Fetched, FetchRequest, Record, RpcError, RpcLost
from semel.runtime import looptime
from semel.stages.fetch.fetch_errors import NO_LEADER

T = TypeVar("T")

# A broker may be away, or a partition stand still, for this long: a transaction that is open ends by its timeout.
PATIENCE_S = 60.0
AWAY_S = 15.0


class Unreadable(SemelError):
    """A log cannot be read to the end: refused, or held by an open transaction."""


class Piece(NamedTuple):
    """Records read together; `start` and `next`: the offsets they cover. `missing`: offsets below them that are gone."""

    records: list[Record]
    start: int
    next: int
    missing: int = 0


class CommittedLogs:
    """`purpose`: that of the connection that they are read by (`Broker.fetch`)."""

    piece_bytes = 4 << 20
    max_wait_ms = 200
    # Whether the next piece is fetched while one is looked at.
    fetches_ahead = True

    def __init__(self, broker: Broker, clock: Clock, purpose: str) -> None:
        self.broker = broker
        self._clock = clock
        self._purpose = purpose

    async def asked(self, request: Callable[[], Awaitable[T]]) -> T:
        """The answer to a request, asked again while brokers come and go. RpcLost, RpcError."""
        return await ask(self._clock, request, until=looptime.now() + AWAY_S)

    async def starts(self, tps: Sequence[TP]) -> dict[TP, int]:
        return await self.at_time(tps, EARLIEST)

    async def ends(self, tps: Sequence[TP]) -> dict[TP, int]:
        """The ends of the logs, open transactions included: what was committed before this call lies below."""
        return await self.at_time(tps, LATEST)

    async def at_time(self, tps: Sequence[TP], ms: int) -> dict[TP, int]:
        """The first offset of each that is stamped at that time or later; -1 for none."""
        return await self.asked(lambda: self.broker.list_offsets(tps, ms)) if tps else {}

    async def records(self, topic: str) -> AsyncGenerator[tuple[TP, Record]]:
        """All that stands in a topic, partition by partition; nothing where there is no such topic."""
        info = (await self.asked(lambda: self.broker.topics([topic]))).get(topic)
        tps = [TP(topic, partition) for partition in range(0 if info is None else info.partitions)]
        starts, ends = await self.starts(tps), await self.ends(tps)
        for tp in tps:
            async with aclosing(self.read(tp, starts[tp], ends[tp])) as pieces:
                async for piece in pieces:
                    for record in piece.records:
                        yield tp, record

    async def read(self, tp: TP, start: int, end: int) -> AsyncGenerator[Piece]:
        """Committed records from `start` to `end`.

        RpcError or RpcLost where brokers refuse, or are away for long; Unreadable where an open transaction holds the log.
        """
        at = start
        fetching: asyncio.Task[Fetched] | None = None
        try:
            while at < end:
                fetched = await (fetching or self._fetch(tp, at))
                fetching = None
                if fetched.error == Code.OFFSET_OUT_OF_RANGE:
                    # Records were deleted while we read: go on with what is there.
                    begin = (await self.starts([tp]))[tp]
                    if begin <= at:
                        raise await self.truncated(
                            tp, f"{tp.topic}[{tp.partition}] answers out of range at {at}; was it truncated?"
                        )
                    yield Piece([], at, min(begin, end), min(begin, end) - at)
                    at = begin
                    continue
                after = fetched.next_offset
                if self.fetches_ahead and after < end:
                    fetching = asyncio.create_task(self._fetch(tp, after))
                records = fetched.records
                if records and records[-1].offset >= end:
                    records = [r for r in records if r.offset < end]
                yield Piece(records, at, min(after, end))
                at = after
        finally:
            if fetching is not None:
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)

    async def _fetch(self, tp: TP, at: int) -> Fetched:
        """Something at `at`, or the news that it is gone."""
        since = self._clock.monotonic()
        while True:
            try:
                fetched = await self._ask_leader(tp, at)
            except Exception as exc:
                await self.failed(tp, at, exc, since)
            else:
                if fetched.error or fetched.next_offset > at:
                    return fetched
                since = await self.held(tp, at, since)

    async def _ask_leader(self, tp: TP, at: int) -> Fetched:
        node = (await self.broker.leaders([tp])).get(tp)
        if node is None:
            raise NO_LEADER
        answer = await self.broker.fetch(
            FetchRequest(node, {tp: at}, self.max_wait_ms, self.piece_bytes, self.piece_bytes, purpose=self._purpose)
        )
        if tp not in answer:
            raise RpcLost("Fetch", f"nothing is said of {tp.topic}[{tp.partition}]")
        fetched = answer[tp]
        if fetched.error not in (0, Code.OFFSET_OUT_OF_RANGE):
            raise RpcError("Fetch", fetched.error, f"{tp.topic}[{tp.partition}]")
        return fetched

    # -- for how long

    async def failed(self, tp: TP, at: int, exc: Exception, since_s: float) -> None:
        """It could not be read, since then. Waits, or raises."""
        if not isinstance(exc, RpcError | RpcLost) or needs_a_person(exc) or self._clock.monotonic() - since_s > AWAY_S:
            raise exc
        await self._clock.sleep(0.1)

    async def held(self, tp: TP, at: int, since_s: float) -> float:
        """It stands still. Since when from now on, or raises."""
        if self._clock.monotonic() - since_s > PATIENCE_S:
            raise Unreadable(
                f"{tp.topic}[{tp.partition}] stands still at {at}: an open transaction holds it; see who does with "
                "kafka-transactions.sh find-hanging, end it, and ask again"
            )
        return since_s

    async def truncated(self, tp: TP, why: str) -> Exception:
        return Unreadable(why)
