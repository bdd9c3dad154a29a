"""Which codes a broker gives on which request, to a client like ours; every other pair is made up, and tried all the same.

From the lists of possible errors in Kafka's client, as far as it has them, and from what the broker's handlers are known
to pass on; where in doubt, a pair is one that a broker says. Left out, because no
request of ours can be answered so: fetch sessions (70, 71, 106; we open none), the newer group protocols (110 and on),
members without an instance id (79), groups that may only have so many members (81; the setting's default is no limit),
acks other than all (21), codecs that we do not write with (76 on Produce), quorum and ACL requests.
"""

from __future__ import annotations

_LEADER = {3, 6, 9, 29, 56, 74, 75}
_COORDINATOR = {14, 15, 16}
_MEMBER = _COORDINATOR | {22, 24, 25, 27, 30, 82}
_WRITER = _COORDINATOR | {47, 48, 49, 51, 53, 90, 120}

BROKER_SAYS: dict[str, frozenset[int]] = {
    "ApiVersions": frozenset({35, 42}),
    "Metadata": frozenset({3, 5, 9, 17, 29, 72, 100}),
    "FindCoordinator": frozenset({-1, 15, 24, 30, 42, 53}),
    "CreateTopics": frozenset({-1, 7, 17, 29, 31, 36, 37, 38, 39, 40, 41, 42, 44, 89}),
    "DescribeConfigs": frozenset({-1, 3, 17, 29, 31, 42}),
    "Fetch": frozenset({-1, 1, 2, 78, 100, 103, 109, *_LEADER}),
    "ListOffsets": frozenset({-1, 5, 43, 78, *_LEADER}),
    "DeleteRecords": frozenset({-1, 1, 3, 6, 7, 29, 44, 56}),
    "DescribeProducers": frozenset({-1, 3, 6, 17, 29, 56}),
    "InitProducerId": frozenset({-1, 31, 42, 50, *_WRITER} - {48}),
    "AddPartitionsToTxn": frozenset({-1, 3, 29, 55, *_WRITER}),
    "AddOffsetsToTxn": frozenset({-1, 24, 30, *_WRITER}),
    "Produce": frozenset({-1, 2, 7, 10, 17, 18, 19, 20, 32, 45, 46, 59, 87, *_LEADER, *_WRITER} - {9, 74, 75, 14, 15, 16}),
    "TxnOffsetCommit": frozenset({-1, 3, 7, 12, 28, 29, *_MEMBER, *_WRITER} - {27}),
    "EndTxn": frozenset({-1, *_WRITER}),
    "JoinGroup": frozenset({-1, 22, 23, 26, *_MEMBER} - {27}),
    "SyncGroup": frozenset({-1, 23, *_MEMBER}),
    "Heartbeat": frozenset({-1, *_MEMBER}),
    "LeaveGroup": frozenset({-1, *_MEMBER} - {22, 27}),
    "DescribeGroups": frozenset({-1, 24, 30, 69, *_COORDINATOR}),
    "OffsetFetch": frozenset({-1, 3, 24, 29, 30, 88, *_COORDINATOR}),
}  # fmt: skip
