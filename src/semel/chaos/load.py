"""The load: events into the pipeline's source at a bounded rate, in transactions, some of which are aborted.

Whatever is not known to have arrived is sent again, as producers do: what then lies twice on the topic is one more
redelivery, and the proof reads the topic, not this module.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from random import Random

from semel.broker.answers import Answer
from semel.chaos.events import Delivery
from semel.kafka import KafkaBroker
from semel.partitioner import partition_of
from semel.port import TP, RpcError, RpcLost
from semel.runtime import looptime
from semel.runtime.clock import SystemClock
from semel.runtime.failpoints import Failpoints
from semel.stages.commit.epoch import SealedEpoch, by_partition
from semel.stages.commit.transaction import CommitFailed, Writer
from semel.stages.sink.destination import ProducerRecord

TURN_S = 0.1
ABORTED_SHARE = 0.03
TIMEOUT_MS = 10_000


class Load:
    """Sends deliveries to the topic until `stop`, or until there are no more; `counts` by kind of delivery.

    `counts["resent"]`: sent again because nobody answered; `counts["aborted"]`: in transactions that were aborted.
    `keyless`: whether any had no key, which a compacted topic does not hold. `ends`: partition -> the offset after the last
    record that is certainly there. `partitions`: over how many keys are spread.
    """

    def __init__(
        self, broker: KafkaBroker, topic: str, partitions: int, stream: Iterator[Delivery], *, rate: float, seed: int
    ) -> None:
        self._broker = broker
        self._topic = topic
        self.partitions = partitions
        self._stream = stream
        self._rate = rate
        self._rng = Random(f"{seed} load")
        self._writer: Writer | None = None
        self._last: dict[int, Delivery] = {}
        # How many records are on their way into a transaction that is to be aborted.
        self._in_vain = 0
        self._stopping = asyncio.Event()
        self.counts: Counter[str] = Counter()
        self.ends: dict[int, int] = {}
        self.keyless = False

    @property
    def published(self) -> int:
        """Records that are certainly on the topic, redeliveries included."""
        return self.counts.total() - self.counts["aborted"] - self.counts["resent"]

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        """Raises only what is no trouble with the broker."""
        loop = asyncio.get_running_loop()
        began, due = loop.time(), 0.0
        while not self._stopping.is_set():
            wanted = int((loop.time() - began) * self._rate - due)
            batch = list(islice(self._stream, max(0, wanted)))
            if wanted > 0 and not batch:
                break
            if batch:
                before = loop.time()
                await self._send(batch)
                due += len(batch)
                # While the broker is away nothing piles up: the rate is what is sent, not what is caught up with.
                began += max(0.0, loop.time() - before - 1.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TURN_S):
                    await self._stopping.wait()

    async def finish(self, within_s: float) -> bool:
        """Redeliver the last record of each partition until that is certainly done, so that `ends` is the truth."""
        self._stopping.clear()
        try:
            async with asyncio.timeout(within_s):
                await self._send([d._replace(kind="late") for d in self._last.values()])
        except TimeoutError:
            return False
        return True

    async def _send(self, batch: list[Delivery]) -> None:
        outs = [self._out(delivery) for delivery in batch]
        if self._rng.random() < ABORTED_SHARE:
            self._in_vain = len(outs)
            await self._committed(outs)
            self._in_vain = 0
        while not await self._committed(outs):
            self.counts["resent"] += len(outs)
            if self._stopping.is_set():
                return
        for delivery, out in zip(batch, outs, strict=True):
            self.counts[delivery.kind] += 1
            self._last[out.tp.partition] = delivery

    async def _committed(self, outs: list[ProducerRecord]) -> bool:
        """Whether one transaction with these was; False where it was not, or nobody knows."""
        writer = await self._ready()
        if writer is None:
            return False
        epoch = SealedEpoch(0, by_partition(outs), {})
        try:
            await writer.commit(epoch, None)
        except CommitFailed as failed:
            self._writer = None
            if failed.answer is not Answer.UNKNOWN:
                await asyncio.sleep(TURN_S)
            return False
        for tp, base in epoch.base_offsets.items():
            self.ends[tp.partition] = max(self.ends.get(tp.partition, 0), base + len(epoch.records[tp]))
        return True

    async def _given_up(self) -> None:
        """As a producer does that begins anew once it has sent: the next writer of its id aborts what is open."""
        if self._in_vain:
            self.counts["aborted"] += self._in_vain
            raise RpcLost("EndTxn", "the load has given it up", sent=False)

    async def _ready(self) -> Writer | None:
        """The writer in use or a new one; None while no broker gives one."""
        if self._writer is None or self._writer.dead:
            points = Failpoints()
            points.hooks["commit.after_produce"] = self._given_up
            writer = Writer(
                self._broker, SystemClock(), points, "semel-chaos-load", timeout_ms=TIMEOUT_MS,
                commit_timeout_ms=TIMEOUT_MS // 2,
            )  # fmt: skip
            try:
                await writer.init(until=looptime.now() + TIMEOUT_MS / 1000)
            except (RpcError, RpcLost):
                await asyncio.sleep(TURN_S)
                return None
            self._writer = writer
        return self._writer

    def _out(self, delivery: Delivery) -> ProducerRecord:
        if delivery.key is None:
            self.keyless, partition = True, self._rng.randrange(self.partitions)
        else:
            partition = partition_of(delivery.key, self.partitions)
        return ProducerRecord(
            TP(self._topic, partition), delivery.timestamp, delivery.key, delivery.value, delivery.headers
        )
