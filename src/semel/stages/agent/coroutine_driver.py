"""Coroutine driver: resumes an agent's code step by step, and not any more where it swallows its end.

A task cannot be ended from outside while its coroutine catches everything. It can be left suspended: whoever drives it
does not go on. `finally` blocks of such code never run.
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from semel.errors import StaleIncarnation

# Suspended for ever. Nobody may collect them: that would close them, which is one more thing that they swallow.
_SUSPENDED: list[Coroutine[Any, Any, Any]] = []


@atexit.register
def close_suspended() -> None:
    """At the end of a process, while there are still modules that they may need; sooner where no loop runs them any more."""
    while _SUSPENDED:
        coroutine = _SUSPENDED.pop()
        with contextlib.suppress(BaseException):
            coroutine.close()


class SuspendedForever:
    """Awaited by code that is never to be woken again."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield self


class CoroutineDriver(Coroutine[Any, Any, Any]):
    """A coroutine that ends as its inner one does, or with StaleIncarnation where that awaits `SuspendedForever` or is left.

    `begins`, `ends`: called around each step, between which the loop is held. `to_suspend`: set by whoever wants it left where it
    stands at its next cancellation; `suspended`: it asked for that itself.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], begins: Callable[[], None], ends: Callable[[], None]
    ) -> None:
        self.coroutine = coroutine
        self.to_suspend = self.suspended = False
        self._begins = begins
        self._ends = ends

    def send(self, value: Any) -> Any:
        self._begins()
        try:
            return self._unless_suspended(self.coroutine.send(value))
        finally:
            self._ends()

    def throw(self, *exc: Any) -> Any:
        if self.to_suspend:
            _SUSPENDED.append(self.coroutine)
            raise StaleIncarnation("the agent's code did not end with its run")
        self._begins()
        try:
            # Without the frames of whoever cancels, so that the innermost one of the traceback is the agent's.
            error = exc[0].with_traceback(None) if isinstance(exc[0], BaseException) else exc[0]
            return self._unless_suspended(self.coroutine.throw(error))
        finally:
            self._ends()

    def close(self) -> None:
        self.coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.coroutine.__await__()

    def _unless_suspended(self, waits_for: Any) -> Any:
        if type(waits_for) is SuspendedForever:
            self.suspended = True
            _SUSPENDED.append(self.coroutine)
            raise StaleIncarnation("the agent's code swallowed the end of its run")
        return waits_for
