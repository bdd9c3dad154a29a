"""The group coordinator: groups by name, and their offsets, plain and pending in a transaction."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from semel.codes import Code
from semel.memory.group import EMPTY, Group
from semel.memory.journal import Journal
from semel.memory.member import JoinFuture, Member, SyncFuture
from semel.memory.refused import Refused
from semel.memory.timers import Timers
from semel.port import TP, GroupInfo, Membership, Producer

FORMER_COMMITS = 8


class _Offsets:
    """Offsets of one group. Each has the place of its record in the coordinator's log: the later one wins.

    `former`: what was visible some commits ago; a coordinator answers with it before `answers_former_until`.
    """

    __slots__ = ("answers_former_until", "commits", "former", "pending", "visible")

    def __init__(self) -> None:
        self.visible: dict[TP, tuple[int, int]] = {}
        self.pending: dict[int, dict[TP, tuple[int, int]]] = {}
        self.former: dict[TP, tuple[int, int]] = {}
        self.commits = 0
        self.answers_former_until = 0.0


class GroupCoordinator:
    def __init__(
        self,
        timers: Timers,
        rng: random.Random,
        *,
        min_session_timeout_ms: int,
        max_session_timeout_ms: int,
        initial_rebalance_delay_ms: int,
        exists: Callable[[TP], bool],
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        self._timers = timers
        self._rng = rng
        self._session_range = (min_session_timeout_ms, max_session_timeout_ms)
        self._initial_delay_s = initial_rebalance_delay_ms / 1000
        self._exists = exists
        self._groups: dict[str, Group] = {}
        self._offsets: dict[str, _Offsets] = {}
        self._places = 0

    def group(self, name: str) -> Group | None:
        return self._groups.get(name)

    # -- membership

    def join(
        self,
        name: str,
        member_id: str,
        instance_id: str | None,
        metadata: bytes,
        *,
        session_timeout_ms: int,
        rebalance_timeout_ms: int,
        client: str,
    ) -> JoinFuture:
        if not name:
            raise Refused(Code.INVALID_GROUP_ID, "a group needs a name")
        least, most = self._session_range
        if not least <= session_timeout_ms <= most:
            raise Refused(
                Code.INVALID_SESSION_TIMEOUT,
                f"session timeout {session_timeout_ms} ms is not within {least} and {most}",
            )
        group = self._groups.get(name)
        if group is None:
            if member_id:
                raise Refused(Code.UNKNOWN_MEMBER_ID, f"{member_id} is not a member")
            group = self._groups[name] = Group(name, self._timers, self._initial_delay_s, self._journal)
        session_s, rebalance_s = session_timeout_ms / 1000, rebalance_timeout_ms / 1000
        if member_id:
            return group.join_known(Member(member_id, instance_id, metadata, session_s, rebalance_s))
        member_id = f"{instance_id or client}-{self._rng.getrandbits(64):016x}"
        if instance_id is None:
            group.expect(member_id, session_s)
            raise Refused(Code.MEMBER_ID_REQUIRED, "join again with the given member id", member_id)
        return group.join_new(Member(member_id, instance_id, metadata, session_s, rebalance_s))

    def sync(self, m: Membership, assignments: Mapping[str, bytes]) -> SyncFuture:
        return self._known(m).sync(m.member_id, m.instance_id, m.generation, assignments)

    def heartbeat(self, m: Membership) -> None:
        self._known(m).heartbeat(m.member_id, m.instance_id, m.generation)

    def leave(self, m: Membership) -> None:
        self._known(m).leave(m.member_id, m.instance_id)

    def describe(self, name: str) -> GroupInfo:
        group = self._groups.get(name)
        if group is not None:
            return group.describe()
        return GroupInfo(EMPTY if name in self._offsets else "Dead", ())

    # -- offsets

    def commit_in_transaction(self, producer: Producer, m: Membership, offsets: Mapping[TP, int]) -> None:
        """TxnOffsetCommit with the fence of KIP-447."""
        group = self._groups.get(m.group)
        if group is None:
            raise Refused(Code.ILLEGAL_GENERATION, f"the group {m.group} does not exist")
        group.validate(m.member_id, m.instance_id, m.generation)
        self._refuse_unknown(offsets)
        if self._journal is not None:
            self._journal.offsets_sent(m.group, m.generation, m.member_id, producer.id, producer.epoch, offsets)
        pending = self._of(m.group).pending.setdefault(producer.id, {})
        for tp, offset in offsets.items():
            pending[tp] = (self._place(), offset)

    def end_transaction(self, name: str, producer_id: int, *, commit: bool) -> None:
        own = self._of(name)
        if self._journal is not None:
            self._journal.offsets_ended(name, producer_id, commit)
        for tp, entry in own.pending.pop(producer_id, {}).items():
            if commit and entry > own.visible.get(tp, (-1, -1)):
                own.visible[tp] = entry
        own.commits += commit
        if own.commits % FORMER_COMMITS == 0:
            own.former = dict(own.visible)

    def set_offsets(self, name: str, offsets: Mapping[TP, int]) -> None:
        """OffsetCommit of somebody who is not a member: only while there are none."""
        group = self._groups.get(name)
        if group is not None and group.state != EMPTY:
            raise Refused(Code.UNKNOWN_MEMBER_ID, f"the group {name} is not empty: {group.state}")
        self._refuse_unknown(offsets)
        own = self._of(name)
        for tp, offset in offsets.items():
            own.visible[tp] = (self._place(), offset)

    def answered_offsets(self, name: str, tps: Sequence[TP]) -> dict[TP, int]:
        """What a client is told: `stable_offsets`, but for a while after the coordinator moved."""
        own = self._offsets.get(name)
        if own is not None and self._timers.now() < own.answers_former_until:
            return {tp: own.former[tp][1] if tp in own.former else -1 for tp in tps}
        return self.stable_offsets(name, tps)

    def stable_offsets(self, name: str, tps: Sequence[TP]) -> dict[TP, int]:
        own = self._offsets.get(name)
        if own is None:
            return dict.fromkeys(tps, -1)
        for tp in tps:
            if any(tp in pending for pending in own.pending.values()):
                raise Refused(
                    Code.UNSTABLE_OFFSET_COMMIT, f"a transaction holds an offset of {tp.topic}-{tp.partition}"
                )
        return {tp: own.visible[tp][1] if tp in own.visible else -1 for tp in tps}

    def answer_former_offsets(self, name: str, for_s: float) -> None:
        """As a coordinator of Kafka 4.1.1 does that was killed: old offsets, nothing pending, until it has loaded all."""
        self._of(name).answers_former_until = self._timers.now() + for_s

    def forget_topics(self, names: Iterable[str]) -> None:
        """Offsets of a deleted topic go with it."""
        gone = set(names)
        for own in self._offsets.values():
            for store in (own.visible, own.former, *own.pending.values()):
                for tp in [tp for tp in store if tp.topic in gone]:
                    del store[tp]

    # -- within

    def _known(self, m: Membership) -> Group:
        group = self._groups.get(m.group)
        if group is None:
            raise Refused(Code.UNKNOWN_MEMBER_ID, f"the group {m.group} does not exist")
        return group

    def _of(self, name: str) -> _Offsets:
        return self._offsets.setdefault(name, _Offsets())

    def _place(self) -> int:
        self._places += 1
        return self._places

    def _refuse_unknown(self, offsets: Mapping[TP, int]) -> None:
        for tp in offsets:
            if not self._exists(tp):
                raise Refused(Code.UNKNOWN_TOPIC_OR_PARTITION, f"no partition {tp.topic}-{tp.partition}")
