"""What a cluster did, in order, for those who judge it afterwards: also what compaction, trimming and aborts took away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from semel.memory.batch import MemoryRecord
from semel.port import TP


class Journal(Protocol):
    """Told of each change when it happens. `epoch` is -1, and `producer_id`, where no transaction wrote it."""

    def created(self, transactional_id: str, producer_id: int, epoch: int) -> None:
        """A producer: every earlier one of the same transactional id is fenced from now on."""
        ...

    def appended(self, tp: TP, producer_id: int, epoch: int, records: Sequence[MemoryRecord]) -> None: ...

    def ended(self, tp: TP, producer_id: int, epoch: int, commit: bool) -> None:
        """A transaction's marker stands in the log: what the producer wrote there since the last one counts, or not."""
        ...

    def deleted(self, tp: TP, before: int) -> None: ...

    def topic_deleted(self, topic: str) -> None:
        """With all that stands in it; what is written under its name from now on is another topic's."""
        ...

    def offsets_sent(self, group: str, generation: int, member_id: str, producer_id: int, epoch: int,
                     offsets: Mapping[TP, int]) -> None:  # fmt: skip
        """Accepted as part of a transaction that is not ended."""
        ...

    def offsets_ended(self, group: str, producer_id: int, commit: bool) -> None: ...

    def generation(self, group: str, number: int, members: Sequence[str]) -> None: ...
