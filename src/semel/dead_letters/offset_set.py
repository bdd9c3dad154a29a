"""Offset set: which offsets of a partition something was done with. Pure; a bit each, so that a million take little."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# Offsets a piece. Dead letters stand close together: between two of them are the markers of transactions.
_PIECE = 8192


class OffsetSet:
    __slots__ = ("_pieces", "count")

    def __init__(self, offsets: Iterable[int] = ()) -> None:
        self._pieces: dict[int, bytearray] = {}
        self.count = 0
        for offset in offsets:
            self.add(offset)

    def add(self, offset: int) -> None:
        number, at = divmod(offset, _PIECE)
        piece = self._pieces.get(number)
        if piece is None:
            piece = self._pieces[number] = bytearray(_PIECE // 8)
        bit = 1 << (at & 7)
        if not piece[at >> 3] & bit:
            piece[at >> 3] |= bit
            self.count += 1

    def __contains__(self, offset: int) -> bool:
        number, at = divmod(offset, _PIECE)
        piece = self._pieces.get(number)
        return piece is not None and bool(piece[at >> 3] & 1 << (at & 7))


def written(offsets: Iterable[int]) -> str:
    """Offsets in ascending order as `17-20,25`."""
    runs: list[list[int]] = []
    for offset in offsets:
        if runs and offset == runs[-1][1] + 1:
            runs[-1][1] = offset
        else:
            runs.append([offset, offset])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def read(text: str) -> Iterator[int]:
    """What `written` wrote. ValueError."""
    for run in text.split(",") if text else ():
        first, _, last = run.partition("-")
        yield from range(int(first), int(last or first) + 1)


def holds(text: str, offset: int) -> bool:
    """Whether one is among them. ValueError."""
    for run in text.split(",") if text else ():
        first, _, last = run.partition("-")
        if int(first) <= offset <= int(last or first):
            return True
    return False
