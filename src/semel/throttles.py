"""What brokers ask a client to wait before its next request of a kind (KIP-219): a quota of its user or its client id.

A broker answers at once, says how long, and hears nothing on that connection meanwhile. Whoever asks all the same waits
in the dark, and takes the silence for a loss.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable

log = logging.getLogger("semel.broker")

# Often enough to see that it goes on, seldom enough that a day under a quota leaves the log readable.
SAID_EVERY_S = 60.0
# Below that a quota is only touched, which is how quotas are meant to work.
SAID_FROM_MS = 500


class Throttles:
    """One client's, by request and broker. `now`: monotonic seconds. `answers`, `seconds`: so far, by request."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._until: dict[str, dict[Hashable, float]] = {}
        self._said_at: dict[str, float] = {}
        self.answers: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def heard(self, api: str, broker: Hashable, wait_ms: int) -> None:
        """An answer to this request said so."""
        if wait_ms <= 0:
            return
        now = self._now()
        brokers = self._until.setdefault(api, {})
        brokers[broker] = max(brokers.get(broker, 0.0), now + wait_ms / 1000)
        self.answers[api] += 1
        self.seconds[api] += wait_ms / 1000
        if wait_ms >= SAID_FROM_MS and now - self._said_at.get(api, -SAID_EVERY_S) >= SAID_EVERY_S:
            self._said_at[api] = now
            log.warning(
                "broker %s throttles %s of this client: it is to wait for %.1f s, and does. Work goes on as fast as the quota "
                "of its user or client id allows; raise the quota (kafka-configs --describe --entity-type users, or clients)",
                broker, api, wait_ms / 1000,
            )  # fmt: skip

    def wait_s(self, api: str, broker: Hashable = None) -> float:
        """How long to wait with this request, to this broker, or to whichever is waited for longest; 0: not at all."""
        brokers = self._until.get(api)
        if not brokers:
            return 0.0
        now = self._now()
        for over in [b for b, until in brokers.items() if until <= now]:
            del brokers[over]
        if broker is None:
            return max(brokers.values(), default=now) - now
        return brokers.get(broker, now) - now

    def waits(self) -> dict[str, float]:
        """Of each request that is to wait: for how much longer, at whichever broker it is waited for longest."""
        return {api: wait_s for api in sorted(self._until) if (wait_s := self.wait_s(api)) > 0}
