"""State log: one kind of state of one task, and what ties it to the log that it is restored from.

Whatever an event changes and a restart must know is one: the rows of a table, dedup marks. What is to be added implements
this, is made in `task/activation.py`, and has its topic named in `plan.py`; epochs, restores and resets go through all of a
task's logs alike. The position record is none: it says how far all of them are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from semel.errors import RecoveryError
from semel.port import Record
from semel.state.store import Store, StoreBatch

# A topic of which Kafka deletes nothing by itself.
KEPT = {"retention.ms": "-1", "retention.bytes": "-1"}


class StateLog(Protocol):
    """An epoch's changes are open, then sealed while it is on its way to Kafka, then in the store.

    `topic`: the log. `topic_config`: what that topic is created with.
    """

    topic: str
    topic_config: ClassVar[Mapping[str, str]]

    @property
    def touched(self) -> bool:
        """The open epoch changes it."""
        ...

    def seal(self) -> Iterable[tuple[bytes, bytes | None]]:
        """What the log is to hold of the open epoch; the next one is open from now on."""
        ...

    def land(self, batch: StoreBatch, first_offset: int, stream_ms: int | None) -> None:
        """The sealed epoch is committed: what it changes goes to the store, and what it makes expire leaves it. Nothing is
        forgotten before `landed`.

        `first_offset`: where its records begin in the log, -1 where that is not known. `stream_ms`: stream time after it.
        """
        ...

    def landed(self) -> None:
        """The store has it."""
        ...

    def drop(self) -> None:
        """Forget everything that is not committed."""
        ...

    def replay(self, batch: StoreBatch, records: Sequence[Record]) -> None:
        """Records of the log, in order, go to the store."""
        ...

    def noted(self) -> dict[str, Any]:
        """What the store is to keep of it beside its contents; `recall` gets it at the next start."""
        ...

    def recall(self, noted: Mapping[str, Any]) -> None: ...

    def expire(self, batch: StoreBatch, stream_ms: int | None) -> None:
        """Take what no longer counts at this stream time out of the store; its log may keep it for longer."""
        ...

    @property
    def holds_any(self) -> bool:
        """The store holds something of it."""
        ...


class RowLog:
    """A state log whose contents are rows of the store, under `prefix`: what is not there yet lies over it, by the row's key.

    `open`: of the open epoch, None where a row is deleted; `sealed`: of the one on its way.
    """

    __slots__ = ("_prefix", "_store", "open", "sealed", "topic")

    # Compacted but for the segment that is written to, and restores read all of it: Kafka's own are of 1 GiB and seven days.
    topic_config: ClassVar[Mapping[str, str]] = {
        "cleanup.policy": "compact", "delete.retention.ms": "86400000", "segment.bytes": str(64 << 20),
        "segment.ms": "86400000", "min.cleanable.dirty.ratio": "0.3",
    }  # fmt: skip

    def __init__(self, store: Store, prefix: bytes, topic: str) -> None:
        self.topic = topic
        self.open: dict[bytes, bytes | None] = {}
        self.sealed: dict[bytes, bytes | None] = {}
        self._store = store
        self._prefix = prefix

    def row(self, row: bytes) -> bytes:
        """One that is known to be there, in the open epoch, the sealed one or the store. StoreError; RecoveryError where it is
        not."""
        for overlay in (self.open, self.sealed):
            raw = overlay.get(row)
            if raw is not None:
                return raw
        try:
            raw = self._store.get_row(self._prefix + row)
        except Exception as exc:
            raise self._store.failed("read from", exc) from exc
        if raw is None:
            raise RecoveryError(f"{self.topic} does not hold {row!r}, which it should; run `semel reset` to begin anew")
        return raw

    @property
    def touched(self) -> bool:
        return bool(self.open)

    def seal(self) -> Iterable[tuple[bytes, bytes | None]]:
        self.sealed, self.open = self.open, {}
        return self.sealed.items()

    def land(self, batch: StoreBatch, first_offset: int, stream_ms: int | None) -> None:
        if self.sealed:
            batch.rows(self._prefix, self.sealed)

    def landed(self) -> None:
        self.sealed = {}

    def drop(self) -> None:
        self.open, self.sealed = {}, {}

    def replay(self, batch: StoreBatch, records: Sequence[Record]) -> None:
        batch.rows(self._prefix, {r.key: r.value for r in records if r.key is not None})

    def noted(self) -> dict[str, Any]:
        return {}

    def recall(self, noted: Mapping[str, Any]) -> None:
        """There is nothing."""

    def expire(self, batch: StoreBatch, stream_ms: int | None) -> None:
        """Rows stay until somebody deletes them."""

    @property
    def holds_any(self) -> bool:
        return any(True for _ in self._store.scan_rows(self._prefix))
