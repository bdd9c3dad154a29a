"""What somebody kept of a source before compaction took it, so that it can be judged all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from semel.port import TP, Record
from semel.proof.history import Offsets


class Recording(Protocol):
    """Committed records of some logs. Whatever compaction takes from these logs must be in it.

    `unread` bounds what an absent effect can mean: an event that was there, and whose effects are not, is lost, unless it
    may have gone before anybody read it.
    """

    def between(self, tp: TP, start: int, end: int) -> Sequence[Record]:
        """Those from offset `start` to `end` (exclusive), by offset; none of a log that is not recorded."""
        ...

    def unread(self, tp: TP, start: int, end: int) -> Offsets:
        """The offsets of those of them that compaction may have taken before they were read; sorted."""
        ...


def merged(there: list[Record], kept: Sequence[Record]) -> list[Record]:
    """What is there and what was, by offset, each once."""
    present = {record.offset for record in there}
    gone = [record for record in kept if record.offset not in present]
    return sorted([*there, *gone], key=lambda record: record.offset) if gone else there
