"""Reading logs: committed records by position, however brokers come and go (protocol rule 15).

A log whose last stable offset stands still has an open transaction in it; its holder is found and fenced by name if it is
not a member of the group now.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from semel.broker.answers import needs_a_person
from semel.broker.asking import Pause, ask
from semel.codes import Code
from semel.errors import RecoveryError
from semel.plan import Plan
from semel.port import EARLIEST, LATEST, TP, Broker, Clock, Fetched, OpenTransaction, Randomness, RpcError, RpcLost
from semel.stages.fetch.fetch_errors import NO_LEADER, FetchErrors, Held

log = logging.getLogger("semel.restore")

# About ten thousand rows: a chunk enters the store in one batch, and the loop waits for it.
FETCH_BYTES = 1_000_000
# A log may stand still for this long before we look for who holds it.
STALL_S = 0.15
# A log that cannot be read is asked for after a longer while each time.
LONGEST_PAUSE_S = 2.0


class LogReader:
    """Asks until the answer is there. RecoveryError where the broker refuses for good.

    `look_at`: awaited where a log ends before what it held; raises where its topic is another one by now.
    """

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        randomness: Randomness,
        plan: Plan,
        troubles: FetchErrors,
        *,
        look_at: Callable[[str], Awaitable[None]],
        own_id: str,
        transaction_timeout_ms: int,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._randomness = randomness
        self._plan = plan
        self.troubles = troubles
        self.look_at = look_at
        self._own_id = own_id
        self._transaction_timeout_ms = transaction_timeout_ms

    # -- offsets

    async def stable_offsets(self, sources: list[TP]) -> dict[TP, int]:
        """The group's; -1 where it has none."""
        return await self._answer(lambda: self._broker.stable_offsets(self._plan.app, sources), sources)

    async def starts(self, tps: list[TP]) -> dict[TP, int]:
        return await self._answer(lambda: self._broker.list_offsets(tps, EARLIEST), tps)

    async def ends(self, tps: list[TP]) -> dict[TP, int]:
        """Behind all that was written, committed or not."""
        return await self._answer(lambda: self._broker.list_offsets(tps, LATEST), tps)

    async def _answer(self, request: Callable[[], Awaitable[dict[TP, int]]], tps: list[TP]) -> dict[TP, int]:
        """Ask again while brokers come and go; look for a stuck transaction meanwhile."""
        stalled_since = self._clock.monotonic()

        async def answer() -> dict[TP, int]:
            nonlocal stalled_since
            try:
                return await request()
            except RpcError as exc:
                if exc.code == Code.UNSTABLE_OFFSET_COMMIT and self._clock.monotonic() - stalled_since > STALL_S:
                    await self.fence_holders([TP(self._plan.positions_topic, tp.partition) for tp in tps])
                    stalled_since = self._clock.monotonic()
                raise

        def waiting(exc: RpcError | RpcLost) -> None:
            for tp in tps:
                self.troubles.met(tp, -1, exc)

        answers = await ask(
            self._clock, answer, pause=Pause(0.02, 0.5), spread=lambda: 0.5 + self._randomness.random(),
            waiting=waiting, giving_up=self.refused,
        )  # fmt: skip
        for tp in tps:
            self.troubles.over(tp)
        return answers

    # -- records

    def read(self, tp: TP, at: int, end: int) -> Reading:
        """From `at` to the offset before `end`."""
        return Reading(self, self._clock, tp, at, end)

    async def fetch(self, tp: TP, offset: int) -> Fetched | None:
        """One fetch, read committed; None where the broker is in between."""
        try:
            node = (await self._broker.leaders([tp])).get(tp)
            if node is None:
                self.troubles.met(tp, offset, NO_LEADER)
                await self._clock.sleep(0.05)
                return None
            answer = await self._broker.fetch(
                node, {tp: offset}, committed=True, max_wait_ms=50, max_bytes=FETCH_BYTES,
                partition_max_bytes=FETCH_BYTES, purpose="restore",
            )  # fmt: skip
            return answer.get(tp)
        except (RpcError, RpcLost) as exc:
            if needs_a_person(exc):
                raise self.refused(exc) from exc
            self.troubles.met(tp, offset, exc)
            await self._clock.sleep(0.05)
            return None
        except Exception as exc:
            self.troubles.met(tp, offset, exc)
            await self._clock.sleep(1.0)
            return None

    def refused(self, exc: RpcError | RpcLost) -> RecoveryError:
        return RecoveryError(
            f"{exc}; the state of {self._plan.app!r} cannot be read: allow this client to read its topics "
            f"({', '.join([*self._plan.sources, *self._plan.logs])}) and its group"
        )

    # -- stuck transactions

    async def fence_holders(self, tps: list[TP]) -> Mapping[TP, Sequence[OpenTransaction]]:
        """Fence, by name, writers of this app that are no members of its group now and hold these logs (rule 15). Whoever holds
        them."""
        try:
            open_by_tp = await self._broker.open_transactions(tps)
            group = await self._broker.describe_group(self._plan.app)
        except (RpcError, RpcLost) as exc:
            log.debug("looking for the holder of %s: %s", tps, exc)
            return {}
        prefix = f"{self._plan.app}-"
        living: set[str] = set()
        for member in group.members:
            if member.instance_id:
                now = self._plan.transactional_id(member.instance_id.removeprefix(prefix))
                # By a former version a member's id has both names; ours is of a process before this one.
                living |= {now} if now == self._own_id else {now, member.instance_id}
        for tp, transactions in open_by_tp.items():
            for transaction in transactions:
                name = transaction.transactional_id
                if name is None or name == self._own_id or name in living or not await self._is_ours(name):
                    continue
                log.info("%s[%d] is held by the open transaction of %s, gone from the group: fencing it",
                         tp.topic, tp.partition, name)  # fmt: skip
                await self._clock.sleep(0.05 * self._randomness.random())
                try:
                    await self._broker.init_producer_id(name, self._transaction_timeout_ms)
                except (RpcError, RpcLost) as exc:
                    log.debug("fencing %s: %s", name, exc)
        return open_by_tp

    async def _is_ours(self, transactional_id: str) -> bool:
        """Whether a writer of this app has that id, or had it in versions that left an instance's dashes as they were."""
        if self._plan.is_writer(transactional_id):
            return True
        if not transactional_id.startswith(f"{self._plan.app}-"):
            return False
        # Without its slashes it could be of another app, if there is one.
        others = [f"{app}-positions" for app in self._plan.others_of(transactional_id)]
        try:
            return not await self._broker.topics(others)
        except (RpcError, RpcLost) as exc:
            log.debug("whose %s is: %s", transactional_id, exc)
            return False


class Reading:
    """A log being read, a chunk at a time. `moved`: where it began when what was to be read next was gone; 0: it was not."""

    def __init__(self, reader: LogReader, clock: Clock, tp: TP, at: int, end: int) -> None:
        self._reader = reader
        self._clock = clock
        self._tp = tp
        self._at = self.first = at
        self.moved = 0
        self._end = end

    async def chunk(self) -> Fetched | None:
        """What comes next; None at the end. RecoveryError where the log became shorter, TopicChanged where it is another."""
        tp, reader = self._tp, self._reader
        asked_at, pause = self._clock.monotonic(), 0.05
        while self._at < self._end:
            fetched = await reader.fetch(tp, self._at)
            if fetched is None:
                continue
            if fetched.error == Code.OFFSET_OUT_OF_RANGE:
                start = (await reader.starts([tp]))[tp]
                if start <= self._at:
                    await reader.look_at(tp.topic)
                    raise RecoveryError(
                        f"{tp.topic}[{tp.partition}] answers out of range at {self._at}; was it truncated?"
                    )
                self._at = self.moved = start
            elif fetched.error:
                refused = RpcError("Fetch", fetched.error, f"{tp.topic}[{tp.partition}]")
                if needs_a_person(refused):
                    raise reader.refused(refused) from refused
                reader.troubles.met(tp, self._at, refused)
                await self._clock.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
            elif fetched.next_offset > self._at:
                reader.troubles.over(tp)
                self._at = fetched.next_offset
                return fetched
            elif self._clock.monotonic() - asked_at > STALL_S:
                held = await reader.fence_holders([tp])
                reader.troubles.met(tp, self._at, Held(held.get(tp, ())))
                asked_at = self._clock.monotonic()
        return None
