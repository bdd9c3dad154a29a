"""The transaction coordinator: producer ids and epochs, and what a transaction may do in which state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from semel.codes import Code
from semel.memory.journal import Journal
from semel.memory.refused import Refused
from semel.memory.timers import Timer, Timers
from semel.port import TP, Producer

MAX_EPOCH = 32_766

EMPTY = "Empty"
ONGOING = "Ongoing"
PREPARE_COMMIT, COMPLETE_COMMIT = "PrepareCommit", "CompleteCommit"
PREPARE_ABORT, COMPLETE_ABORT = "PrepareAbort", "CompleteAbort"


class Participants(Protocol):
    """Where the markers of a transaction go."""

    def write_marker(self, tp: TP, producer_id: int, epoch: int, *, commit: bool) -> None: ...

    def end_group_transaction(self, group: str, producer_id: int, *, commit: bool) -> None: ...

    def marker_delay_s(self) -> float: ...


@dataclass(slots=True)
class Transaction:
    """A transactional id and the transaction it is in."""

    transactional_id: str
    producer_id: int
    timeout_s: float
    epoch: int = 0
    state: str = EMPTY
    partitions: set[TP] = field(default_factory=set[TP])
    groups: set[str] = field(default_factory=set[str])
    deadline: Timer | None = None

    @property
    def ending(self) -> bool:
        return self.state in (PREPARE_COMMIT, PREPARE_ABORT)


class TransactionCoordinator:
    """`sweep_s`: how often a real coordinator looks for transactions past their timeout."""

    def __init__(
        self,
        timers: Timers,
        participants: Participants,
        *,
        max_timeout_ms: int,
        sweep_s: float,
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        self._timers = timers
        self._participants = participants
        self._max_timeout_ms = max_timeout_ms
        self._sweep_s = sweep_s
        self._by_id: dict[str, Transaction] = {}
        self._next_producer_id = 1000

    def get(self, transactional_id: str) -> Transaction | None:
        return self._by_id.get(transactional_id)

    def name_of(self, producer_id: int) -> str | None:
        """The transactional id that has this producer id now."""
        return next((t.transactional_id for t in self._by_id.values() if t.producer_id == producer_id), None)

    def init_producer_id(self, transactional_id: str, timeout_ms: int) -> Producer:
        if not 0 < timeout_ms <= self._max_timeout_ms:
            raise Refused(Code.INVALID_TRANSACTION_TIMEOUT, f"transaction timeout {timeout_ms} ms")
        txn = self._by_id.get(transactional_id)
        if txn is None:
            txn = Transaction(transactional_id, self._new_producer_id(), timeout_ms / 1000)
            self._by_id[transactional_id] = txn
            return self._created(txn)
        if txn.ending:
            raise Refused(Code.CONCURRENT_TRANSACTIONS, f"the last transaction is in {txn.state}")
        if txn.state == ONGOING:
            self._abort_and_fence(txn)
            raise Refused(Code.CONCURRENT_TRANSACTIONS, "the open transaction of an earlier producer is being aborted")
        if txn.epoch >= MAX_EPOCH:
            txn.producer_id, txn.epoch = self._new_producer_id(), 0
        else:
            txn.epoch += 1
        txn.timeout_s = timeout_ms / 1000
        txn.state = EMPTY
        return self._created(txn)

    def add_partitions(self, producer: Producer, tps: Sequence[TP]) -> None:
        txn = self._enlist(producer)
        self._begin(txn)
        txn.partitions.update(tps)

    def add_group(self, producer: Producer, group: str) -> None:
        txn = self._enlist(producer)
        self._begin(txn)
        txn.groups.add(group)

    def verify(self, producer: Producer, *, tp: TP | None = None, group: str | None = None) -> None:
        """What a log asks before it takes a write: is this partition in the transaction now? (KIP-890)

        The answers are those that the log gives to its client.
        """
        txn = self._by_id.get(producer.transactional_id)
        if txn is None or txn.producer_id != producer.id:
            raise Refused(
                Code.INVALID_PRODUCER_ID_MAPPING, f"{producer.transactional_id} has not producer id {producer.id}"
            )
        if txn.epoch != producer.epoch:
            raise Refused(Code.INVALID_PRODUCER_EPOCH, f"epoch {producer.epoch}, the coordinator has {txn.epoch}")
        if txn.ending:
            raise Refused(Code.CONCURRENT_TRANSACTIONS, f"the transaction is in {txn.state}")
        known = tp in txn.partitions if tp is not None else group in txn.groups
        if txn.state != ONGOING or not known:
            raise Refused(Code.INVALID_TXN_STATE, f"{tp or group} is not in the transaction")

    def end(self, producer: Producer, *, commit: bool) -> None:
        txn = self._owned(producer)
        match txn.state:
            case "Ongoing":
                self._prepare(txn, commit=commit)
            case "CompleteCommit" if commit:
                return
            case "CompleteAbort" if not commit:
                return
            case "PrepareCommit" if commit:
                raise Refused(Code.CONCURRENT_TRANSACTIONS, "the transaction is being committed")
            case "PrepareAbort" if not commit:
                raise Refused(Code.CONCURRENT_TRANSACTIONS, "the transaction is being aborted")
            case _:
                raise Refused(
                    Code.INVALID_TXN_STATE, f"{'commit' if commit else 'abort'} of a transaction in {txn.state}"
                )

    # -- within

    def _created(self, txn: Transaction) -> Producer:
        if self._journal is not None:
            self._journal.created(txn.transactional_id, txn.producer_id, txn.epoch)
        return Producer(txn.transactional_id, txn.producer_id, txn.epoch)

    def _new_producer_id(self) -> int:
        self._next_producer_id += 1
        return self._next_producer_id

    def _owned(self, producer: Producer) -> Transaction:
        txn = self._by_id.get(producer.transactional_id)
        if txn is None or txn.producer_id != producer.id:
            raise Refused(
                Code.INVALID_PRODUCER_ID_MAPPING, f"{producer.transactional_id} has not producer id {producer.id}"
            )
        if txn.epoch != producer.epoch:
            raise Refused(Code.PRODUCER_FENCED, f"epoch {producer.epoch}, the coordinator has {txn.epoch}")
        return txn

    def _enlist(self, producer: Producer) -> Transaction:
        txn = self._owned(producer)
        if txn.ending:
            raise Refused(Code.CONCURRENT_TRANSACTIONS, f"the last transaction is in {txn.state}")
        return txn

    def _begin(self, txn: Transaction) -> None:
        if txn.state == ONGOING:
            return
        txn.state = ONGOING
        due = self._timers.now() + txn.timeout_s
        if self._sweep_s > 0:
            due = math.ceil(due / self._sweep_s) * self._sweep_s
        txn.deadline = self._timers.at(due, lambda: self._abort_and_fence(txn))

    def _abort_and_fence(self, txn: Transaction) -> None:
        # The markers carry the new epoch, so that the logs refuse the old producer, too.
        txn.epoch = min(txn.epoch + 1, MAX_EPOCH + 1)
        self._prepare(txn, commit=False)

    def _prepare(self, txn: Transaction, *, commit: bool) -> None:
        if txn.deadline is not None:
            txn.deadline.cancel()
        txn.state = PREPARE_COMMIT if commit else PREPARE_ABORT
        # Each partition, and each group, hears of the end at its own time; the next transaction waits for all of them.
        markers: list[Callable[[], None]] = [partial(self._mark, txn, tp, commit) for tp in sorted(txn.partitions)]
        markers += [partial(self._mark_group, txn, group, commit) for group in sorted(txn.groups)]
        delays = [self._participants.marker_delay_s() for _ in markers]
        for marker, delay in zip(markers, delays, strict=True):
            if delay > 0:
                self._timers.after(delay, marker)
            else:
                marker()
        last = max(delays, default=0.0)
        if last > 0:
            self._timers.after(last, lambda: self._complete(txn, commit=commit))
        else:
            self._complete(txn, commit=commit)

    def _mark(self, txn: Transaction, tp: TP, commit: bool) -> None:
        self._participants.write_marker(tp, txn.producer_id, txn.epoch, commit=commit)

    def _mark_group(self, txn: Transaction, group: str, commit: bool) -> None:
        self._participants.end_group_transaction(group, txn.producer_id, commit=commit)

    def _complete(self, txn: Transaction, *, commit: bool) -> None:
        txn.partitions.clear()
        txn.groups.clear()
        txn.state = COMPLETE_COMMIT if commit else COMPLETE_ABORT
