"""Hanging transactions: what keeps committed records of a source partition from being read, said with its name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semel.port import TP, Broker, Clock, OpenTransaction, RpcError, RpcLost
from semel.stages.fetch.fetch_errors import WAY_OUT, named
from semel.stages.fetch.fetcher import PartitionFetch

log = logging.getLogger("semel.fetch")

LOOK_S = 1.0
# Producers commit within seconds; who holds a partition for longer may be gone, and his transaction.timeout.ms be long.
SAY_AFTER_S, SAY_EVERY_S = 10.0, 60.0


@dataclass(slots=True)
class _Stop:
    offset: int
    since: float
    said_at: float = 0.0


class HangingTransactions:
    def __init__(self, broker: Broker, clock: Clock, fetches: Mapping[TP, PartitionFetch]) -> None:
        self._broker = broker
        self._clock = clock
        self._feeds = fetches
        self._stops: dict[TP, _Stop] = {}

    async def run(self) -> None:
        while True:
            await self._clock.sleep(LOOK_S)
            await self._look()

    async def _look(self) -> None:
        now = self._clock.monotonic()
        for tp in [tp for tp in self._stops if tp not in self._feeds]:
            del self._stops[tp]
        due: list[TP] = []
        for tp, fetch in list(self._feeds.items()):
            stop = self._stops.get(tp)
            if not 0 <= fetch.stable < fetch.high_watermark:
                if stop is not None and stop.said_at:
                    log.info("%s[%d]: the transaction that held it at %d has ended", *tp, stop.offset)
                self._stops.pop(tp, None)
            elif stop is None or stop.offset != fetch.stable:
                self._stops[tp] = _Stop(fetch.stable, now)
            elif now - stop.since >= SAY_AFTER_S and (not stop.said_at or now - stop.said_at >= SAY_EVERY_S):
                due.append(tp)
        for topic in dict.fromkeys(tp.topic for tp in due):
            # A topic at a time: one that cannot be asked about keeps nobody from knowing of the others.
            await self._say([tp for tp in due if tp.topic == topic], now)

    async def _say(self, due: list[TP], now: float) -> None:
        holders: Mapping[TP, Sequence[OpenTransaction]] = {}
        nobody = "nobody says whose"
        try:
            holders = await self._broker.open_transactions(due)
        except (RpcError, RpcLost) as exc:
            nobody += f" ({exc})"
        for tp in due:
            stop, fetch = self._stops.get(tp), self._feeds.get(tp)
            if stop is None or fetch is None:
                continue
            stop.said_at = now
            log.warning(
                "%s[%d] is held at offset %d by an open transaction for %.0f s, %d records wait behind it: %s. %s",
                *tp, stop.offset, now - stop.since, fetch.high_watermark - stop.offset,
                named(holders.get(tp, ())) or nobody, WAY_OUT,
            )  # fmt: skip
