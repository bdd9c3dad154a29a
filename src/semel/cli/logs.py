"""Logging of a command that runs on: text on standard error, or JSON lines on standard output."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from semel.display import printing
from semel.display.folding import folded


class Lines(logging.Formatter):
    """One line a record, whatever its text holds; a traceback is indented below it, so that none of it looks like one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return folded(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"    {folded(line)}" for line in text.split("\n"))


class JsonLines(logging.Formatter):
    """One JSON object a record, the traceback within it."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Stream(logging.StreamHandler[TextIO]):
    """A stream that cannot be written (its reader is gone, the disk is full) costs its lines, and the work goes on."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not (isinstance(error, OSError) or (isinstance(error, ValueError) and self.stream.closed)):
            super().handleError(record)
        elif not self._told:
            self._told = True
            if self.stream is not sys.stderr:
                printing.tell(f"semel: the log cannot be written ({error}); its lines are lost until it can")


def configure(*, as_json: bool) -> None:
    """Send all logging, from INFO on, to one place."""
    handler = Stream(sys.stdout if as_json else sys.stderr)
    handler.setFormatter(JsonLines() if as_json else Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
