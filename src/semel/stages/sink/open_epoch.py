"""Open epoch: what the events that are done have put into it, and the gate that runners meet between two events (rules 3, 7).

Rows and marks of it lie in the `open` of each state log. `stages/commit/checkpoint.py` cuts it from there, and
leaves an empty one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

from semel.errors import CarryOverFull
from semel.stages.sink.destination import ProducerRecord


class OpenEpoch:
    """`outputs`: records to be sent, in order. `bytes`: about what all of it takes, rows included; at `limit_bytes` it is full,
    and no event begins before it is cut. `event_bytes`: the most that one event, or one batch, may write. `closed`: the gate is.

    `changed` is set where it may be time to cut it.
    """

    def __init__(self, limit_bytes: int, event_bytes: int, changed: asyncio.Event) -> None:
        self.limit_bytes = limit_bytes
        self.event_bytes = event_bytes
        self.outputs: list[ProducerRecord] = []
        self.bytes = 0
        self.full = False
        self.closed = False
        self._changed = changed
        self._joined_bytes = 0
        self._cutting = False
        self._opened = asyncio.Event()
        # A runner has come to the closed gate.
        self.parked = asyncio.Event()

    # -- what goes in

    def add(self, outs: Iterable[ProducerRecord], size: int) -> None:
        """What came of an event: the only way in, but for `join`."""
        self.outputs.extend(outs)
        self.bytes += size
        if self.bytes >= self.limit_bytes:
            self.fill()

    def fill(self) -> None:
        """It holds as much as it may."""
        if not self.full:
            # A transaction takes so many bytes in its time, and memory as well.
            self.full = self.closed = True
            self._changed.set()

    def join(self, out: ProducerRecord) -> None:
        """What a task sends that has outlived its event. It has passed no gate, so there is a bound: what one event may write,
        for all of them. CarryOverFull."""
        size, most = self._joined_bytes + out.size, self.event_bytes
        if size > most:
            raise CarryOverFull(
                f"{self._joined_bytes} bytes were sent since the last commit by tasks that have outlived their events, and "
                f"{most} is the limit for one commit; let such a task wait between what it sends, send from the agent, or "
                "raise memory_budget_bytes (a quarter of it, 64 MiB at most)"
            )
        self._joined_bytes = size
        self.add((out,), out.size)

    # -- the gate

    def gate(self) -> Awaitable[Any]:
        """What a runner awaits between two events while the gate is closed."""
        self._opened.clear()
        self.parked.set()
        return self._opened.wait()

    def close(self) -> None:
        """It is about to be cut: no event begins from now on."""
        self._cutting = self.closed = True

    def reopen(self) -> None:
        self._cutting = self.full = False
        self._open_gate()

    def _open_gate(self) -> None:
        self.closed = False
        self._opened.set()

    # -- its end

    def take(self) -> tuple[list[ProducerRecord], int]:
        """Its outputs, and what all of it took; the next one is empty."""
        outputs, size = self.outputs, self.bytes
        self._empty()
        return outputs, size

    def drop(self) -> None:
        """All of it is given up."""
        self._empty()
        if not self._cutting:
            self._open_gate()

    def _empty(self) -> None:
        self.outputs = []
        self.bytes = self._joined_bytes = 0
        self.full = False
