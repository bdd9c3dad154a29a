"""Log throttle: says a thing the first few times, then how often it happened since."""

from __future__ import annotations

import logging
from collections import Counter

SAID_EACH = 5
WINDOW_S = 10.0


class LogThrottle:
    """Lets `SAID_EACH` messages of a kind through per `WINDOW_S`; sums up the rest when the window is over."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._since = 0.0
        self._seen: Counter[str] = Counter()

    def may_say(self, kind: str, now_s: float) -> bool:
        if now_s - self._since > WINDOW_S:
            for name, count in self._seen.items():
                if count > SAID_EACH:
                    self._log.warning("%d more %s (%s)", count - SAID_EACH, self._what, name)
            self._seen.clear()
            self._since = now_s
        self._seen[kind] += 1
        return self._seen[kind] <= SAID_EACH
