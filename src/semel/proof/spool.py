"""Spool: rows sorted into blocks of source offsets, in memory while they are few, else on disk.

Outputs of one source partition may stand in any output partition. Each log is read once, its rows go to the block of
their source offset, and the judge takes one block of one partition at a time, whatever order they came in.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from semel.port import TP
from semel.proof.history import Rows, empty

# Source offsets in a block: a few dozen bytes each while it is judged.
BLOCK = 1 << 18
LIMIT_BYTES = 64 << 20

_Place = tuple[str, TP, int]


class Spool:
    """`directory` belongs to it while it is used, and is its owner's to remove."""

    def __init__(self, directory: Path, *, block: int = BLOCK, limit_bytes: int = LIMIT_BYTES) -> None:
        self.block = block
        self._directory = directory
        self._limit = limit_bytes
        self._held: dict[_Place, list[Rows]] = defaultdict(list)
        self._files: dict[_Place, Path] = {}
        self._bytes = 0

    def add(self, kind: str, tp: TP, rows: Rows) -> None:
        """Rows with a source offset in `tp`, in any order."""
        if not len(rows):
            return
        blocks = rows["offset"] // self.block
        first, last = int(blocks.min()), int(blocks.max())
        if first == last:
            self._held[(kind, tp, first)].append(rows)
        else:
            for number in np.unique(blocks).tolist():
                self._held[(kind, tp, number)].append(rows[blocks == number])
        self._bytes += rows.nbytes
        if self._bytes > self._limit:
            self._flush()

    def take(self, kind: str, tp: TP, number: int, dtype: np.dtype[Any]) -> Rows:
        """The rows of a block, each once: they are forgotten."""
        place = (kind, tp, number)
        parts = self._held.pop(place, [])
        self._bytes -= sum(part.nbytes for part in parts)
        file = self._files.pop(place, None)
        if file is not None:
            parts.insert(0, np.fromfile(file, dtype))
            file.unlink()
        return np.concatenate(parts) if parts else empty(dtype)

    def blocks(self, tp: TP) -> list[int]:
        """The numbers of the blocks that have rows of any kind."""
        return sorted({number for _, of, number in (*self._held, *self._files) if of == tp})

    def partitions(self) -> set[TP]:
        """Those of which rows are left."""
        return {tp for _, tp, _ in (*self._held, *self._files)}

    def _flush(self) -> None:
        for place, parts in self._held.items():
            file = self._files.get(place)
            if file is None:
                file = self._files[place] = self._directory / f"{len(self._files)}-{place[0]}-{place[2]}.rows"
                while file.exists():
                    file = self._files[place] = file.with_name("_" + file.name)
            with file.open("ab") as out:
                for part in parts:
                    part.tofile(out)
        self._held.clear()
        self._bytes = 0
