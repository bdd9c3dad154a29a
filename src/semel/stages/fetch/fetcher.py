"""Fetcher: keeps every running task's cursors supplied, one long poll per leader, nothing fetched twice.

What waits is bounded in bytes, for all partitions together and in equal shares. A broker's answer is bounded, too, and holds
a batch that is larger than asked for only where it comes first: so who has waited longest is asked for first.

A fetch carries its incarnation: an answer asked for before a seek is thrown away (protocol rule 5).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from semel.codes import Code
from semel.port import LATEST, TP, Broker, Clock, Fetched, FetchRequest, RpcError, RpcLost, record_bytes
from semel.stages.fetch.fetch_errors import NO_LEADER, FetchErrors
from semel.stages.fetch.requests import PARTITION_LEAST_BYTES, Wanted, requests
from semel.state.task import Cursor, FetchedBatch

log = logging.getLogger("semel.fetch")

# A partition is asked for again when fewer records than this wait: at 40,000 events/s and four partitions, half a second.
LOW_RECORDS = 4_000
# The same for large records: a partition's share is no more than twice this, however large the budget.
LOW_BYTES = 4 << 20
PARTITION_BYTES = 524_288
REQUEST_BYTES = 16 << 20
# Answers under way are of the budget: so many of the largest kind.
REQUESTS = 8
# What cannot be read is asked for again after a while, after a longer one each time.
PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
# The end of a log is asked for apart from its records where nobody has said it for so long: what is not read does not grow
# unseen. A partition whose end is older than that is of unknown lag.
LOOK_S, STALE_S = 2.0, 10.0


class PartitionFetch:
    """One source partition of a running task, and the cursors that read it."""

    __slots__ = (
        "ask_bytes",
        "asked",
        "cursors",
        "high_watermark",
        "offset",
        "pause_s",
        "seen_at",
        "served",
        "stable",
        "topic_id",
        "tp",
    )

    def __init__(self, tp: TP, topic_id: str, offset: int, cursors: list[Cursor]) -> None:
        self.tp = tp
        self.topic_id = topic_id
        self.offset = offset
        self.cursors = cursors
        self.asked = False
        self.high_watermark = self.stable = -1
        # How much of it to ask for at once; when it was last answered for, as a number that grows.
        self.ask_bytes = PARTITION_BYTES
        self.served = 0
        # When that was said, in monotonic seconds.
        self.seen_at = 0.0
        self.pause_s = 0.0

    def saw(self, end: int, now: float) -> None:
        self.high_watermark = end
        self.seen_at = now

    @property
    def bytes(self) -> int:
        """What waits, in memory. Cursors share records."""
        return max(c.bytes for c in self.cursors)

    def hungry(self, low_bytes: int) -> bool:
        return not self.asked and self.bytes <= low_bytes and max(c.buffered for c in self.cursors) < LOW_RECORDS

    def deliver(self, fetched: Fetched, most_bytes: int) -> None:
        """`most_bytes`: as much as it should be told at once, in memory; the next time less is asked for if this was more."""
        self.offset = fetched.next_offset
        size = fetched.size or record_bytes(fetched.records)
        if size > most_bytes:
            self.ask_bytes = max(PARTITION_LEAST_BYTES, self.ask_bytes * most_bytes // size)
        elif size < most_bytes // 4:
            self.ask_bytes = min(PARTITION_BYTES, self.ask_bytes * 2)
        for cursor in self.cursors:
            records = fetched.records
            if records and records[0].offset < cursor.position:
                # It is ahead of the others, or of what was asked for: done is done (rule 5).
                records = [r for r in records if r.offset >= cursor.position]
            cursor.push(FetchedBatch(records, fetched.next_offset, size))


class Fetcher:
    """`offer(cursor)`: there is something new. `trimmed(tp, asked, start)`: the log no longer has what we need.

    `budget`: bytes of all that waits. `idle(cursor)`: the agent of the cursor has nothing to do.
    """

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        *,
        offer: Callable[[Cursor], None],
        trimmed: Callable[[TP, int, Fetched], None],
        troubles: FetchErrors,
        budget: int,
        idle: Callable[[Cursor], bool],
    ) -> None:
        self._broker = broker
        self._troubles = troubles
        self._clock = clock
        self._offer = offer
        self._trimmed = trimmed
        self._budget = budget
        self._idle = idle
        self._request_bytes = min(REQUEST_BYTES, budget // REQUESTS)
        # What answers under way may bring.
        self._reserved = 0
        # Somebody waits for the others to use up what they have.
        self._short = False
        self._answers = 0
        self.fetches: dict[TP, PartitionFetch] = {}
        self._wake = asyncio.Event()
        self._polls: set[asyncio.Task[None]] = set()
        self.fetched_records = 0

    def add(self, tp: TP, topic_id: str, cursors: list[Cursor]) -> None:
        self.fetches[tp] = PartitionFetch(tp, topic_id, min(c.position for c in cursors), cursors)
        self._wake.set()

    def clear(self) -> None:
        """Forget all feeds; answers still under way find nobody."""
        self.fetches.clear()

    def consumed(self, cursor: Cursor) -> None:
        fetch = self.fetches.get(cursor.tp)
        if fetch is not None and (self._short or fetch.hungry(self._low_bytes)):
            self._wake.set()

    @property
    def held_bytes(self) -> int:
        """What waits, of all partitions."""
        return sum(fetch.bytes for fetch in self.fetches.values())

    @property
    def _low_bytes(self) -> int:
        return min(LOW_BYTES, self._budget // max(1, len(self.fetches)) // 2)

    def _choose(self) -> tuple[list[PartitionFetch], int]:
        """Whom to ask for now, who has waited longest first, and how many bytes an answer may have."""
        low = self._low_bytes
        hungry = sorted((f for f in self.fetches.values() if f.hungry(low)), key=lambda f: f.served)
        self._short = bool(hungry) and self._budget - self.held_bytes - self._reserved < self._request_bytes
        if not self._short:
            return hungry, self._request_bytes
        self._later(0.1)
        # What waits may do so for long, for a retry or a slow event: where an agent has nothing to do meanwhile, one of its
        # partitions gets a batch.
        starving = [f for f in hungry if not f.bytes and all(map(self._idle, f.cursors))]
        return ([] if self._reserved else starving), PARTITION_LEAST_BYTES

    async def run(self) -> None:
        looking = asyncio.create_task(self._look())
        try:
            while True:
                self._wake.clear()
                hungry, most = self._choose()
                if hungry:
                    await self._ask(hungry, most)
                await self._wake.wait()
        finally:
            looking.cancel()
            for poll in self._polls:
                poll.cancel()

    async def _look(self) -> None:
        """Ask for the ends of logs that no fetch has said for a while."""
        while True:
            await self._clock.sleep(LOOK_S)
            now = self._clock.monotonic()
            stale = [fetch for fetch in self.fetches.values() if now - fetch.seen_at >= LOOK_S]
            if stale and not await self._see_ends(stale) and len(stale) > 1:
                # One of them may be why.
                for fetch in stale:
                    await self._see_ends([fetch])

    async def _see_ends(self, fetches: list[PartitionFetch]) -> bool:
        try:
            ends = await self._broker.list_offsets([fetch.tp for fetch in fetches], LATEST)
        except (RpcError, RpcLost) as exc:
            log.debug("ends of logs: %s", exc)
            return False
        for fetch in fetches:
            if fetch.tp in ends:
                fetch.saw(ends[fetch.tp], self._clock.monotonic())
        return True

    async def _ask(self, hungry: list[PartitionFetch], most: int) -> None:
        try:
            leaders = await self._broker.leaders([f.tp for f in hungry])
        except (RpcError, RpcLost) as exc:
            log.debug("leaders: %s", exc)
            leaders = {}
            for fetch in hungry:
                if self.fetches.get(fetch.tp) is fetch:
                    self._troubles.met(fetch.tp, fetch.offset, exc)
        wanted: dict[TP, PartitionFetch] = {}
        for fetch in hungry:
            if self.fetches.get(fetch.tp) is not fetch:
                continue
            if fetch.tp not in leaders and leaders:
                self._troubles.met(fetch.tp, fetch.offset, NO_LEADER)
            elif not fetch.asked:
                wanted[fetch.tp] = fetch
        if len(leaders) < len(hungry):
            self._later(0.1)
        wants = [Wanted(f.tp, f.topic_id, f.offset, f.ask_bytes) for f in wanted.values()]
        for request in requests(wants, leaders, share_bytes=self._low_bytes, answer_bytes=most):
            fetches = [wanted[tp] for tp in request.offsets]
            for fetch in fetches:
                fetch.asked = True
            self._reserved += request.max_bytes
            poll = asyncio.create_task(self._poll(request, fetches))
            self._polls.add(poll)
            poll.add_done_callback(self._polls.discard)

    def _later(self, seconds: float, fetch: PartitionFetch | None = None) -> None:
        async def wake() -> None:
            await self._clock.sleep(seconds)
            if fetch is not None:
                fetch.asked = False
            self._wake.set()

        waking = asyncio.create_task(wake())
        self._polls.add(waking)
        waking.add_done_callback(self._polls.discard)

    def _vain(self, fetch: PartitionFetch, error: Exception) -> None:
        """It could not be read: not again before a while."""
        self._troubles.met(fetch.tp, fetch.offset, error)
        fetch.pause_s = min(fetch.pause_s * 2, LONGEST_PAUSE_S) if fetch.pause_s else PAUSE_S

    async def _poll(self, request: FetchRequest, fetches: list[PartitionFetch]) -> None:
        pause = 0.0
        try:
            answers = await self._broker.fetch(request)
            for fetch in fetches:
                answer = answers.get(fetch.tp)
                if answer is None or self.fetches.get(fetch.tp) is not fetch:
                    continue
                if answer.error == Code.OFFSET_OUT_OF_RANGE:
                    self._trimmed(fetch.tp, fetch.offset, answer)
                    pause = 0.5
                elif answer.error:
                    if answer.high_watermark >= 0:
                        fetch.saw(answer.high_watermark, self._clock.monotonic())
                    self._vain(fetch, RpcError("Fetch", answer.error))
                else:
                    fetch.saw(answer.high_watermark, self._clock.monotonic())
                    fetch.stable, fetch.pause_s = answer.last_stable_offset, 0.0
                    if fetch.tp in self._troubles:
                        self._troubles.over(fetch.tp)
                    if answer.next_offset > fetch.offset:
                        self.fetched_records += len(answer.records)
                        self._answers += 1
                        fetch.served = self._answers
                        fetch.deliver(answer, max(PARTITION_BYTES, self._low_bytes))
                        for cursor in fetch.cursors:
                            self._offer(cursor)
        except Exception as exc:
            log.debug("fetch from node %d: %s", request.node, exc)
            for fetch in fetches:
                if self.fetches.get(fetch.tp) is fetch:
                    self._vain(fetch, exc)
        finally:
            self._reserved -= request.max_bytes
            for fetch in fetches:
                if fetch.pause_s:
                    self._later(fetch.pause_s, fetch)
                else:
                    fetch.asked = False
        if pause:
            await self._clock.sleep(pause)
        self._wake.set()
