"""Write set: what one event has written so far. Nothing of it is in the open epoch before `fold`; undo is to drop it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semel.errors import OutputRefused
from semel.state.table_rows import MISSING, ROW_BYTES, Rows

if TYPE_CHECKING:
    from semel.state.dedup_marks import Marks
    from semel.state.timers import EventTimers


class DirtyValue:
    """A changeable value that the event has been given. `before`: its bytes then; `there`: whether it was a row."""

    __slots__ = ("before", "key", "raw", "rows", "there", "value")

    def __init__(self, rows: Rows, key: Any, raw: bytes, value: Any, before: bytes, there: bool) -> None:
        self.rows = rows
        self.key = key
        self.raw = raw
        self.value = value
        self.before = before
        self.there = there


class WriteSet:
    """Of an event, or of a batch, which is one unit of work.

    `rows`: the tables that it wrote to, and the timers that it set; what it wrote is `pending` of each. `dirty`:
    values that may have been changed in place, by table and key. `marks`: ids and dedup marks, of an event one.
    `outputs`: records to be sent, in their order. `bytes`: about what all takes of a transaction; `most_bytes`: how much it may.
    """

    __slots__ = ("bytes", "dirty", "marks", "most_bytes", "outputs", "rows")

    def __init__(self) -> None:
        self.rows: list[Rows | EventTimers] = []
        self.dirty: dict[tuple[str, bytes], DirtyValue] = {}
        self.marks: list[tuple[bytes, bytes]] = []
        self.outputs: list[Any] = []
        self.bytes = 0
        self.most_bytes = 1 << 62

    # -- what the event does

    def write(self, rows: Rows, key: Any, value: Any) -> None:
        """Set a row, or delete it with MISSING. OutputRefused where it is too much for one event; then nothing is written."""
        raw, before, size = rows.write(key, value)
        if before is MISSING and len(rows.pending) == 1:
            self.rows.append(rows)
        self.bytes = held = self.bytes + ROW_BYTES + size
        if held > self.most_bytes:
            try:
                self.check_size()
            except OutputRefused:
                rows.unwrite(key, raw, before)
                raise
        if not rows.immutable:
            stored = rows.pending[raw]
            if stored is None:
                self.dirty.pop((rows.name, raw), None)
            else:
                self.dirty[(rows.name, raw)] = DirtyValue(rows, key, raw, value, stored, True)

    def emit(self, out: Any) -> None:
        """OutputRefused where it is too much for one event."""
        self.bytes = held = self.bytes + out.size
        if held > self.most_bytes:
            self.check_size(out.size)
        self.outputs.append(out)

    def check_size(self, coming: int = 0) -> None:
        """OutputRefused where it has grown larger than it may be. `coming`: bytes that are about to be added."""
        # A row that is written again and again is in the transaction once.
        held = coming + sum(out.size for out in self.outputs)
        for rows in set(self.rows):
            held += sum(ROW_BYTES + len(raw) + len(value or b"") for raw, value in rows.pending.items())
        self.bytes = held
        if held > self.most_bytes:
            raise OutputRefused(
                f"the results and rows of one event are over {self.most_bytes} bytes, which is what one transaction may "
                "carry of one event; write less for an event, or raise memory_budget_bytes (a quarter of it, 64 MiB at most)"
            )

    # -- how it ends

    def write_back(self) -> None:
        """Write what was changed in place. Raises as a write does; called before `fold`."""
        for seen in self.dirty.values():
            rows, raw = seen.rows, seen.raw
            encoded = rows.encode(seen.key, raw, seen.value)
            if encoded != seen.before:
                self.bytes += ROW_BYTES + len(raw) + len(encoded)
                if not rows.pending:
                    self.rows.append(rows)
                rows.set(seen.key, raw, encoded, seen.value)
                if self.bytes > self.most_bytes:
                    self.check_size()
        self.dirty.clear()

    def fold(self, marks: Marks | None) -> None:
        """Rows and marks join the open epoch; outputs are whoever's who calls this to take."""
        if self.rows:
            for rows in self.rows:
                raw = rows.only
                if raw is not None:
                    # As `Rows.fold`, without its call.
                    rows.open[raw] = rows.only_value
                    rows.only = None
                else:
                    rows.fold()
            self.rows.clear()
        if self.marks:
            assert marks is not None
            for id, mark in self.marks:
                if id in marks.open:
                    marks.mark(id, mark)
                else:
                    # As `Marks.mark`, without its call.
                    marks.open[id] = mark
            self.marks.clear()

    def drop(self) -> None:
        """The event leaves no trace."""
        for rows in self.rows:
            rows.undo()
        self.forget()

    def forget(self) -> None:
        """As `drop`, where what it wrote to is given up as well."""
        self.rows.clear()
        self.dirty.clear()
        self.marks.clear()
        self.outputs.clear()
