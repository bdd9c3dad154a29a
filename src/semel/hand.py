"""The partition in hand: the one ambient value. Tables named by closure need it; nothing else may use it.

A `Hand` belongs to one lane (one running agent). While an event is in hand it collects the event's write set: table
writes go to the open epoch at once, with the way back kept, so that reads stay one dictionary away and an event that
fails leaves no trace; outputs wait until the event ends.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from semel.errors import OutsideEvent, StaleIncarnation
from semel.state.overlay import MISSING, Rows

in_hand: ContextVar[Hand | None] = ContextVar("semel_in_hand", default=None)


class Hand:
    """`tables`: name -> rows of the task in hand. `alive` turns false when its incarnation is over (protocol rule 5)."""

    __slots__ = ("alive", "holding", "live", "outputs", "record", "tables", "task", "undo")

    def __init__(self) -> None:
        self.alive = True
        self.holding = False
        self.task: Any = None
        self.tables: dict[str, Rows] = {}
        self.record: Any = None
        self.undo: list[tuple[Any, ...]] = []
        self.outputs: list[Any] = []
        self.live: dict[tuple[str, Any], list[Any]] = {}

    # -- tables

    def rows(self, name: str) -> Rows:
        if not self.alive:
            raise StaleIncarnation("the event in hand was given up: its partition moved, or its epoch was aborted")
        try:
            return self.tables[name]
        except KeyError:
            raise OutsideEvent(
                f"table {name!r} is not one of this pipeline's tables; list it in Pipeline(tables=[...])"
            ) from None

    def read(self, rows: Rows, key: Any, default: Any) -> Any:
        """The value, or MISSING. `default`: makes the value of a missing row, so that its changes in place are seen."""
        if rows.immutable:
            found = rows.hot.get(key, MISSING)
            return rows.value(key) if found is MISSING else found
        mine = self.live.get((rows.name, key))
        if mine is not None:
            return mine[1]
        raw_key = rows.raw(key)
        stored = rows.load(raw_key)
        if stored is not None:
            value = rows.decode(stored)
        elif default is None:
            return MISSING
        else:
            value = default()
            stored = rows.encode(key, value)
        if self.holding:
            self.live[(rows.name, key)] = [rows, value, stored, raw_key]
        return value

    def write(self, rows: Rows, key: Any, value: Any) -> None:
        if not self.holding:
            raise OutsideEvent(
                f"table {rows.name!r} was written where no event is in hand; write tables inside an agent, while it "
                "handles an event, or send an event to the source topic"
            )
        if value is MISSING:
            raw, encoded = rows.raw(key), None
        else:
            raw = rows.raw(key)
            encoded = rows.encode(key, value)
        self.undo.append((rows, key, raw, rows.open.get(raw, MISSING)))
        rows.set(key, raw, encoded, value)
        if not rows.immutable:
            if value is MISSING:
                self.live.pop((rows.name, key), None)
            else:
                self.live[(rows.name, key)] = [rows, value, encoded, raw]

    # -- the write set

    def write_back(self) -> None:
        """Write what was changed in place. Raises as a write does; called before the event is finished."""
        for (_, key), (rows, value, before, raw) in self.live.items():
            encoded = rows.encode(key, value)
            if encoded != before:
                self.undo.append((rows, key, raw, rows.open.get(raw, MISSING)))
                rows.set(key, raw, encoded, value)
        self.live.clear()

    def undo_all(self) -> None:
        """The event leaves no trace."""
        for owner, key, raw, before in reversed(self.undo):
            owner.unset(key, raw, before)
        self.undo.clear()
        self.live.clear()
        self.outputs.clear()

    def detach(self) -> list[tuple[Any, ...]]:
        """Take the unfinished event's writes out of the open epoch, to be put into the next (protocol rule 3)."""
        taken = [(owner, key, raw, owner.open.get(raw, MISSING)) for owner, key, raw, _ in self.undo]
        for owner, key, raw, before in reversed(self.undo):
            owner.unset(key, raw, before)
        self.undo.clear()
        return taken

    def attach(self, taken: list[tuple[Any, ...]]) -> None:
        for owner, key, raw, now in taken:
            self.undo.append((owner, key, raw, owner.open.get(raw, MISSING)))
            owner.open[raw] = now
