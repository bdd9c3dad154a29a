"""Fetch errors: partitions that cannot be read. Said, counted and shown for as long as that lasts, and said when it is over."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from semel.broker.answers import needs_a_person
from semel.codes import Code, describe
from semel.port import TP, Clock, OpenTransaction, RpcError, RpcLost

log = logging.getLogger("semel.fetch")

# Brokers come and go; what takes no longer is part of that.
PATIENT_S = 5.0
SAID_EVERY_S = 60.0

# What a partition's answer to a fetch means, and whether it stays until somebody does something.
_ANSWERS: dict[int, tuple[str, str, bool]] = {
    Code.CORRUPT_MESSAGE: (
        "a batch in it is damaged", "; let a replica lead that has it whole, or move the app past it (semel reset)", True,
    ),
    Code.UNKNOWN_TOPIC_OR_PARTITION: ("brokers do not know it", "", False),
    Code.UNKNOWN_TOPIC_ID: ("brokers know another topic of that name, or do not know it yet", "", False),
    Code.LEADER_NOT_AVAILABLE: ("it has no leader", "", False),
    Code.NOT_LEADER_OR_FOLLOWER: ("its leader has moved", "", False),
    Code.TOPIC_AUTHORIZATION_FAILED: ("this client may not", "; grant Read on the topic", True),
    Code.KAFKA_STORAGE_ERROR: ("its broker's disk fails", "", False),
    Code.UNSUPPORTED_COMPRESSION_TYPE: ("a batch in it is compressed in a way that is not known here", "", True),
}  # fmt: skip
NO_LEADER = RpcError("Fetch", Code.LEADER_NOT_AVAILABLE)


WAY_OUT = (
    "Its producer has to end it; one that is gone is ended by the broker after its transaction.timeout.ms, or at once by "
    "`kafka-transactions.sh abort`"
)


class Held(Exception):
    """An open transaction stands in the way."""

    def __init__(self, transactions: Sequence[OpenTransaction]) -> None:
        super().__init__(f"it is held by an open transaction: {named(transactions) or 'nobody says whose'}. {WAY_OUT}")


def named(transactions: Sequence[OpenTransaction]) -> str:
    """Who holds a partition."""
    return ", ".join(
        f"{held.transactional_id or 'a transactional id that is not known'} (producer id {held.producer_id}, from "
        f"offset {held.start_offset})"
        for held in transactions
    )


class _Trouble:
    __slots__ = ("lasts", "reported", "since_s", "why")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.why = ""
        self.lasts = False
        self.reported = False


class FetchErrors:
    """`counts`: how often a partition was asked for in vain, by partition and kind of error."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now: dict[TP, _Trouble] = {}
        self._said_at: dict[TP, float] = {}
        self.counts: Counter[tuple[TP, str]] = Counter()

    def met(self, tp: TP, offset: int, error: Exception) -> None:
        """It could not be read from there."""
        now = self._clock.monotonic()
        trouble = self._now.get(tp)
        if trouble is None:
            trouble = self._now[tp] = _Trouble(now)
        trouble.why, trouble.lasts, kind = _reason(error)
        if kind:
            self.counts[tp, kind] += 1
        waited = now - trouble.since_s
        if (trouble.lasts or waited >= PATIENT_S) and now - self._said_at.get(tp, -SAID_EVERY_S) >= SAID_EVERY_S:
            self._said_at[tp] = now
            trouble.reported = True
            since = f", for {waited:.0f} s now" if waited >= 1 else ""
            log.error("%s[%d] cannot be read from offset %d%s: %s. It is tried again and again, and waits meanwhile",
                      *tp, offset, since, trouble.why,
                      exc_info=error if kind == "unreadable" else None)  # fmt: skip

    def over(self, tp: TP) -> None:
        """It was read."""
        trouble = self._now.pop(tp, None)
        if trouble is not None and trouble.reported:
            self._said_at.pop(tp, None)
            log.info("%s[%d] can be read again", *tp)

    def forget(self, tps: Iterable[TP]) -> None:
        """These are not read here any more."""
        for tp in tps:
            self._now.pop(tp, None)

    def clear(self) -> None:
        """Nothing is read here any more."""
        self._now.clear()

    def current(self) -> dict[TP, str]:
        """Partitions that wait for somebody, or have waited for long, and why."""
        now = self._clock.monotonic()
        return {tp: t.why for tp, t in self._now.items() if t.lasts or now - t.since_s >= PATIENT_S}

    def __contains__(self, tp: TP) -> bool:
        return tp in self._now


def _reason(error: Exception) -> tuple[str, bool, str]:
    """In words; whether it stays until somebody does something; its kind, for counting, where it is an error."""
    if isinstance(error, Held):
        return str(error), False, ""
    if isinstance(error, RpcError):
        if error.code in _ANSWERS:
            what, way_out, lasts = _ANSWERS[error.code]
            why = f"{what} ({describe(error.code)}){way_out}"
        else:
            why, lasts = (
                f"{error.api} is answered with error {error.code}{f': {error.detail}' if error.detail else ''}",
                False,
            )
        return why, lasts or needs_a_person(error), str(error.code)
    if isinstance(error, RpcLost):
        return str(error), False, "lost"
    return f"what the broker answered makes no sense ({type(error).__name__}: {error})", True, "unreadable"
