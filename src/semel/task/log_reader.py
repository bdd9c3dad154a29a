"""The logs of state: read for as long as it takes, while everybody is told what stands in the way (protocol rule 15).

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
from semel.port import TP, Broker, Clock, Fetched, OpenTransaction, Randomness, RpcError, RpcLost
from semel.stages.fetch.fetch_errors import NO_LEADER, FetchErrors, Held
from semel.task.read_committed import CommittedLogs

log = logging.getLogger("semel.restore")

# A log may stand still for this long before we look for who holds it.
STALL_S = 0.15
# A log that cannot be read is asked for after a longer while each time.
PAUSE_S, LONGEST_PAUSE_S, SENSELESS_PAUSE_S = 0.05, 2.0, 1.0


class LogReader(CommittedLogs):
    """Asks until the answer is there. RecoveryError where the broker refuses for good, or a log became shorter.

    `look_at`: awaited where a log ends before what it held; raises where its topic is another one by now.
    """

    # About ten thousand rows: a piece enters the store in one batch, and the loop waits for it.
    piece_bytes = 1_000_000
    max_wait_ms = 50
    fetches_ahead = False

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
        super().__init__(broker, clock, "restore")
        self._randomness = randomness
        self._plan = plan
        self.troubles = troubles
        self._look_at = look_at
        self._own_id = own_id
        self._transaction_timeout_ms = transaction_timeout_ms

    # -- offsets

    async def stable_offsets(self, sources: list[TP]) -> dict[TP, int]:
        """The group's; -1 where it has none."""
        return await self._answer(lambda: self.broker.stable_offsets(self._plan.app, sources), sources)

    async def at_time(self, tps: Sequence[TP], ms: int) -> dict[TP, int]:
        return await self._answer(lambda: self.broker.list_offsets(tps, ms), tps)

    async def _answer(self, request: Callable[[], Awaitable[dict[TP, int]]], tps: Sequence[TP]) -> dict[TP, int]:
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

    # -- what stands in the way of records

    async def _fetch(self, tp: TP, at: int) -> Fetched:
        fetched = await super()._fetch(tp, at)
        if not fetched.error:
            self.troubles.over(tp)
        return fetched

    async def failed(self, tp: TP, at: int, exc: Exception, since_s: float) -> None:
        if isinstance(exc, RpcError | RpcLost) and needs_a_person(exc):
            raise self.refused(exc) from exc
        self.troubles.met(tp, at, exc)
        if exc is NO_LEADER or isinstance(exc, RpcLost):
            pause_s = PAUSE_S
        elif isinstance(exc, RpcError):
            pause_s = min(max(PAUSE_S, self._clock.monotonic() - since_s), LONGEST_PAUSE_S)
        else:
            pause_s = SENSELESS_PAUSE_S
        await self._clock.sleep(pause_s)

    async def held(self, tp: TP, at: int, since_s: float) -> float:
        if self._clock.monotonic() - since_s <= STALL_S:
            return since_s
        holders = await self.fence_holders([tp])
        self.troubles.met(tp, at, Held(holders.get(tp, ())))
        return self._clock.monotonic()

    async def truncated(self, tp: TP, why: str) -> Exception:
        await self._look_at(tp.topic)
        return RecoveryError(why)

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
            open_by_tp = await self.broker.open_transactions(tps)
            group = await self.broker.describe_group(self._plan.app)
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
                    await self.broker.init_producer_id(name, self._transaction_timeout_ms)
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
            return not await self.broker.topics(others)
        except (RpcError, RpcLost) as exc:
            log.debug("whose %s is: %s", transactional_id, exc)
            return False
