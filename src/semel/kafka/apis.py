"""The requests semel speaks, each in one version that Kafka 3.1 to 4.x all answer.

Kafka 4 dropped the oldest versions (KIP-896), older brokers lack the newest; aiokafka's own structs
stop before most of the versions that fencing by group and generation needs. Field order is the wire's.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from aiokafka.protocol.types import (
    Array,
    Boolean,
    Bytes,
    CompactArray,
    CompactBytes,
    CompactString,
    Float64,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
)

from semel.kafka.wire import Api, TaggedSchema, Uuid, array, tagged_array

_string = String("utf-8")
_compact = CompactString("utf-8")
_throttle = ("throttle_time_ms", Int32)
_error = ("error_code", Int16)

# -- finding one's way

METADATA = Api(
    "Metadata",
    3,
    10,  # the first with topic ids
    TaggedSchema(
        ("topics", tagged_array(("topic_id", Uuid), ("name", _compact))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    ),
    TaggedSchema(
        _throttle,
        ("brokers", tagged_array(("node_id", Int32), ("host", _compact), ("port", Int32), ("rack", _compact))),
        ("cluster_id", _compact),
        ("controller_id", Int32),
        (
            "topics",
            tagged_array(
                _error,
                ("name", _compact),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    tagged_array(
                        _error,
                        ("partition", Int32),
                        ("leader_id", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                    ),
                ),
                ("topic_authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    ),
)

FIND_COORDINATOR = Api(
    "FindCoordinator",
    10,
    2,
    Schema(("key", _string), ("key_type", Int8)),
    Schema(_throttle, _error, ("error_message", _string), ("node_id", Int32), ("host", _string), ("port", Int32)),
)

# -- topics

CREATE_TOPICS = Api(
    "CreateTopics",
    19,
    4,
    Schema(
        (
            "topics",
            array(
                ("name", _string),
                ("partitions", Int32),
                ("replication_factor", Int16),
                ("assignments", array(("partition", Int32), ("broker_ids", Array(Int32)))),
                ("configs", array(("name", _string), ("value", _string))),
            ),
        ),
        ("timeout_ms", Int32),
        ("validate_only", Boolean),
    ),
    Schema(_throttle, ("topics", array(("name", _string), _error, ("error_message", _string)))),
)

CREATE_PARTITIONS = Api(
    "CreatePartitions",
    37,
    1,
    Schema(
        ("topics", array(("name", _string), ("count", Int32), ("assignments", array(("broker_ids", Array(Int32)))))),
        ("timeout_ms", Int32),
        ("validate_only", Boolean),
    ),
    Schema(_throttle, ("topics", array(("name", _string), _error, ("error_message", _string)))),
)

DELETE_TOPICS = Api(
    "DeleteTopics",
    20,
    6,  # the first with topic ids
    TaggedSchema(("topics", tagged_array(("name", _compact), ("topic_id", Uuid))), ("timeout_ms", Int32)),
    TaggedSchema(
        _throttle,
        ("topics", tagged_array(("name", _compact), ("topic_id", Uuid), _error, ("error_message", _compact))),
    ),
)

DESCRIBE_CONFIGS = Api(
    "DescribeConfigs",
    32,
    2,
    Schema(
        ("resources", array(("resource_type", Int8), ("resource_name", _string), ("keys", Array(_string)))),
        ("include_synonyms", Boolean),
    ),
    Schema(
        _throttle,
        (
            "resources",
            array(
                _error,
                ("error_message", _string),
                ("resource_type", Int8),
                ("resource_name", _string),
                (
                    "configs",
                    array(
                        ("name", _string),
                        ("value", _string),
                        ("read_only", Boolean),
                        ("source", Int8),
                        ("is_sensitive", Boolean),
                        ("synonyms", array(("name", _string), ("value", _string), ("source", Int8))),
                    ),
                ),
            ),
        ),
    ),
)

DELETE_RECORDS = Api(
    "DeleteRecords",
    21,
    1,
    Schema(
        ("topics", array(("topic", _string), ("partitions", array(("partition", Int32), ("offset", Int64))))),
        ("timeout_ms", Int32),
    ),
    Schema(
        _throttle,
        (
            "topics",
            array(("topic", _string), ("partitions", array(("partition", Int32), ("low_watermark", Int64), _error))),
        ),
    ),
)

# -- logs

_fetch = (
    ("replica_id", Int32),
    ("max_wait_ms", Int32),
    ("min_bytes", Int32),
    ("max_bytes", Int32),
    ("isolation_level", Int8),
    ("session_id", Int32),
    ("session_epoch", Int32),
)
_fetched = (
    ("partition", Int32),
    _error,
    ("high_watermark", Int64),
    ("last_stable_offset", Int64),
    ("log_start_offset", Int64),
)

FETCH_BY_NAME = Api(
    "Fetch",
    1,
    11,  # for topics without ids: of Kafka 3 in ZooKeeper mode with an inter.broker.protocol.version below 2.8
    Schema(
        *_fetch,
        (
            "topics",
            array(
                ("topic", _string),
                (
                    "partitions",
                    array(
                        ("partition", Int32),
                        ("current_leader_epoch", Int32),
                        ("fetch_offset", Int64),
                        ("log_start_offset", Int64),
                        ("max_bytes", Int32),
                    ),
                ),
            ),
        ),
        ("forgotten_topics", array(("topic", _string), ("partitions", Array(Int32)))),
        ("rack_id", _string),
    ),
    Schema(
        _throttle,
        _error,
        ("session_id", Int32),
        (
            "topics",
            array(
                ("topic", _string),
                (
                    "partitions",
                    array(
                        *_fetched,
                        ("aborted", array(("producer_id", Int64), ("first_offset", Int64))),
                        ("preferred_read_replica", Int32),
                        ("records", Bytes),
                    ),
                ),
            ),
        ),
    ),
)

FETCH = Api(
    "Fetch",
    1,
    13,  # the first with topic ids (KIP-516): of a topic that was deleted and created again, nothing is taken for the old one
    TaggedSchema(
        *_fetch,
        (
            "topics",
            tagged_array(
                ("topic_id", Uuid),
                (
                    "partitions",
                    tagged_array(
                        ("partition", Int32),
                        ("current_leader_epoch", Int32),
                        ("fetch_offset", Int64),
                        ("last_fetched_epoch", Int32),
                        ("log_start_offset", Int64),
                        ("max_bytes", Int32),
                    ),
                ),
            ),
        ),
        ("forgotten_topics", tagged_array(("topic_id", Uuid), ("partitions", CompactArray(Int32)))),
        ("rack_id", _compact),
    ),
    TaggedSchema(
        _throttle,
        _error,
        ("session_id", Int32),
        (
            "topics",
            tagged_array(
                ("topic_id", Uuid),
                (
                    "partitions",
                    tagged_array(
                        *_fetched,
                        ("aborted", tagged_array(("producer_id", Int64), ("first_offset", Int64))),
                        ("preferred_read_replica", Int32),
                        ("records", CompactBytes),
                    ),
                ),
            ),
        ),
    ),
)

LIST_OFFSETS = Api(
    "ListOffsets",
    2,
    3,  # from 5 on a freshly elected leader answers 78 instead of 5, which callers would have to learn
    Schema(
        ("replica_id", Int32),
        ("isolation_level", Int8),
        ("topics", array(("topic", _string), ("partitions", array(("partition", Int32), ("timestamp", Int64))))),
    ),
    Schema(
        _throttle,
        (
            "topics",
            array(
                ("topic", _string),
                ("partitions", array(("partition", Int32), _error, ("timestamp", Int64), ("offset", Int64))),
            ),
        ),
    ),
)

DESCRIBE_PRODUCERS = Api(
    "DescribeProducers",
    61,
    0,
    TaggedSchema(("topics", tagged_array(("topic", _compact), ("partitions", CompactArray(Int32))))),
    TaggedSchema(
        _throttle,
        (
            "topics",
            tagged_array(
                ("topic", _compact),
                (
                    "partitions",
                    tagged_array(
                        ("partition", Int32),
                        _error,
                        ("error_message", _compact),
                        (
                            "producers",
                            tagged_array(
                                ("producer_id", Int64),
                                ("producer_epoch", Int32),
                                ("last_sequence", Int32),
                                ("last_timestamp", Int64),
                                ("coordinator_epoch", Int32),
                                ("txn_start_offset", Int64),
                            ),
                        ),
                    ),
                ),
            ),
        ),
    ),
)

LIST_TRANSACTIONS = Api(
    "ListTransactions",
    66,
    0,
    TaggedSchema(("state_filters", CompactArray(_compact)), ("producer_id_filters", CompactArray(Int64))),
    TaggedSchema(
        _throttle,
        _error,
        ("unknown_state_filters", CompactArray(_compact)),
        ("transactions", tagged_array(("transactional_id", _compact), ("producer_id", Int64), ("state", _compact))),
    ),
)

# -- transactions

_producer = (("transactional_id", _compact), ("producer_id", Int64), ("producer_epoch", Int16))

INIT_PRODUCER_ID = Api(
    "InitProducerId",
    22,
    4,
    TaggedSchema(("transactional_id", _compact), ("timeout_ms", Int32), ("producer_id", Int64), ("epoch", Int16)),
    TaggedSchema(_throttle, _error, ("producer_id", Int64), ("producer_epoch", Int16)),
)

ADD_PARTITIONS = Api(
    "AddPartitionsToTxn",
    24,
    3,
    TaggedSchema(*_producer, ("topics", tagged_array(("topic", _compact), ("partitions", CompactArray(Int32))))),
    TaggedSchema(
        _throttle,
        ("topics", tagged_array(("topic", _compact), ("partitions", tagged_array(("partition", Int32), _error)))),
    ),
)

ADD_OFFSETS = Api(
    "AddOffsetsToTxn",
    25,
    3,
    TaggedSchema(*_producer, ("group", _compact)),
    TaggedSchema(_throttle, _error),
)

PRODUCE = Api(
    "Produce",
    0,
    9,  # says in words why a batch was refused
    TaggedSchema(
        ("transactional_id", _compact),
        ("acks", Int16),
        ("timeout_ms", Int32),
        (
            "topics",
            tagged_array(
                ("topic", _compact), ("partitions", tagged_array(("partition", Int32), ("records", CompactBytes)))
            ),
        ),
    ),
    TaggedSchema(
        (
            "topics",
            tagged_array(
                ("topic", _compact),
                (
                    "partitions",
                    tagged_array(
                        ("partition", Int32),
                        _error,
                        ("base_offset", Int64),
                        ("log_append_time_ms", Int64),
                        ("log_start_offset", Int64),
                        ("record_errors", tagged_array(("batch_index", Int32), ("message", _compact))),
                        ("error_message", _compact),
                    ),
                ),
            ),
        ),
        _throttle,
    ),
)

TXN_OFFSET_COMMIT = Api(
    "TxnOffsetCommit",
    28,
    3,  # the first that carries generation and member
    TaggedSchema(
        ("transactional_id", _compact),
        ("group", _compact),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation", Int32),
        ("member_id", _compact),
        ("instance_id", _compact),
        (
            "topics",
            tagged_array(
                ("topic", _compact),
                (
                    "partitions",
                    tagged_array(
                        ("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", _compact)
                    ),
                ),
            ),
        ),
    ),
    TaggedSchema(
        _throttle,
        ("topics", tagged_array(("topic", _compact), ("partitions", tagged_array(("partition", Int32), _error)))),
    ),
)

END_TXN = Api(
    "EndTxn",
    26,
    3,
    TaggedSchema(*_producer, ("committed", Boolean)),
    TaggedSchema(_throttle, _error),
)

# -- the group

JOIN_GROUP = Api(
    "JoinGroup",
    11,
    5,
    Schema(
        ("group", _string),
        ("session_timeout_ms", Int32),
        ("rebalance_timeout_ms", Int32),
        ("member_id", _string),
        ("instance_id", _string),
        ("protocol_type", _string),
        ("protocols", array(("name", _string), ("metadata", Bytes))),
    ),
    Schema(
        _throttle,
        _error,
        ("generation", Int32),
        ("protocol", _string),
        ("leader", _string),
        ("member_id", _string),
        ("members", array(("member_id", _string), ("instance_id", _string), ("metadata", Bytes))),
    ),
)

SYNC_GROUP = Api(
    "SyncGroup",
    14,
    3,
    Schema(
        ("group", _string),
        ("generation", Int32),
        ("member_id", _string),
        ("instance_id", _string),
        ("assignments", array(("member_id", _string), ("assignment", Bytes))),
    ),
    Schema(_throttle, _error, ("assignment", Bytes)),
)

HEARTBEAT = Api(
    "Heartbeat",
    12,
    3,
    Schema(("group", _string), ("generation", Int32), ("member_id", _string), ("instance_id", _string)),
    Schema(_throttle, _error),
)

LEAVE_GROUP = Api(
    "LeaveGroup",
    13,
    3,
    Schema(("group", _string), ("members", array(("member_id", _string), ("instance_id", _string)))),
    Schema(_throttle, _error, ("members", array(("member_id", _string), ("instance_id", _string), _error))),
)

DESCRIBE_GROUPS = Api(
    "DescribeGroups",
    15,
    4,
    Schema(("groups", Array(_string)), ("include_authorized_operations", Boolean)),
    Schema(
        _throttle,
        (
            "groups",
            array(
                _error,
                ("group", _string),
                ("state", _string),
                ("protocol_type", _string),
                ("protocol", _string),
                (
                    "members",
                    array(
                        ("member_id", _string),
                        ("instance_id", _string),
                        ("client_id", _string),
                        ("client_host", _string),
                        ("metadata", Bytes),
                        ("assignment", Bytes),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
    ),
)

OFFSET_FETCH = Api(
    "OffsetFetch",
    9,
    7,  # the first with require_stable
    TaggedSchema(
        ("group", _compact),
        ("topics", tagged_array(("topic", _compact), ("partitions", CompactArray(Int32)))),
        ("require_stable", Boolean),
    ),
    TaggedSchema(
        _throttle,
        (
            "topics",
            tagged_array(
                ("topic", _compact),
                (
                    "partitions",
                    tagged_array(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", _compact),
                        _error,
                    ),
                ),
            ),
        ),
        _error,
    ),
)

OFFSET_COMMIT = Api(
    "OffsetCommit",
    8,
    7,
    Schema(
        ("group", _string),
        ("generation", Int32),
        ("member_id", _string),
        ("instance_id", _string),
        (
            "topics",
            array(
                ("topic", _string),
                (
                    "partitions",
                    array(("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", _string)),
                ),
            ),
        ),
    ),
    Schema(
        _throttle,
        ("topics", array(("topic", _string), ("partitions", array(("partition", Int32), _error)))),
    ),
)

ALL: tuple[Api, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Api))
"""What a broker must support; checked when the client starts."""

# -- what is asked for by those who run a cluster, and by no worker

ALTER_CLIENT_QUOTAS = Api(
    "AlterClientQuotas",
    49,
    0,
    Schema(
        (
            "entries",
            array(
                ("entity", array(("type", _string), ("name", _string))),
                ("ops", array(("key", _string), ("value", Float64), ("remove", Boolean))),
            ),
        ),
        ("validate_only", Boolean),
    ),
    Schema(
        _throttle,
        (
            "entries",
            array(_error, ("error_message", _string), ("entity", array(("type", _string), ("name", _string)))),
        ),
    ),
)

_binding = (
    ("resource_type", Int8),
    ("resource_name", _string),
    ("pattern_type", Int8),
    ("principal", _string),
    ("host", _string),
    ("operation", Int8),
    ("permission_type", Int8),
)

CREATE_ACLS = Api(
    "CreateAcls",
    30,
    1,
    Schema(("creations", array(*_binding))),
    Schema(_throttle, ("results", array(_error, ("error_message", _string)))),
)

DELETE_ACLS = Api(
    "DeleteAcls",
    31,
    1,
    Schema(("filters", array(*_binding))),
    Schema(
        _throttle,
        (
            "results",
            array(
                _error,
                ("error_message", _string),
                ("matching", array(_error, ("error_message", _string), *_binding)),
            ),
        ),
    ),
)
