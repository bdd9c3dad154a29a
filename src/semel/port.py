"""The one port: every broker call, clock reading and random draw of the engine passes through here.

`semel.kafka` implements it on real brokers, `semel.testing` in memory with faults from one seed.
The engine imports neither. A method is one logical request of the Kafka protocol: it finds the
leader or coordinator itself, sends once, and answers with plain data. It never retries; what an
answer means is decided by `semel.broker.answers`.

Errors, the same for every method:

* `RpcError`: the broker answered with an error code. Before raising, the implementation forgets
  what the code makes stale (`STALE_METADATA`, `STALE_COORDINATOR` of `semel.codes`), so that
  calling again looks it up afresh.
* `RpcLost`: no answer within the timeout, a connection lost or refused. The request may or may not
  have taken effect. `sent` is False where it certainly never left this process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from semel.codes import Code
from semel.throttles import Throttles

# A record's objects beside its value: itself, its key, its place in a list. A header's: a pair, a name, bytes.
_RECORD_BYTES, _HEADER_BYTES = 250, 150
EARLIEST = -2
LATEST = -1


class TP(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class RpcError(Exception):
    """The broker refused a request with an error code of the Kafka protocol."""

    def __init__(self, api: str, code: int, detail: str = "") -> None:
        super().__init__(api, code, detail)
        self.api = api
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.api} was answered with error {self.code}{': ' + self.detail if self.detail else ''}"


class MemberIdRequired(RpcError):
    """JoinGroup of a dynamic member: join again under `member_id` (KIP-394)."""

    def __init__(self, member_id: str) -> None:
        super().__init__("JoinGroup", Code.MEMBER_ID_REQUIRED, "join again with the given member id")
        self.member_id = member_id


class RpcLost(Exception):
    """A request got no answer: it may or may not have taken effect. `whole`: `detail` says it all."""

    def __init__(self, api: str, detail: str = "", *, sent: bool = True, whole: bool = False) -> None:
        super().__init__(api, detail)
        self.whole = whole
        self.api = api
        self.detail = detail
        self.sent = sent

    def __str__(self) -> str:
        return self.detail if self.whole else f"{self.api} got no answer: {self.detail}"


class Record(Protocol):
    """One record as read from a log. `timestamp` is in ms since 1970."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class TooLarge(NamedTuple):
    """Stands for a record that was not read: decompressed, its batch holds more than anybody should have to keep.

    Only its place is known, and a time of its batch; `why` says what stood in the way.
    """

    offset: int
    timestamp: int
    why: str
    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


@dataclass(slots=True)
class Fetched:
    """What one partition answered to a fetch.

    `records` never contains control records, nor (read committed) records of aborted or open
    transactions, nor records below the offset asked for. `next_offset` is the position after
    everything looked at, control and aborted batches included: equal to the offset asked for
    when nothing was there. It may lie within a batch whose rest is for the next fetch. Offsets of
    -1 are unknown. `error` is a Kafka error code, 0 for none (OFFSET_OUT_OF_RANGE: `log_start` and
    `high_watermark` are filled in where known). `size` is what the records take in memory, in bytes;
    0 where nobody has looked.
    """

    records: list[Record]
    next_offset: int
    high_watermark: int
    last_stable_offset: int
    log_start: int
    error: int = 0
    size: int = 0


def record_bytes(records: Sequence[Record]) -> int:
    """What records take in memory, the objects included."""
    total = _RECORD_BYTES * len(records)
    for record in records:
        value, headers = record.value, record.headers
        if value is not None:
            total += len(value)
        if headers:
            total += sum(len(name) + len(content or b"") + _HEADER_BYTES for name, content in headers)
    return total


class TopicInfo(NamedTuple):
    """`id` is the topic's UUID, 32 lower-case hex digits: a recreated topic has another one."""

    name: str
    id: str
    partitions: int

    @property
    def has_id(self) -> bool:
        """Where an inter.broker.protocol.version below 2.8 is in force, topics have none: all zeros."""
        return self.id.strip("0") != ""


class TopicSpec(NamedTuple):
    name: str
    partitions: int
    replication_factor: int
    configs: Mapping[str, str]


class Producer(NamedTuple):
    """A transactional producer as InitProducerId returned it."""

    transactional_id: str
    id: int
    epoch: int


# What a client may do with a topic or a group, as ACLs name it.
Right = Literal["Read", "Write", "Create", "Delete", "Alter", "Describe", "DescribeConfigs", "AlterConfigs"]


class GroupMember(NamedTuple):
    member_id: str
    instance_id: str | None
    metadata: bytes


class Joined(NamedTuple):
    """JoinGroup's answer. `members` is filled for the leader only."""

    generation: int
    member_id: str
    leader_id: str
    members: tuple[GroupMember, ...]

    @property
    def is_leader(self) -> bool:
        return self.member_id == self.leader_id


class Membership(NamedTuple):
    """A snapshot of who we are in the group, taken when an assignment arrived; the fence of KIP-447."""

    group: str
    generation: int
    member_id: str
    instance_id: str | None


class GroupInfo(NamedTuple):
    """`state` as Kafka spells it: Empty, Stable, PreparingRebalance, CompletingRebalance, Dead."""

    state: str
    members: tuple[GroupMember, ...]


class OpenTransaction(NamedTuple):
    """A transaction that holds a partition's last stable offset back (KIP-664)."""

    transactional_id: str | None
    producer_id: int
    start_offset: int


# What a record says that names no time. Brokers never refuse it; where a topic has LogAppendTime they put their own.
NO_TIMESTAMP = -1


# The id of every topic in Kafka 3 in ZooKeeper mode, with an inter.broker.protocol.version below 2.8.
NO_TOPIC_ID = "0" * 32


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What one Fetch asks of the leader `node`: each partition from an offset on, aborted records left out where `committed`.

    An answer has at most `max_bytes`, and `partition_max_bytes` of each partition, but one batch at least. It comes as soon as
    there is something, at the latest after `max_wait_ms`. `purpose` names a connection of its own, so that a long poll blocks
    nothing else; only the readers of events, "source" and "proof", know what a `TooLarge` is: to others its batch is corrupt.
    `topic_ids`: which topic is meant, by its name; of another one that has the name by now nothing is read (UNKNOWN_TOPIC_ID),
    unless brokers give topics no ids (`NO_TOPIC_ID`).
    """

    node: int
    offsets: Mapping[TP, int]
    max_wait_ms: int
    max_bytes: int
    partition_max_bytes: int
    committed: bool = True
    purpose: str = "source"
    topic_ids: Mapping[str, str] = field(default_factory=dict[str, str])


class BatchBuilder(Protocol):
    """Records on their way into one batch of one partition (magic 2)."""

    def append(
        self,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
    ) -> bool:
        """True if the record is in; False if the batch is full (nothing was added). A first record always fits."""
        ...

    def fill(self, records: Sequence[tuple[Any, int | None, bytes | None, bytes | None, Any, int]], start: int) -> int:
        """Append from `start` on, as many as fit; the index of the first that is not in. Of each what lies between its first and
        its last item: timestamp, key, value, headers."""
        ...

    def count(self) -> int: ...

    def build(self, producer: Producer, base_sequence: int) -> bytes:
        """The encoded batch; call once."""
        ...


class Broker(Protocol):
    """A Kafka cluster, as the engine sees it.

    `throttles`: what brokers ask this client to wait; each method waits for it before it asks, its own bound not counted.
    """

    @property
    def throttles(self) -> Throttles: ...

    async def start(self) -> None:
        """Connect. RpcLost(sent=False) where no broker answers."""
        ...

    async def close(self) -> None: ...

    # -- topics
    async def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        """Metadata v10+, fresh from the broker; a topic that does not exist is absent. None: all topics. Never creates one."""
        ...

    async def broker_count(self) -> int: ...

    async def create_topics(self, specs: Sequence[TopicSpec], *, validate_only: bool = False) -> None:
        """A topic that exists already is not an error. `validate_only`: refused like any other request, and makes nothing,
        whenever it arrives.
        """
        ...

    async def create_partitions(self, name: str, partitions: int) -> None:
        """Grow a topic to so many. One that has them already is not an error."""
        ...

    async def delete_topics(self, topics: Sequence[TopicInfo]) -> None:
        """By id: a topic that was made since under the name of one of them stays; one that has no id is deleted by its name. One
        that does not exist is not an error."""
        ...

    async def topic_configs(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Every setting in force, defaults included. RpcError 3 where the broker that is asked does not know a topic:
        there is none, or it has been shown by another broker only, which happens while one of them starts.
        """
        ...

    async def delete_records(self, before: Mapping[TP, int]) -> None: ...

    # -- rights
    async def topic_rights(self, names: Sequence[str]) -> dict[str, frozenset[Right]]:
        """What this client may do with each topic, as the broker says; a topic that is not there, or of which it does not say,
        is absent. RpcError 29 where it may not even know of one. Brokers without an authorizer say all there is."""
        ...

    async def group_rights(self, group: str) -> frozenset[Right] | None:
        """As `topic_rights`, of a group, also of one that is not there yet; None where the broker does not say. RpcError 30."""
        ...

    async def find_writer(self, transactional_id: str) -> None:
        """Look for the coordinator of that id: what may be written under it is not said, but RpcError 53 where nothing may."""
        ...

    # -- logs
    async def leaders(self, tps: Sequence[TP]) -> dict[TP, int]:
        """Partition -> id of its leader, from the cache; one whose leader is unknown is absent."""
        ...

    async def fetch(self, request: FetchRequest) -> dict[TP, Fetched]:
        """One Fetch to one leader. What that leader says nothing of is absent."""
        ...

    async def list_offsets(self, tps: Sequence[TP], at: int, *, committed: bool = False) -> dict[TP, int]:
        """ListOffsets at EARLIEST, LATEST or a time in ms; `committed`: LATEST is the last stable offset.
        For a time after the last record: -1."""
        ...

    async def open_transactions(self, tps: Sequence[TP]) -> dict[TP, tuple[OpenTransaction, ...]]:
        """DescribeProducers on the leaders, then ListTransactions on every broker to name them (KIP-664)."""
        ...

    # -- transactions: the caller keeps producer id, epoch and sequences
    def batch_builder(self, max_bytes: int) -> BatchBuilder: ...

    async def init_producer_id(self, transactional_id: str, timeout_ms: int) -> Producer:
        """InitProducerId: fences every earlier producer of this id and ends its transaction."""
        ...

    async def add_partitions(self, producer: Producer, tps: Sequence[TP]) -> None: ...

    async def add_offsets(self, producer: Producer, group: str) -> None: ...

    async def produce(self, producer: Producer, batches: Mapping[TP, bytes]) -> dict[TP, int]:
        """One Produce per leader, all leaders in parallel, acks=all, one batch a partition.

        Returns base offsets (-1 where a duplicate sequence was acknowledged). If partitions differ in
        their answer, raises `RpcError` of the worst, with the partition and the broker's text in `detail`.
        """
        ...

    async def commit_offsets(self, producer: Producer, membership: Membership, offsets: Mapping[TP, int]) -> None:
        """TxnOffsetCommit v3. ValueError for generation -1 or an empty member: brokers accept it unchecked."""
        ...

    async def end_txn(self, producer: Producer, *, commit: bool) -> None: ...

    # -- the group (classic protocol)
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
        """JoinGroup v5, protocol type "consumer", one protocol named "semel".

        Waits for the others: up to the rebalance timeout. `topics` are those the group reads: the broker lets offsets of
        others expire, also of a living group.
        """
        ...

    async def sync_group(self, membership: Membership, assignments: Mapping[str, bytes]) -> bytes: ...

    async def heartbeat(self, membership: Membership) -> None:
        """Heartbeat v3, with the instance id."""
        ...

    async def leave_group(self, membership: Membership) -> None:
        """LeaveGroup v3+ with member and instance id: also a static member leaves at once."""
        ...

    async def describe_group(self, group: str) -> GroupInfo: ...

    async def stable_offsets(self, group: str, tps: Sequence[TP]) -> dict[TP, int]:
        """OffsetFetch v7 with require_stable; -1 where none was committed. RpcError 88 while a transaction is pending."""
        ...

    async def set_group_offsets(self, group: str, offsets: Mapping[TP, int]) -> None:
        """OffsetCommit to an empty group (reset only)."""
        ...


class Clock(Protocol):
    """`monotonic` and `time` in seconds."""

    def monotonic(self) -> float: ...
    def time(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...


class Randomness(Protocol):
    def random(self) -> float:
        """In [0, 1)."""
        ...
