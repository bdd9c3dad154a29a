"""Our place in the consumer group: join, sync, heartbeat, rejoin (the classic protocol; KIP-345 for static members).

One coroutine follows the group and tells its `Owner` two things, in turn: what is held must be given up (`revoke`), and
what is held now (`assign`). Heartbeats go on during both: restoring state never costs a session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Protocol

from semel.broker.answers import Answer, answer_of, needs_a_person
from semel.codes import Code
from semel.errors import ConfigError, InstanceTaken
from semel.group.address import worker_url
from semel.group.assignor import (
    Assignment,
    Malformed,
    MemberInfo,
    assign,
    decode_assignment,
    decode_member,
    encode_assignment,
    encode_member,
    mixed,
)
from semel.port import Broker, Clock, MemberIdRequired, Membership, RpcError, RpcLost
from semel.runtime.failpoints import Failpoints

log = logging.getLogger("semel.group")


class MemberState(Enum):
    UNASSIGNED = "unassigned"
    ASSIGNED = "assigned"
    REVOKING = "revoking"
    FENCED = "fenced"


MEMBER_STEPS: frozenset[tuple[MemberState, MemberState]] = frozenset(
    {
        (MemberState.UNASSIGNED, MemberState.ASSIGNED),
        (MemberState.ASSIGNED, MemberState.REVOKING),
        (MemberState.REVOKING, MemberState.UNASSIGNED),
        (MemberState.ASSIGNED, MemberState.FENCED),
        (MemberState.FENCED, MemberState.REVOKING),
    }
)


# A member that is still there after so many session timeouts is no earlier process of ours. (Each generation gives its members
# a session anew, also those that did not ask for it.)
GHOST_SESSIONS = 3
# The same refusal of every attempt to join is said this often.
SAY_EVERY_S = 5.0
# A leader that still calls us by another address then is hostile; it costs the views, not the work.
ANEW_MAX = 5
# A leader that is none of ours may leave meanwhile.
MALFORMED_PAUSE_S = 1.0
# One that comes back under a new id each time makes no more lines than this.
STRANGER_EVERY_S = 60.0
STRANGER = "is another program a member of this group? Its name is the pipeline's and must be used by its workers alone"


class Owner(Protocol):
    """Who holds the work."""

    async def revoke(self, *, lost: bool) -> None:
        """Give everything up, within the revoke timeout; `lost`: it is not ours any more, nothing can be committed."""
        ...

    async def assign(self, membership: Membership, assignment: Assignment) -> None:
        """Take what is assigned; returns at once."""
        ...

    async def source_partitions(self) -> dict[str, int]:
        """Waits until every source topic is there."""
        ...


class GroupMember:
    """One worker in the group. `run` returns when `leave` is called; raises InstanceTaken."""

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        failpoints: Failpoints,
        owner: Owner,
        *,
        group: str,
        instance: str,
        instance_id: str | None,
        topics: tuple[str, ...],
        url: str,
        program: str,
        session_timeout_ms: int,
        rebalance_timeout_ms: int,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._pass = failpoints
        self._owner = owner
        self._group = group
        self._instance = instance
        self._instance_id = instance_id
        self._topics = topics
        # As the others will read it, so that we know it again.
        self._url = worker_url(url) or ""
        self._program = program
        # What was warned of already, and when last.
        self._mixed: set[frozenset[str]] = set()
        self._mixed_at = -STRANGER_EVERY_S
        self._fenced_since: float | None = None
        self._last_refusal = ("", 0.0)
        self._stranger_at = self._programs_at = -STRANGER_EVERY_S
        self._anew = 0
        self._in_a_row = 0
        self._session_ms = session_timeout_ms
        self._rebalance_ms = rebalance_timeout_ms
        self._interval_s = min(session_timeout_ms / 10, 1000) / 1000
        self._member_id = ""
        self._stopping = asyncio.Event()
        self._rejoin = asyncio.Event()
        self._lost = self._beating = False
        self.state = MemberState.UNASSIGNED
        self.membership: Membership | None = None
        self.tasks: tuple[int, ...] = ()
        self._answered_at = 0.0
        # What a thread was answered while the loop was held: for which membership, and when it had asked.
        self._kept: tuple[Membership | None, float] = None, 0.0
        # Why it could not join the last time; empty where it did.
        self.refused = ""

    # -- asked for from outside

    def request_rejoin(self) -> None:
        """Our work was refused: the membership must be proven anew before anything runs (rule 16)."""
        if self.state is MemberState.ASSIGNED:
            self._step(MemberState.FENCED)
        self._rejoin.set()

    @property
    def last_answer_at(self) -> float:
        """When the last request was sent that the group has answered: the session counts from there."""
        membership, asked_at = self._kept
        return max(self._answered_at, asked_at) if membership is self.membership else self._answered_at

    @property
    def to_keep(self) -> Membership | None:
        """What the loop heartbeats for just now, and somebody else may while it is held. A thread may ask, too."""
        if self._beating:
            return self.membership
        over = self._stopping.is_set() or self._rejoin.is_set()
        return self.membership if self.state is MemberState.ASSIGNED and not over else None

    def kept(self, membership: Membership, asked_at: float) -> None:
        """From a thread: the group has answered a heartbeat that was sent then."""
        self._kept = membership, asked_at

    @property
    def behind(self) -> bool:
        """A heartbeat is due, or on its way."""
        waits = self.state is MemberState.ASSIGNED
        return waits and self._clock.monotonic() - self.last_answer_at >= self._interval_s

    @property
    def patience_s(self) -> float:
        """How long the loop may be held right before the next heartbeat without a cost."""
        return self._session_ms / 1000 - self._interval_s

    @property
    def silent(self) -> bool:
        """The group has heard nothing of us for the session timeout."""
        joined = self.state is MemberState.ASSIGNED
        return joined and self._clock.monotonic() - self.last_answer_at > self._session_ms / 1000

    def rejoin_anew(self) -> None:
        """Have the group assign anew: a static member that joins with nothing new to say is given its old place."""
        self._anew += 1
        self._rejoin.set()

    async def leave(self) -> None:
        """Leave at once, so that others need not wait for the session to end. Best effort."""
        self._stopping.set()
        if self.membership is not None:
            with contextlib.suppress(RpcError, RpcLost):
                await self._broker.leave_group(self.membership)

    def stop(self) -> None:
        """Stop following the group without leaving it: a static member that comes back finds its place."""
        self._stopping.set()

    # -- following the group

    async def run(self) -> None:
        while not self._stopping.is_set():
            try:
                joined = await self._join()
            except (RpcError, RpcLost) as exc:
                await self._refused(exc)
                continue
            if not joined:
                continue
            await self._stay()
            lost, self._lost = self._lost, False
            self._step(MemberState.REVOKING)
            if self._stopping.is_set():
                return
            await self._revoke(lost=lost)
            self._step(MemberState.UNASSIGNED)

    def _step(self, to: MemberState) -> None:
        if self.state is to:
            return
        if (self.state, to) not in MEMBER_STEPS:
            raise AssertionError(f"the worker went from {self.state.name} to {to.name}")
        self.state = to

    async def _revoke(self, *, lost: bool) -> None:
        beating = asyncio.create_task(self._beat_on()) if not lost else None
        self._beating = not lost
        try:
            await self._owner.revoke(lost=lost)
        finally:
            self._beating = False
            if beating is not None:
                beating.cancel()
                await asyncio.wait({beating})

    async def _beat_on(self) -> None:
        """Keep the session while work is given up; what the group answers no longer matters."""
        while self.membership is not None:
            await self._clock.sleep(self._interval_s)
            with contextlib.suppress(RpcError, RpcLost):
                await self._broker.heartbeat(self.membership)

    async def _join(self) -> bool:
        partitions = await self._owner.source_partitions()
        if self._stopping.is_set():
            return False
        self._rejoin.clear()
        await self._pass("group.before_join")
        about_us = MemberInfo(
            self._member_id, self._topics, self._instance, self._url, self.tasks, self._anew, self._program
        )
        try:
            joined = await self._broker.join_group(
                self._group,
                self._member_id,
                self._instance_id,
                encode_member(about_us),
                session_timeout_ms=self._session_ms,
                rebalance_timeout_ms=self._rebalance_ms,
                topics=self._topics,
            )
        except MemberIdRequired as exc:
            self._member_id = exc.member_id
            return False
        self._member_id = joined.member_id
        self._fenced_since = None
        self.refused = ""
        membership = Membership(self._group, joined.generation, joined.member_id, self._instance_id)
        self.membership = membership
        await self._pass("group.after_join")
        decided: dict[str, bytes] = {}
        if joined.is_leader:
            members = self._workers((m.member_id, m.metadata) for m in joined.members)
            self._say_programs({m.topics: m.instance for m in members if m.topics})
            self._say_mixed(members)
            shares = assign(members, max(partitions.values(), default=0))
            owners = {task: (m.instance, m.url) for m in members for task in shares[m.member_id]}
            for m in members:
                decided[m.member_id] = encode_assignment(Assignment(shares[m.member_id], partitions, owners))
        raw = await self._broker.sync_group(membership, decided)
        await self._pass("group.after_sync")
        try:
            assignment = decode_assignment(raw)
        except Malformed as wrong:
            self.refused = (
                f"what the leader of group {self._group!r} assigns is not semel's ({_cut(wrong)}); {STRANGER}"
            )
            self._say(self.refused)
            await self._clock.sleep(MALFORMED_PAUSE_S)
            return False
        ours = [assignment.owners.get(task, (self._instance, self._url)) for task in assignment.tasks]
        if any(owner != (self._instance, self._url) for owner in ours) and self._in_a_row < ANEW_MAX:
            # A static member that came back is given the old assignment, and the others would look for it where it was.
            # Joining again with something new to say is news to the coordinator, so all are asked to rejoin. (Leaving
            # first would do it too, but free our name: a worker that still runs under it would never learn it is fenced.)
            log.info("back under another address (%s): joining anew, so that the others learn it", self._url)
            self.tasks = assignment.tasks
            self._anew += 1
            self._in_a_row += 1
            return False
        self._in_a_row = 0
        self._say_programs({self._topics: self._instance, tuple(assignment.partitions): "the leader of the group"})
        self.tasks = assignment.tasks
        log.info("generation %d: tasks %s", membership.generation, list(assignment.tasks))
        self._answered_at = self._clock.monotonic()
        self._step(MemberState.ASSIGNED)
        await self._owner.assign(membership, assignment)
        return True

    async def _stay(self) -> None:
        """Heartbeat until the group wants us to rejoin, or we are told to stop."""
        assert self.membership is not None
        while not self._stopping.is_set() and not self._rejoin.is_set():
            sleeping = asyncio.ensure_future(self._clock.sleep(self._interval_s))
            woken = [asyncio.ensure_future(e.wait()) for e in (self._stopping, self._rejoin)]
            try:
                await asyncio.wait({sleeping, *woken}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiting in (sleeping, *woken):
                    waiting.cancel()
            if self._stopping.is_set() or self._rejoin.is_set():
                return
            asked_at = self._clock.monotonic()
            try:
                await self._broker.heartbeat(self.membership)
                self._answered_at = asked_at
            except RpcError as exc:
                if exc.code == Code.REBALANCE_IN_PROGRESS:
                    return
                if exc.code in (Code.ILLEGAL_GENERATION, Code.UNKNOWN_MEMBER_ID, Code.FENCED_INSTANCE_ID):
                    self._lost = True
                    self._forget_id(exc.code)
                    log.warning("the group no longer knows us (%s); what is open is dropped", exc)
                    return
                log.info("heartbeat: %s", exc)
            except RpcLost as exc:
                log.info("heartbeat: %s", exc)
            if self._clock.monotonic() - self.last_answer_at > self._session_ms / 1000:
                self._lost = True
                log.warning("no heartbeat was answered for the session timeout; what is open is dropped")
                return

    def _forget_id(self, code: int) -> None:
        if code == Code.UNKNOWN_MEMBER_ID:
            self._member_id = ""

    async def _refused(self, exc: RpcError | RpcLost) -> None:
        # A rebalance that overtook us is joined again at once; a broker that is away is waited for.
        pause = 0.02 if answer_of(exc) in (Answer.REJOIN, Answer.RETRY) else 0.25
        if isinstance(exc, RpcError):
            if exc.code == Code.FENCED_INSTANCE_ID:
                pause = 0.25
                await self._learn_whose_name_it_is(exc)
            self._forget_id(exc.code)
            if needs_a_person(exc):
                raise ConfigError(
                    f"{exc}: this worker cannot be a member of group {self._group!r}; allow the client to use that group, "
                    "and keep session_timeout_ms between the broker's group.min.session.timeout.ms and "
                    "group.max.session.timeout.ms"
                ) from exc
        self.refused = str(exc)
        if isinstance(exc, RpcError) and exc.code == Code.INCONSISTENT_GROUP_PROTOCOL:
            self.refused = (
                f"group {self._group!r} is in use by another program, a consumer with this group.id ({exc}): stop it, or "
                "name the pipeline otherwise; a pipeline's group is its workers' alone"
            )
        self._say(self.refused, loud=isinstance(exc, RpcError) and exc.code == Code.INCONSISTENT_GROUP_PROTOCOL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._stopping.wait()

    def _workers(self, joined: Iterable[tuple[str, bytes]]) -> list[MemberInfo]:
        """The members that are workers of ours; nothing is assigned to the others."""
        members: list[MemberInfo] = []
        for member_id, metadata in joined:
            try:
                members.append(decode_member(member_id, metadata))
            except Malformed as wrong:
                now = self._clock.monotonic()
                if now - self._stranger_at >= STRANGER_EVERY_S:
                    self._stranger_at = now
                    log.warning(
                        "member %r of group %r is no worker of semel (%s) and gets no task; %s",
                        member_id[:80], self._group, _cut(wrong), STRANGER,
                    )  # fmt: skip
        return members

    def _say_programs(self, read: Mapping[tuple[str, ...], str]) -> None:
        """`read`: source topics, and one of the workers that read them. A task is one worker's, whole."""
        programs = {tuple(sorted(topics)): instance for topics, instance in read.items()}
        now = self._clock.monotonic()
        if len(programs) < 2 or now - self._programs_at < STRANGER_EVERY_S:
            return
        self._programs_at = now
        log.warning(
            "workers of %r run different programs: %s. A partition is handled by one of them, and what its program does not read "
            "waits there. If no upgrade is under way that ends with one program everywhere, give each an id of its own",
            self._group,
            "; ".join(f"{instance} reads {', '.join(map(repr, topics))[:200]}" for topics, instance in sorted(programs.items())),
        )  # fmt: skip

    def _say_mixed(self, members: list[MemberInfo]) -> None:
        """Of each mixture once, by the leader, which alone hears all: an upgrade goes through one, and ends it."""
        now = self._clock.monotonic()
        for by_program in mixed(members):
            if frozenset(by_program) in self._mixed or now - self._mixed_at < STRANGER_EVERY_S:
                continue
            self._mixed.add(frozenset(by_program))
            self._mixed_at = now
            log.warning(
                "workers of %r read the same topics and run different programs (other agents, tables or dedup rule): %s. An "
                "event is handled by the program of the worker that has its partition just then. While an upgrade is under way "
                "that is in order, and ends with it. If none is, stop the workers of one of them, or give each program an id of "
                "its own",
                self._group,
                "; ".join(f"{_cut(', '.join(i))} with {_cut(program)}" for program, i in sorted(by_program.items())[:4]),
            )  # fmt: skip

    def _say(self, refusal: str, *, loud: bool = False) -> None:
        """`loud`: somebody has to do something about it."""
        last, at = self._last_refusal
        now = self._clock.monotonic()
        if refusal != last or now - at >= (STRANGER_EVERY_S if loud else SAY_EVERY_S):
            self._last_refusal = (refusal, now)
            log.log(logging.WARNING if loud else logging.INFO, "joining the group: %s", refusal)

    async def _learn_whose_name_it_is(self, fenced: RpcError) -> None:
        """The group knows our name under another member id. InstanceTaken, where that member lives.

        A coordinator that took over from one that died may know less than was answered: it then fences every worker of
        the group by its own earlier process. Nobody heartbeats for that one; who outlives `GHOST_SESSIONS` is another worker.
        """
        now = self._clock.monotonic()
        if self._fenced_since is None:
            self._fenced_since = now
            log.warning(
                "the group has another member as instance %r (%s); seeing whether it lives", self._instance, fenced
            )
        try:
            members = (await self._broker.describe_group(self._group)).members
        except (RpcError, RpcLost) as exc:
            log.info("asking who is instance %r: %s", self._instance, exc)
            return
        holder = next((m.member_id for m in members if m.instance_id == self._instance_id), "")
        if not holder:
            log.info("the group has no member as instance %r any more; joining as a new one", self._instance)
            self._member_id = ""
        elif holder != self._member_id and now - self._fenced_since > GHOST_SESSIONS * self._session_ms / 1000:
            raise InstanceTaken(
                f"another worker runs as instance {self._instance!r} of {self._group!r}; stop it, or start this one with "
                "another --instance"
            ) from fenced


def _cut(wrong: Malformed | str) -> str:
    """What was found wrong may hold what the member wrote: on one line, and short."""
    return repr(str(wrong))[1:-1][:200]
