"""Held back: source partitions in which an open transaction keeps committed records from being read, said with its name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semel.port import TP, Broker, Clock, OpenTransaction, RpcError, RpcLost
from semel.runtime.intake import Feed
from semel.runtime.troubles import WAY_OUT, named

log = logging.getLogger("semel.intake")

LOOK_S = 1.0
# Producers commit within seconds; who holds a partition for longer may be gone, and his transaction.timeout.ms be long.
SAY_AFTER_S, SAY_EVERY_S = 10.0, 60.0


@dataclass(slots=True)
class _Stop:
    offset: int
    since: float
    said_at: float = 0.0


class HeldBack:
    def __init__(self, broker: Broker, clock: Clock, feeds: Mapping[TP, Feed]) -> None:
        self._broker = broker
        self._clock = clock
        self._feeds = feeds
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
        for tp, feed in list(self._feeds.items()):
            stop = self._stops.get(tp)
            if not 0 <= feed.stable < feed.high_watermark:
                if stop is not None and stop.said_at:
                    log.info("%s[%d]: the transaction that held it at %d has ended", *tp, stop.offset)
                self._stops.pop(tp, None)
            elif stop is None or stop.offset != feed.stable:
                self._stops[tp] = _Stop(feed.stable, now)
            elif now - stop.since >= SAY_AFTER_S and (not stop.said_at or now - stop.said_at >= SAY_EVERY_S):
                due.append(tp)
        for topic in dict.fromkeys(tp.topic for tp in due):
            # A topic at a time: one that cannot be asked about keeps nobody from knowing of the others.
            await self._say([tp for tp in due if tp.topic == topic], now)

    async def _say(self, due: list[TP], now: float) -> None:
        found: Mapping[TP, Sequence[OpenTransaction]] = {}
        nobody = "nobody says whose"
        try:
            found = await self._broker.open_transactions(due)
        except (RpcError, RpcLost) as exc:
            nobody += f" ({exc})"
        for tp in due:
            stop, feed = self._stops.get(tp), self._feeds.get(tp)
            if stop is None or feed is None:
                continue
            stop.said_at = now
            log.warning(
                "%s[%d] is held at offset %d by an open transaction for %.0f s, %d records wait behind it: %s. %s",
                *tp, stop.offset, now - stop.since, feed.high_watermark - stop.offset, named(found.get(tp, ())) or nobody,
                WAY_OUT,
            )  # fmt: skip
