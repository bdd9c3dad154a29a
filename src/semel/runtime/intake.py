"""Intake: keeps every running task's cursors supplied, one long poll per leader, nothing fetched twice.

A fetch carries its incarnation: an answer asked for before a seek is thrown away (protocol rule 5).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

from semel.port import TP, Broker, Clock, Fetched, RpcError, RpcLost
from semel.runtime.task import Chunk, Cursor

log = logging.getLogger("semel.intake")

# A partition is asked for again when fewer records than this wait: at 40,000 events/s and four partitions, half a second.
LOW_RECORDS = 4_000
MAX_WAIT_MS = 250
PARTITION_BYTES = 524_288
REQUEST_BYTES = 16 << 20


class Feed:
    """One source partition of a running task, and the cursors that read it."""

    __slots__ = ("asked", "cursors", "high_watermark", "offset", "tp")

    def __init__(self, tp: TP, offset: int, cursors: list[Cursor]) -> None:
        self.tp = tp
        self.offset = offset
        self.cursors = cursors
        self.asked = False
        self.high_watermark = -1

    @property
    def hungry(self) -> bool:
        return not self.asked and max(c.buffered for c in self.cursors) < LOW_RECORDS

    def deliver(self, fetched: Fetched) -> None:
        self.offset = fetched.next_offset
        for cursor in self.cursors:
            records = fetched.records
            if records and records[0].offset < cursor.position:
                # It is ahead of the others, or of what was asked for: done is done (rule 5).
                records = [r for r in records if r.offset >= cursor.position]
            cursor.push(Chunk(records, fetched.next_offset))


class Intake:
    """`offer(cursor)`: there is something new. `trimmed(tp, asked, start)`: the log no longer has what we need."""

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        *,
        offer: Callable[[Cursor], None],
        trimmed: Callable[[TP, int, Fetched], None],
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._offer = offer
        self._trimmed = trimmed
        self.feeds: dict[TP, Feed] = {}
        self._wake = asyncio.Event()
        self._polls: set[asyncio.Task[None]] = set()
        self.fetched_records = 0

    def add(self, tp: TP, cursors: list[Cursor]) -> None:
        self.feeds[tp] = Feed(tp, min(c.position for c in cursors), cursors)
        self._wake.set()

    def clear(self) -> None:
        """Forget all feeds; answers still under way find nobody."""
        self.feeds.clear()

    def consumed(self, cursor: Cursor) -> None:
        feed = self.feeds.get(cursor.tp)
        if feed is not None and feed.hungry:
            self._wake.set()

    async def run(self) -> None:
        try:
            while True:
                self._wake.clear()
                hungry = [f for f in self.feeds.values() if f.hungry]
                if hungry:
                    await self._ask(hungry)
                await self._wake.wait()
        finally:
            for poll in self._polls:
                poll.cancel()

    async def _ask(self, hungry: list[Feed]) -> None:
        try:
            leaders = await self._broker.leaders([f.tp for f in hungry])
        except (RpcError, RpcLost) as exc:
            log.debug("leaders: %s", exc)
            leaders = {}
        by_node: dict[int, list[Feed]] = defaultdict(list)
        for feed in hungry:
            node = leaders.get(feed.tp)
            if node is not None and self.feeds.get(feed.tp) is feed and not feed.asked:
                by_node[node].append(feed)
        if len(leaders) < len(hungry):
            self._later(0.1)
        for node, feeds in by_node.items():
            for feed in feeds:
                feed.asked = True
            poll = asyncio.create_task(self._poll(node, feeds))
            self._polls.add(poll)
            poll.add_done_callback(self._polls.discard)

    def _later(self, seconds: float) -> None:
        async def wake() -> None:
            await self._clock.sleep(seconds)
            self._wake.set()

        waking = asyncio.create_task(wake())
        self._polls.add(waking)
        waking.add_done_callback(self._polls.discard)

    async def _poll(self, node: int, feeds: list[Feed]) -> None:
        pause = 0.0
        try:
            answers = await self._broker.fetch(
                node, {f.tp: f.offset for f in feeds}, committed=True, max_wait_ms=MAX_WAIT_MS, max_bytes=REQUEST_BYTES,
                partition_max_bytes=PARTITION_BYTES, purpose="source",
            )  # fmt: skip
            for feed in feeds:
                answer = answers.get(feed.tp)
                if answer is None or self.feeds.get(feed.tp) is not feed:
                    continue
                if answer.error == 1:
                    self._trimmed(feed.tp, feed.offset, answer)
                    pause = 0.5
                elif answer.error:
                    pause = 0.05
                    log.debug("%s[%d] cannot be read: error %d", feed.tp.topic, feed.tp.partition, answer.error)
                else:
                    feed.high_watermark = answer.high_watermark
                    if answer.next_offset > feed.offset:
                        self.fetched_records += len(answer.records)
                        feed.deliver(answer)
                        for cursor in feed.cursors:
                            self._offer(cursor)
        except (RpcError, RpcLost) as exc:
            log.debug("fetch from node %d: %s", node, exc)
            pause = 0.1
        except Exception:
            log.exception("what node %d answered to a fetch cannot be read; asking again", node)
            pause = 1.0
        finally:
            for feed in feeds:
                feed.asked = False
        if pause:
            await self._clock.sleep(pause)
        self._wake.set()
