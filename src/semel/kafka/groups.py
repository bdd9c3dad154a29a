"""The port's calls of a consumer group's member (classic protocol), and the group's offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semel.codes import Code
from semel.kafka import apis
from semel.kafka.client import Calls, by_topic, partitions_by_topic, rights_of
from semel.kafka.cluster import Kind
from semel.kafka.consumer_protocol import assigned_data, assignment, subscribed_metadata, subscription
from semel.kafka.wire import Answer, Call
from semel.port import TP, GroupInfo, GroupMember, Joined, MemberIdRequired, Membership, Right

_PROTOCOL_TYPE = "consumer"
_PROTOCOL = "semel"
_NO_GENERATION = -1
_UNKNOWN_EPOCH = -1
_DEFAULT_REBALANCE_TIMEOUT_MS = 60_000


class GroupCalls(Calls):
    _rebalance_timeouts_ms: dict[str, int]

    async def join_group(
        self,
        group: str,
        member_id: str,
        instance_id: str | None,
        metadata: bytes,
        *,
        session_timeout_ms: int,
        rebalance_timeout_ms: int,
        topics: Sequence[str] = (),
    ) -> Joined:
        self._rebalance_timeouts_ms[group] = rebalance_timeout_ms
        call = apis.JOIN_GROUP(
            group,
            session_timeout_ms,
            rebalance_timeout_ms,
            member_id,
            instance_id,
            _PROTOCOL_TYPE,
            [(_PROTOCOL, subscription(metadata, topics))],
        )
        answer = await self._ask(group, call, rebalance_timeout_ms)
        _, code, generation, _, leader, assigned_id, members = answer
        if code == Code.MEMBER_ID_REQUIRED:
            raise MemberIdRequired(assigned_id)
        self._check_group(call, code, group)
        return Joined(
            generation,
            assigned_id,
            leader,
            tuple(GroupMember(member, instance, subscribed_metadata(data)) for member, instance, data in members),
        )

    async def sync_group(self, membership: Membership, assignments: Mapping[str, bytes]) -> bytes:
        """Waits for the leader's assignment: up to the rebalance timeout of this group's last `join_group`."""
        call = apis.SYNC_GROUP(
            membership.group,
            membership.generation,
            membership.member_id,
            membership.instance_id,
            [(member, assignment(data)) for member, data in assignments.items()],
        )
        wait_ms = self._rebalance_timeouts_ms.get(membership.group, _DEFAULT_REBALANCE_TIMEOUT_MS)
        _, code, data = await self._ask(membership.group, call, wait_ms)
        self._check_group(call, code, membership.group)
        return assigned_data(data)

    async def heartbeat(self, membership: Membership) -> None:
        call = apis.HEARTBEAT(membership.group, membership.generation, membership.member_id, membership.instance_id)
        _, code = await self._ask(membership.group, call)
        self._check_group(call, code, membership.group)

    async def leave_group(self, membership: Membership) -> None:
        call = apis.LEAVE_GROUP(membership.group, [(membership.member_id, membership.instance_id)])
        _, code, members = await self._ask(membership.group, call)
        self._check_group(call, code, membership.group)
        for _, _, member_code in members:
            self._check_group(call, member_code, membership.group)

    async def describe_group(self, group: str) -> GroupInfo:
        call = apis.DESCRIBE_GROUPS([group], False)
        _, groups = await self._ask(group, call)
        code, _, state, _, _, members, _ = groups[0]
        self._check_group(call, code, group)
        return GroupInfo(
            state,
            tuple(
                GroupMember(member, instance, subscribed_metadata(data)) for member, instance, _, _, data, _ in members
            ),
        )

    async def group_rights(self, group: str) -> frozenset[Right] | None:
        call = apis.DESCRIBE_GROUPS([group], True)
        _, groups = await self._ask(group, call)
        code, *_, operations = groups[0]
        if code != Code.GROUP_ID_NOT_FOUND:
            self._check_group(call, code, group)
        return rights_of(operations)

    async def stable_offsets(self, group: str, tps: Sequence[TP]) -> dict[TP, int]:
        if not tps:
            return {}
        call = apis.OFFSET_FETCH(group, partitions_by_topic(tps), True)
        _, topics, code = await self._ask(group, call)
        self._check_group(call, code, group)
        rows = [(TP(topic, row[0]), row) for topic, partitions in topics for row in partitions]
        self._client.check(call.api.name, ((tp, row[4], None) for tp, row in rows), coordinator=(Kind.GROUP, group))
        return {tp: row[1] for tp, row in rows}

    async def set_group_offsets(self, group: str, offsets: Mapping[TP, int]) -> None:
        values = {tp: (offset, _UNKNOWN_EPOCH, "") for tp, offset in offsets.items()}
        call = apis.OFFSET_COMMIT(
            group,
            _NO_GENERATION,
            "",
            None,
            [(topic, [(p, *value) for p, value in partitions]) for topic, partitions in by_topic(values)],
        )
        _, topics = await self._ask(group, call)
        rows = [(TP(topic, partition), code, None) for topic, partitions in topics for partition, code in partitions]
        self._client.check(call.api.name, rows, coordinator=(Kind.GROUP, group))

    async def _ask(self, group: str, call: Call, wait_ms: int = 0) -> Answer:
        return await self._client.ask_coordinator(Kind.GROUP, group, call, self._client.deadline(wait_ms))

    def _check_group(self, call: Call, code: int, group: str) -> None:
        self._client.check(call.api.name, [(None, code, None)], coordinator=(Kind.GROUP, group))
