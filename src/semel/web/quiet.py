"""One line for each kind of failing request, not one for each: whoever can reach the port must not fill the disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from aiohttp.http_exceptions import HttpProcessingError

from semel.display.folding import folded

EVERY_S = 60.0
SAID_CHARACTERS_MAX = 200  # of what a request said
KINDS_MAX = 100  # kinds are types of errors and places in the code; beyond that, all others are one


class Seldom:
    """Says whether a kind is to be told of now, and how often it was not since it last was."""

    def __init__(self, every_s: float = EVERY_S, now: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._now = now
        self._told: dict[object, tuple[float, int]] = {}

    def due(self, kind: object) -> tuple[bool, int]:
        if kind not in self._told and len(self._told) >= KINDS_MAX:
            kind = None
        now = self._now()
        at, kept_back = self._told.get(kind, (now - self._every_s, 0))
        if now - at < self._every_s:
            self._told[kind] = (at, kept_back + 1)
            return False, 0
        self._told[kind] = (now, 0)
        return True, kept_back


class Quiet(logging.Filter):
    """For what the HTTP library says of requests: no traceback for one that cannot be read, and each kind seldom."""

    def __init__(self) -> None:
        super().__init__()
        self._seldom = Seldom()

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        due, kept_back = self._seldom.due((record.msg, type(error)))
        if not due:
            return False
        more = f" ({kept_back} more like it since)" if kept_back else ""
        if isinstance(error, HttpProcessingError):
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg = "a request that is no HTTP was refused: %s%s"
            record.args = (type(error).__name__, more)
            record.exc_info = record.exc_text = None
        else:
            record.msg, record.args = "%s%s", (folded(record.getMessage(), SAID_CHARACTERS_MAX), more)
        return True


http_log = logging.getLogger("semel.web.http")
http_log.addFilter(Quiet())
