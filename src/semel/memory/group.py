"""A consumer group of the classic protocol: members, generations, and the rebalance between them.

Joining and syncing give a future, because they wait for the other members.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from semel.codes import Code
from semel.memory.journal import Journal
from semel.memory.member import NEW_MEMBER_JOIN_S, JoinFuture, Member, SyncFuture, refuse
from semel.memory.refused import Refused
from semel.memory.timers import Timer, Timers
from semel.port import GroupInfo, GroupMember, Joined

EMPTY = "Empty"
PREPARING = "PreparingRebalance"
COMPLETING = "CompletingRebalance"
STABLE = "Stable"


class _Written(NamedTuple):
    """A group as its coordinator last wrote it to its log."""

    generation: int
    leader: str | None
    members: tuple[tuple[str, str | None, bytes, float, float, bytes], ...]


class Group:
    def __init__(self, name: str, timers: Timers, initial_delay_s: float, journal: Journal | None = None) -> None:
        self._journal = journal
        self.name = name
        self.state = EMPTY
        self.generation = 0
        self.leader: str | None = None
        self.members: dict[str, Member] = {}
        self._timers = timers
        self._initial_delay_s = initial_delay_s
        self._initial = False
        self._statics: dict[str, str] = {}
        self._pending: dict[str, Timer] = {}
        self._unsynced: set[str] = set()
        self._rebalance: Timer | None = None
        self._sync: Timer | None = None
        self._written = _Written(0, None, ())

    # -- requests

    def expect(self, member_id: str, session_s: float) -> None:
        """A dynamic member was told to come back under this id; rebalances wait for it so long."""
        self._pending[member_id] = self._timers.after(session_s, lambda: self._forget_pending(member_id))

    def join_new(self, member: Member) -> JoinFuture:
        """A member without an id of its own yet, or a static one that comes back after a restart."""
        old_id = self._statics.get(member.instance_id) if member.instance_id is not None else None
        return self._add(member) if old_id is None else self._replace(self.members[old_id], member)

    def join_known(self, member: Member) -> JoinFuture:
        """A member that says who it is."""
        if member.member_id in self._pending:
            self._pending.pop(member.member_id).cancel()
            return self._add(member)
        known = self.validate(member.member_id, member.instance_id)
        if self.state == EMPTY:
            raise Refused(Code.UNKNOWN_MEMBER_ID, "the group is empty")
        unchanged = known.metadata == member.metadata
        as_before = self.state == COMPLETING or (self.state == STABLE and known.member_id != self.leader)
        if unchanged and as_before:
            everyone = self.state == COMPLETING and known.member_id == self.leader
            return self._answer_now(known, self.leader or "", everyone=everyone)
        known.metadata, known.session_s, known.rebalance_s = member.metadata, member.session_s, member.rebalance_s
        refuse(known.joining, Code.REBALANCE_IN_PROGRESS, "the member joined once more")
        known.joining = asyncio.get_running_loop().create_future()
        future = known.joining
        if self.state == PREPARING:
            self._complete_if_all_joined()
        else:
            self._prepare()
        return future

    def sync(
        self, member_id: str, instance_id: str | None, generation: int, assignments: Mapping[str, bytes]
    ) -> SyncFuture:
        member = self.validate(member_id, instance_id, generation)
        if self.state == EMPTY:
            raise Refused(Code.UNKNOWN_MEMBER_ID, "the group is empty")
        if self.state == PREPARING:
            raise Refused(Code.REBALANCE_IN_PROGRESS, "the group rebalances")
        future: SyncFuture = asyncio.get_running_loop().create_future()
        self._unsynced.discard(member_id)
        if not self._unsynced and self._sync is not None:
            self._sync.cancel()
        if self.state == STABLE:
            self._touch(member)
            future.set_result(member.assignment)
            return future
        refuse(member.syncing, Code.REBALANCE_IN_PROGRESS, "the member synced once more")
        member.syncing = future
        if member_id == self.leader:
            for each in self.members.values():
                each.assignment = assignments.get(each.member_id, b"")
            self.state = STABLE
            self._write()
            for each in self.members.values():
                if each.syncing is not None and not each.syncing.done():
                    each.syncing.set_result(each.assignment)
                if each.syncing is not None:
                    each.syncing = None
                    self._touch(each)
        return future

    def heartbeat(self, member_id: str, instance_id: str | None, generation: int) -> None:
        member = self.validate(member_id, instance_id, generation)
        if self.state == EMPTY:
            raise Refused(Code.UNKNOWN_MEMBER_ID, "the group is empty")
        self._touch(member)
        if self.state == PREPARING:
            raise Refused(Code.REBALANCE_IN_PROGRESS, "the group rebalances")

    def leave(self, member_id: str, instance_id: str | None) -> None:
        if instance_id is None and member_id in self._pending:
            self._forget_pending(member_id)
            return
        self._remove(self.validate(member_id, instance_id), "the member left")

    def validate(self, member_id: str, instance_id: str | None, generation: int | None = None) -> Member:
        """Who speaks: 82 where another has the instance id now, 25 for a stranger, 22 for another generation."""
        if instance_id is not None:
            holder = self._statics.get(instance_id)
            if holder is None:
                raise Refused(Code.UNKNOWN_MEMBER_ID, f"no member has instance id {instance_id}")
            if holder != member_id:
                raise Refused(Code.FENCED_INSTANCE_ID, f"instance id {instance_id} belongs to {holder} now")
        member = self.members.get(member_id)
        if member is None:
            raise Refused(Code.UNKNOWN_MEMBER_ID, f"{member_id} is not a member")
        if generation is not None and generation != self.generation:
            raise Refused(Code.ILLEGAL_GENERATION, f"generation {generation}, the group is in {self.generation}")
        return member

    def describe(self) -> GroupInfo:
        stable = self.state == STABLE
        return GroupInfo(
            self.state,
            tuple(
                GroupMember(m.member_id, m.instance_id, m.metadata if stable else b"") for m in self.members.values()
            ),
        )

    def fail_waiting(self, code: int, detail: str) -> None:
        """Answer every waiting JoinGroup and SyncGroup with an error, as a coordinator does that moves away."""
        for member in self.members.values():
            refuse(member.joining, code, detail)
            refuse(member.syncing, code, detail)
            member.syncing = None

    # -- its log

    def reload(self) -> None:
        """Another broker coordinates, by the log: what was not written is forgotten, new ids of static members included.

        Written is a generation once it is synced, a static member's return to a stable group, and that nobody is left.
        """
        self.fail_waiting(Code.NOT_COORDINATOR, "the coordinator moved")
        for timer in (
            self._rebalance,
            self._sync,
            *self._pending.values(),
            *(m.session for m in self.members.values()),
        ):
            if timer is not None:
                timer.cancel()
        self._pending.clear()
        self._unsynced.clear()
        self._initial = False
        self.generation, self.leader, members = self._written
        self.members = {}
        for member_id, instance_id, metadata, session_s, rebalance_s, assignment in members:
            member = self.members[member_id] = Member(member_id, instance_id, metadata, session_s, rebalance_s)
            member.assignment, member.new = assignment, False
            self._arm_session(member, session_s)
        self._statics = {m.instance_id: m.member_id for m in self.members.values() if m.instance_id is not None}
        self.state = STABLE if self.members else EMPTY
        self._report()

    def _write(self) -> None:
        self._written = _Written(self.generation, self.leader, tuple(
            (m.member_id, m.instance_id, m.metadata, m.session_s, m.rebalance_s, m.assignment)
            for m in self.members.values()
        ))  # fmt: skip

    def _report(self) -> None:
        if self._journal is not None:
            self._journal.generation(self.name, self.generation, list(self.members))

    # -- members

    def _add(self, member: Member) -> JoinFuture:
        self.members[member.member_id] = member
        if member.instance_id is not None:
            self._statics[member.instance_id] = member.member_id
        if self.leader is None:
            self.leader = member.member_id
        member.joining = asyncio.get_running_loop().create_future()
        future = member.joining
        self._arm_session(member, NEW_MEMBER_JOIN_S)
        if self.state == PREPARING:
            self._complete_if_all_joined()
        else:
            self._prepare()
        return future

    def _replace(self, old: Member, member: Member) -> JoinFuture:
        """A static member is back under a new id: the old id is fenced from now on."""
        leader_before = self.leader or ""
        self._drop(old, Code.FENCED_INSTANCE_ID, f"instance id {old.instance_id} joined again")
        members = {m.member_id: m for m in self.members.values()}
        self.members = {**members, member.member_id: member}
        assert member.instance_id is not None
        self._statics[member.instance_id] = member.member_id
        member.assignment = old.assignment
        member.new = False
        self._unsynced.discard(old.member_id)
        if leader_before == old.member_id or self.leader is None:
            self.leader = member.member_id
        self._arm_session(member, member.session_s)
        if self.state == STABLE:
            self._write()
            return self._answer_now(member, leader_before, everyone=False)
        member.joining = asyncio.get_running_loop().create_future()
        future = member.joining
        if self.state == PREPARING:
            self._complete_if_all_joined()
        else:
            self._prepare()
        return future

    def _drop(self, member: Member, code: int, detail: str) -> None:
        del self.members[member.member_id]
        if member.session is not None:
            member.session.cancel()
        refuse(member.joining, code, detail)
        refuse(member.syncing, code, detail)

    def _remove(self, member: Member, why: str) -> None:
        self._drop(member, Code.UNKNOWN_MEMBER_ID, why)
        self._unsynced.discard(member.member_id)
        if member.instance_id is not None:
            self._statics.pop(member.instance_id, None)
        if self.leader == member.member_id:
            self.leader = next(iter(self.members), None)
        if self.state == PREPARING:
            self._complete_if_all_joined()
        else:
            self._prepare()

    def _forget_pending(self, member_id: str) -> None:
        timer = self._pending.pop(member_id, None)
        if timer is not None:
            timer.cancel()
        if self.state == PREPARING:
            self._complete_if_all_joined()

    def _touch(self, member: Member) -> None:
        member.deadline = self._timers.now() + member.session_s

    def _arm_session(self, member: Member, seconds: float) -> None:
        if member.session is not None:
            member.session.cancel()
        member.deadline = self._timers.now() + seconds
        member.session = self._timers.at(member.deadline, lambda: self._session_due(member))

    def _session_due(self, member: Member) -> None:
        # One that waits for us is alive; its session starts anew with the answer.
        if not member.new and (member.joining is not None or member.syncing is not None):
            self._arm_session(member, member.session_s)
        elif member.deadline > self._timers.now():
            member.session = self._timers.at(member.deadline, lambda: self._session_due(member))
        else:
            self._remove(member, "the session timed out")

    # -- the rebalance

    def _prepare(self) -> None:
        if self._sync is not None:
            self._sync.cancel()
        for member in self.members.values():
            refuse(member.syncing, Code.REBALANCE_IN_PROGRESS, "the group rebalances")
            member.syncing = None
        self._unsynced.clear()
        self._initial = self.state == EMPTY and self._initial_delay_s > 0
        self.state = PREPARING
        if self._initial:
            self._arm_rebalance(self._initial_delay_s)
        else:
            self._arm_rebalance(max((m.rebalance_s for m in self.members.values()), default=0.0))
            self._complete_if_all_joined()

    def _arm_rebalance(self, seconds: float) -> None:
        if self._rebalance is not None:
            self._rebalance.cancel()
        self._rebalance = self._timers.after(seconds, self._complete)

    def _complete_if_all_joined(self) -> None:
        everybody = all(member.joining is not None for member in self.members.values())
        if everybody and not self._pending and not self._initial:
            self._complete()

    def _complete(self) -> None:
        """The next generation begins with those who joined; static members stay until their session ends."""
        if self._rebalance is not None:
            self._rebalance.cancel()
        self._initial = False
        for member in list(self.members.values()):
            if member.joining is None and member.instance_id is None:
                self._drop(member, Code.UNKNOWN_MEMBER_ID, "the member did not join in time")
        if self.members and not self._elect_joined_leader():
            self._arm_rebalance(max(m.rebalance_s for m in self.members.values()))
            return
        self.generation += 1
        self._report()
        if not self.members:
            self.state, self.leader = EMPTY, None
            self._write()
            return
        self.state = COMPLETING
        for member in self.members.values():
            self._arm_session(member, member.session_s)
            member.new = False
            member.assignment = b""
            if member.joining is not None:
                if not member.joining.done():
                    member.joining.set_result(self._joined(member, self.leader or "", member.member_id == self.leader))
                member.joining = None
        self._unsynced = set(self.members)
        self._sync = self._timers.after(max(m.rebalance_s for m in self.members.values()), self._expire_unsynced)

    def _elect_joined_leader(self) -> bool:
        leader = self.members.get(self.leader or "")
        if leader is None or leader.joining is None:
            joined = next((m.member_id for m in self.members.values() if m.joining is not None), None)
            if joined is None:
                return False
            self.leader = joined
        return True

    def _expire_unsynced(self) -> None:
        late = [self.members[member_id] for member_id in sorted(self._unsynced) if member_id in self.members]
        self._unsynced.clear()
        for member in late:
            if member.member_id in self.members:
                self._remove(member, "the member did not sync in time")

    def _joined(self, member: Member, leader: str, everyone: bool) -> Joined:
        members = tuple(GroupMember(m.member_id, m.instance_id, m.metadata) for m in self.members.values())
        return Joined(self.generation, member.member_id, leader, members if everyone else ())

    def _answer_now(self, member: Member, leader: str, *, everyone: bool) -> JoinFuture:
        self._touch(member)
        future: JoinFuture = asyncio.get_running_loop().create_future()
        future.set_result(self._joined(member, leader, everyone))
        return future
