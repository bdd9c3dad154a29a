"""Spool: rows sorted into blocks of source offsets, in memory while they are few, else on disk.

Outputs of one source partition may stand in any output partition. Each log is read once, its rows go to the block of
their source offset, and they are classified one block of one partition at a time, whatever order they came in.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from semel.port import TP
from semel.proof.columns import LETTER, MARK, OUTPUT, TIMER, Rows, columns

# Source offsets in a block: a few dozen bytes each while it is classified.
BLOCK = 1 << 18
LIMIT_BYTES = 64 << 20
KINDS = {"marks": MARK, "outputs": OUTPUT, "timers": TIMER, "letters": LETTER}


class _Place(NamedTuple):
    kind: str
    tp: TP
    block: int


class Spool:
    """`directory` belongs to it while it is used, and is its owner's to remove."""

    def __init__(self, directory: Path, *, block: int = BLOCK, limit_bytes: int = LIMIT_BYTES) -> None:
        self.block = block
        self._directory = directory
        self._limit = limit_bytes
        self._held: dict[_Place, list[Rows]] = defaultdict(list)
        self._bytes = 0
        self._files: dict[_Place, Path] = {}
        self._files_made = 0

    def add(self, kind: str, tp: TP, rows: Rows) -> None:
        """Rows of one of `KINDS`, in any order. `tp`: the source partition that their offsets are of."""
        blocks = rows["offset"] // self.block
        for number in np.unique(blocks).tolist():
            self._held[_Place(kind, tp, number)].append(rows[blocks == number])
        self._bytes += rows.nbytes
        if self._bytes > self._limit:
            self._flush()

    def take(self, kind: str, tp: TP, number: int) -> Rows:
        """The rows of a block, each once: they are forgotten."""
        place = _Place(kind, tp, number)
        parts = self._held.pop(place, [])
        self._bytes -= sum(part.nbytes for part in parts)
        file = self._files.pop(place, None)
        if file is not None:
            parts.insert(0, np.fromfile(file, KINDS[kind]))
            file.unlink()
        return np.concatenate(parts) if parts else columns(KINDS[kind])

    def blocks(self, tp: TP) -> list[int]:
        return sorted({place.block for place in (*self._held, *self._files) if place.tp == tp})

    def partitions(self) -> set[TP]:
        """Those of which rows are left."""
        return {place.tp for place in (*self._held, *self._files)}

    def _flush(self) -> None:
        for place, parts in self._held.items():
            if place not in self._files:
                self._files_made += 1
                self._files[place] = self._directory / f"{self._files_made}.rows"
            with self._files[place].open("ab") as out:
                for part in parts:
                    part.tofile(out)
        self._held.clear()
        self._bytes = 0
