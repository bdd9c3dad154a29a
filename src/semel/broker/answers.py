"""What each answer of a broker means to the commit protocol: one table, data, used by everyone who asks a broker.

From the protocol's error list (org.apache.kafka.common.protocol.Errors) and `docs/protocol.md`. An error that stands
nowhere here, a timeout, or a connection lost after a request was sent is UNKNOWN: it may have taken effect.
"""

from __future__ import annotations

from enum import Enum

from semel.codes import LOGIN, NO_RIGHT, RETRIABLE, Code
from semel.errors import SemelError
from semel.port import RpcError, RpcLost


class Answer(Enum):
    RETRY = "ask again at once, within the bound"
    WAIT = "ask again in a little while, within the bound"
    SUCCESS = "it was done before"
    ABORT = "the epoch is lost; take a new writer"
    REJOIN = "the epoch is lost; our membership is stale: rejoin, then take a new writer"
    FENCED = "another writer of our id took over"
    RECORD = "a record cannot be written: find it"
    TOPIC = "the topic itself cannot be written: pause and say so"
    UNKNOWN = "it may or may not have taken effect"


_COMMON: dict[int, Answer] = {
    **dict.fromkeys(RETRIABLE, Answer.WAIT),
    Code.CONCURRENT_TRANSACTIONS: Answer.RETRY,  # the last one's markers are still being written
    Code.DUPLICATE_SEQUENCE_NUMBER: Answer.SUCCESS,
    Code.ILLEGAL_GENERATION: Answer.REJOIN,
    Code.UNKNOWN_MEMBER_ID: Answer.REJOIN,
    Code.REBALANCE_IN_PROGRESS: Answer.REJOIN,
    Code.FENCED_INSTANCE_ID: Answer.REJOIN,  # whether our name is taken, the group says to who joins
    Code.OUT_OF_ORDER_SEQUENCE_NUMBER: Answer.ABORT,
    Code.INVALID_TXN_STATE: Answer.ABORT,
    Code.TRANSACTION_ABORTABLE: Answer.ABORT,
    Code.INVALID_PRODUCER_EPOCH: Answer.FENCED,
    Code.PRODUCER_FENCED: Answer.FENCED,
    Code.INVALID_PRODUCER_ID_MAPPING: Answer.UNKNOWN,
    Code.UNKNOWN_PRODUCER_ID: Answer.UNKNOWN,
    Code.MESSAGE_TOO_LARGE: Answer.RECORD,
    Code.RECORD_LIST_TOO_LARGE: Answer.RECORD,
    Code.INVALID_TIMESTAMP: Answer.RECORD,
    Code.INVALID_RECORD: Answer.RECORD,
    Code.INVALID_TOPIC_EXCEPTION: Answer.TOPIC,
    Code.TOPIC_AUTHORIZATION_FAILED: Answer.TOPIC,
}

# The same code can mean another thing to another request.
_BY_API: dict[tuple[str, int], Answer] = {
    ("InitProducerId", Code.INVALID_PRODUCER_EPOCH): Answer.RETRY,  # a race of two inits of one id: the later one wins
    ("InitProducerId", Code.PRODUCER_FENCED): Answer.RETRY,
}


def answer_of(exc: RpcError | RpcLost) -> Answer:
    """The meaning of a failed request."""
    if isinstance(exc, RpcLost):
        return Answer.UNKNOWN if exc.sent else Answer.WAIT
    return _BY_API.get((exc.api, exc.code)) or _COMMON.get(exc.code, Answer.UNKNOWN)


# What no asking again can help: authorization, authentication, versions, policies, settings out of the broker's range.
_FOR_A_PERSON = LOGIN | NO_RIGHT | {
    Code.INVALID_TOPIC_EXCEPTION, Code.INVALID_GROUP_ID, Code.INVALID_SESSION_TIMEOUT, Code.GROUP_AUTHORIZATION_FAILED,
    Code.UNSUPPORTED_VERSION, Code.INVALID_PARTITIONS, Code.INVALID_REPLICATION_FACTOR, Code.INVALID_REPLICA_ASSIGNMENT,
    Code.INVALID_CONFIG, Code.INVALID_REQUEST, Code.UNSUPPORTED_FOR_MESSAGE_FORMAT, Code.POLICY_VIOLATION,
    Code.INVALID_TRANSACTION_TIMEOUT, Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}  # fmt: skip


def is_explained(exc: BaseException) -> bool:
    """Whether its message says it all: a traceback would hide that it is no defect."""
    return isinstance(exc, SemelError | RpcLost) or (isinstance(exc, RpcError) and needs_a_person(exc))


def needs_a_person(exc: RpcError | RpcLost) -> bool:
    """Of a request that may be asked any number of times: whether asking again is in vain."""
    return isinstance(exc, RpcError) and exc.code in _FOR_A_PERSON
