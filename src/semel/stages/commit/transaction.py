"""Transaction: one for everything an epoch did, then the store (protocol rules 8, 9, 11, 12).

`Writer` is the worker's one transactional producer. It sends nothing but sealed epochs, in one order: partitions, offsets
group, records, and only when every record is acknowledged the offsets, then the end. Whatever goes wrong makes the writer
useless: it is dropped and a new one taken, so that a request that got lost can never touch a later transaction (KIP-890).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from semel.broker.answers import Answer, answer_of
from semel.broker.asking import Pause, ask, passes
from semel.errors import CommitError
from semel.port import TP, Broker, Clock, Membership, Producer, RpcError, RpcLost
from semel.runtime import looptime
from semel.runtime.failpoints import Failpoints
from semel.stages.commit.epoch import EpochState, SealedEpoch
from semel.stages.commit.fencing import fence
from semel.stages.sink.destination import ProducerRecord

T = TypeVar("T")

BATCH_BYTES = 900_000
REQUEST_BYTES = 8_000_000


class CommitFailed(Exception):
    """The epoch is not committed, or nobody knows: `answer` says which, and what comes next."""

    def __init__(self, answer: Answer, cause: Exception) -> None:
        super().__init__(answer, cause)
        self.answer = answer
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.answer.name}: {self.cause}"


class Unwritable(Exception):
    """A record that cannot be put into a batch: no broker was asked, and no asking again helps."""


class Throttled(Exception):
    """Brokers ask to wait for longer than a transaction may last."""


# Of its timeout, what a transaction may take where brokers ask to wait: the rest is for its end, and for its way there.
_TRANSACTION_SHARE = 0.8


class _Bound:
    """How long a commit may take: commit_timeout_ms, and what brokers ask to wait, within the transaction's own timeout."""

    def __init__(self, broker: Broker, timeout: looptime.Timeout, until: float, limit: float) -> None:
        self._throttles = broker.throttles
        self._timeout = timeout
        self.until = until
        self._limit = limit

    def wait_for(self, api: str) -> None:
        """This request will wait: count that in. Throttled."""
        wait = self._throttles.wait_s(api)
        if wait <= 0:
            return
        if looptime.now() + wait > self._limit:
            raise Throttled(f"{api} is throttled for {wait:.1f} s, which is longer than the transaction may last; it is begun "
                            "anew, smaller, when the brokers take it")  # fmt: skip
        self.until += wait
        self._timeout.extend(wait)


# Between the requests of a commit, which all its events wait for.
_PAUSE = Pause(0.02, 0.2, retry_s=0.001)


class Writer:
    """One incarnation of the worker's transactional producer. After any failure: `dead`, take another."""

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        failpoints: Failpoints,
        transactional_id: str,
        *,
        timeout_ms: int,
        commit_timeout_ms: int,
        max_batch_bytes: Callable[[str], int] = lambda _: BATCH_BYTES,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._pass = failpoints
        self.transactional_id = transactional_id
        self._timeout_ms = timeout_ms
        self._commit_timeout_s = commit_timeout_ms / 1000
        self._max_batch_bytes = max_batch_bytes
        self.producer: Producer | None = None
        self._sequences: dict[TP, int] = defaultdict(int)
        # How large a Produce request may be: one that is not answered within rpc_timeout_ms is lost.
        self.request_bytes = REQUEST_BYTES
        # Of the epoch being committed: bytes of batches, how many of them brokers have, and how long they took for those.
        self.to_send = self.acknowledged = 0
        self.taking_s = 0.0
        # A broker was away while it was committed, or said that it cannot take it yet.
        self.hindered = False
        self.dead = False
        self.transaction_open_since: float | None = None

    async def init(self, *, until: float) -> None:
        """Fence whoever had this id. RpcError or RpcLost when time is up."""
        self.producer = await fence(
            self._broker, self._clock, self._pass, self.transactional_id, timeout_ms=self._timeout_ms, until=until
        )

    async def commit(self, epoch: SealedEpoch, membership: Membership | None) -> None:
        """Commit a sealed epoch. Raises CommitFailed; then this writer is dead.

        `membership` is the snapshot taken at the assignment; None only for an app without source topics. On success
        `epoch.base_offsets` holds the offset of the first record of every partition written.
        """
        if self.dead or self.producer is None:
            epoch.step(EpochState.ABANDONED)
            raise CommitFailed(Answer.ABORT, CommitError("its writer was given up before it was sent"))
        if membership is not None and (membership.generation < 0 or not membership.member_id):
            raise AssertionError("an unfenced commit was asked for")
        try:
            rounds = self._encoded(epoch.records, self.producer)
        except Unwritable as exc:
            self.dead = True
            epoch.step(EpochState.ABANDONED)
            raise CommitFailed(Answer.RECORD, exc) from exc
        epoch.step(EpochState.COMMITTING)
        self.transaction_open_since = self._clock.monotonic()
        try:
            async with looptime.timeout(self._commit_timeout_s) as timeout:
                now = looptime.now()
                limit = now + max(self._commit_timeout_s, self._timeout_ms / 1000 * _TRANSACTION_SHARE)
                bound = _Bound(self._broker, timeout, now + self._commit_timeout_s, limit)
                await self._commit(epoch, rounds, membership, self.producer, bound)
        except Throttled as exc:
            self.dead = True
            epoch.step(EpochState.ABANDONED)
            raise CommitFailed(Answer.ABORT, exc) from exc
        except (RpcError, RpcLost, TimeoutError) as exc:
            self.dead = True
            answer = Answer.UNKNOWN if isinstance(exc, TimeoutError) else answer_of(exc)
            if answer in (Answer.WAIT, Answer.RETRY, Answer.SUCCESS):
                answer = Answer.UNKNOWN
            epoch.step(EpochState.UNKNOWN if answer is Answer.UNKNOWN else EpochState.ABANDONED)
            cause = (
                TimeoutError("the commit took longer than commit_timeout_ms") if isinstance(exc, TimeoutError) else exc
            )
            raise CommitFailed(answer, cause) from exc
        except BaseException:
            # Cancelled: the partitions had to go, or the worker, before the broker answered.
            self.dead = True
            epoch.step(EpochState.UNKNOWN)
            raise
        epoch.step(EpochState.COMMITTED)
        self.transaction_open_since = None

    async def _commit(
        self,
        epoch: SealedEpoch,
        rounds: Sequence[dict[TP, bytes]],
        membership: Membership | None,
        producer: Producer,
        bound: _Bound,
    ) -> None:
        broker, clock, passing = self._broker, self._clock, self._pass
        self.to_send = sum(len(batch) for batches in rounds for batch in batches.values())
        self.acknowledged, self.taking_s, self.hindered = 0, 0.0, False

        async def asked(api: str, request: Callable[[], Awaitable[T]]) -> T:
            bound.wait_for(api)
            return await ask(clock, request, until=bound.until, worth=self._passes, pause=_PAUSE)

        # Nothing is sent, and no transaction begun, if its records cannot follow.
        bound.wait_for("Produce")
        await passing("commit.before_partitions")
        if epoch.records:
            tps = list(epoch.records)
            await asked("AddPartitionsToTxn", lambda: broker.add_partitions(producer, tps))
            await passing("commit.after_partitions")
        if membership is not None:
            await asked("AddOffsetsToTxn", lambda: broker.add_offsets(producer, membership.group))
            await passing("commit.after_offsets_added")
        began = looptime.now()
        for batches in rounds:
            # Every record is acknowledged before the offsets are sent: the two verify the transaction on the broker and
            # would get in each other's way (KIP-890).
            for tp, offset in (await asked("Produce", _produce(broker, producer, batches))).items():
                epoch.base_offsets.setdefault(tp, offset)
            self.acknowledged += sum(map(len, batches.values()))
            self.taking_s = looptime.now() - began
        await passing("commit.after_produce")
        if membership is not None:
            offsets = epoch.offsets
            await asked("TxnOffsetCommit", lambda: broker.commit_offsets(producer, membership, offsets))
            await passing("commit.after_offsets")
        bound.wait_for("EndTxn")
        epoch.ending = True
        await ask(clock, lambda: broker.end_txn(producer, commit=True), until=bound.until, worth=passes, pause=_PAUSE)
        await passing("commit.after_end")

    def _passes(self, exc: RpcError | RpcLost) -> bool:
        if isinstance(exc, RpcLost) or answer_of(exc) is Answer.WAIT:
            self.hindered = True
        return passes(exc)

    def _encoded(self, records: Mapping[TP, Sequence[ProducerRecord]], producer: Producer) -> list[dict[TP, bytes]]:
        """Batches in rounds: one batch a partition in a round, requests of bounded size. Unwritable."""
        rounds: list[dict[TP, bytes]] = []
        sizes: list[int] = []

        def add(nth: int, tp: TP, batch: bytes) -> int:
            while nth < len(rounds) and sizes[nth] + len(batch) > self.request_bytes:
                nth += 1
            if nth >= len(rounds):
                rounds.append({})
                sizes.append(0)
                nth = len(rounds) - 1
            rounds[nth][tp] = batch
            sizes[nth] += len(batch)
            return nth + 1

        for tp, outs in records.items():
            nth = at = 0
            # A broker holds a topic's max.message.bytes against the whole batch.
            size = min(BATCH_BYTES, self.request_bytes, self._max_batch_bytes(tp.topic))
            try:
                while at < len(outs):
                    builder = self._broker.batch_builder(size)
                    at = builder.fill(outs, at)
                    nth = add(nth, tp, builder.build(producer, self._next_sequence(tp, builder.count())))
            except Exception as exc:
                raise Unwritable(f"a record for {tp.topic!r} cannot be encoded ({type(exc).__name__}: {exc})") from exc
        return rounds

    def _next_sequence(self, tp: TP, count: int) -> int:
        first = self._sequences[tp]
        # Sequences wrap as Kafka's do (DefaultRecordBatch.incrementSequence).
        self._sequences[tp] = (first + count) % 2**31
        return first

    async def abort(self) -> None:
        """End what is open at leisure, best effort; used on an orderly stop only."""
        self.dead = True
        if self.producer is not None and self.transaction_open_since is not None:
            await self._pass("abort.before_end")
            await self._broker.end_txn(self.producer, commit=False)


def _produce(broker: Broker, producer: Producer, batches: dict[TP, bytes]) -> Callable[[], Awaitable[dict[TP, int]]]:
    return lambda: broker.produce(producer, batches)
