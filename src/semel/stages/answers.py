"""What each answer of a broker means to the commit protocol: one table, data, used by everyone who asks a broker.

From the protocol's error list (org.apache.kafka.common.protocol.Errors) and `docs/protocol.md`. An error that stands
nowhere here, a timeout, or a connection lost after a request was sent is UNKNOWN: it may have taken effect.
"""

from __future__ import annotations

from enum import Enum

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
    51: Answer.RETRY,  # CONCURRENT_TRANSACTIONS: the last one's markers are still being written
    3: Answer.WAIT,  # UNKNOWN_TOPIC_OR_PARTITION
    5: Answer.WAIT,  # LEADER_NOT_AVAILABLE
    6: Answer.WAIT,  # NOT_LEADER_OR_FOLLOWER
    7: Answer.WAIT,  # REQUEST_TIMED_OUT, said by the broker
    9: Answer.WAIT,  # REPLICA_NOT_AVAILABLE
    13: Answer.WAIT,  # NETWORK_EXCEPTION, between brokers
    14: Answer.WAIT,  # COORDINATOR_LOAD_IN_PROGRESS
    15: Answer.WAIT,  # COORDINATOR_NOT_AVAILABLE
    16: Answer.WAIT,  # NOT_COORDINATOR
    19: Answer.WAIT,  # NOT_ENOUGH_REPLICAS
    20: Answer.WAIT,  # NOT_ENOUGH_REPLICAS_AFTER_APPEND: idempotence makes asking again safe
    56: Answer.WAIT,  # KAFKA_STORAGE_ERROR
    74: Answer.WAIT,  # FENCED_LEADER_EPOCH
    75: Answer.WAIT,  # UNKNOWN_LEADER_EPOCH
    88: Answer.WAIT,  # UNSTABLE_OFFSET_COMMIT
    100: Answer.WAIT,  # UNKNOWN_TOPIC_ID
    46: Answer.SUCCESS,  # DUPLICATE_SEQUENCE_NUMBER
    22: Answer.REJOIN,  # ILLEGAL_GENERATION
    25: Answer.REJOIN,  # UNKNOWN_MEMBER_ID
    27: Answer.REJOIN,  # REBALANCE_IN_PROGRESS
    82: Answer.REJOIN,  # FENCED_INSTANCE_ID: whether our name is taken, the group says to who joins
    45: Answer.ABORT,  # OUT_OF_ORDER_SEQUENCE_NUMBER
    48: Answer.ABORT,  # INVALID_TXN_STATE
    120: Answer.ABORT,  # TRANSACTION_ABORTABLE
    47: Answer.FENCED,  # INVALID_PRODUCER_EPOCH
    90: Answer.FENCED,  # PRODUCER_FENCED
    49: Answer.UNKNOWN,  # INVALID_PRODUCER_ID_MAPPING
    59: Answer.UNKNOWN,  # UNKNOWN_PRODUCER_ID
    10: Answer.RECORD,  # MESSAGE_TOO_LARGE
    18: Answer.RECORD,  # RECORD_LIST_TOO_LARGE
    32: Answer.RECORD,  # INVALID_TIMESTAMP
    87: Answer.RECORD,  # INVALID_RECORD
    17: Answer.TOPIC,  # INVALID_TOPIC_EXCEPTION
    29: Answer.TOPIC,  # TOPIC_AUTHORIZATION_FAILED
}

# The same code can mean another thing to another request.
_BY_API: dict[tuple[str, int], Answer] = {
    ("InitProducerId", 47): Answer.RETRY,  # a race of two inits of one id: the later one wins
    ("InitProducerId", 90): Answer.RETRY,
}


def answer_of(exc: RpcError | RpcLost) -> Answer:
    """The meaning of a failed request."""
    if isinstance(exc, RpcLost):
        return Answer.UNKNOWN if exc.sent else Answer.WAIT
    return _BY_API.get((exc.api, exc.code)) or _COMMON.get(exc.code, Answer.UNKNOWN)


# What no asking again can help: authorization, authentication, versions, policies, settings out of the broker's range.
_FOR_A_PERSON = frozenset({17, 24, 26, 29, 30, 31, 33, 34, 35, 37, 38, 39, 40, 42, 43, 44, 50, 53, 58})


# A login that is refused: nobody is let in, whatever is asked.
LOGIN = frozenset({33, 34, 58})


def is_explained(exc: BaseException) -> bool:
    """Whether its message says it all: a traceback would hide that it is no defect."""
    return isinstance(exc, SemelError | RpcLost) or (isinstance(exc, RpcError) and needs_a_person(exc))


def needs_a_person(exc: RpcError | RpcLost) -> bool:
    """Of a request that may be asked any number of times: whether asking again is in vain."""
    return isinstance(exc, RpcError) and exc.code in _FOR_A_PERSON
