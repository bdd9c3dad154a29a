"""What an answer of a broker means, as the protocol says it, and for every answer that Kafka's clients know of."""

from __future__ import annotations

import aiokafka.errors
import pytest

from semel.broker.answers import Answer, answer_of, needs_a_person
from semel.port import RpcError, RpcLost

# The protocol's own list: these codes, this meaning.
SAID = {
    Answer.RETRY: [51],
    Answer.WAIT: [3, 5, 6, 7, 13, 14, 15, 16, 19, 56, 74, 88],
    Answer.SUCCESS: [46],
    Answer.REJOIN: [22, 25, 27, 82],
    Answer.ABORT: [45, 48, 120],
    Answer.FENCED: [47, 90],
    Answer.UNKNOWN: [49, 59],
    Answer.RECORD: [10, 18, 32, 87],
    Answer.TOPIC: [17, 29],
}


@pytest.mark.parametrize(("code", "meaning"), [(code, answer) for answer, codes in SAID.items() for code in codes])
def test_a_code_means_what_the_protocol_says(code: int, meaning: Answer) -> None:
    for api in ("Produce", "TxnOffsetCommit", "EndTxn", "AddPartitionsToTxn"):
        assert answer_of(RpcError(api, code)) is meaning


def test_what_stands_nowhere_may_have_taken_effect() -> None:
    known = {code for codes in SAID.values() for code in codes} | {9, 20, 75, 78, 100}
    unknown = {e.errno for e in vars(aiokafka.errors).values() if isinstance(getattr(e, "errno", None), int)} - known
    assert len(unknown) > 20
    for code in [*unknown, 9999, -1]:
        assert answer_of(RpcError("EndTxn", code)) is Answer.UNKNOWN, code


def test_a_request_without_an_answer_may_have_taken_effect_only_if_it_was_sent() -> None:
    assert answer_of(RpcLost("EndTxn")) is Answer.UNKNOWN
    assert answer_of(RpcLost("EndTxn", sent=False)) is Answer.WAIT


@pytest.mark.parametrize("code", [47, 90])
def test_two_that_take_one_writer_at_once_try_again(code: int) -> None:
    assert answer_of(RpcError("InitProducerId", code)) is Answer.RETRY


def test_a_refusal_that_only_a_person_can_mend_is_told_from_one_that_passes() -> None:
    assert needs_a_person(RpcError("CreateTopics", 29))
    assert not needs_a_person(RpcError("CreateTopics", 7))
    assert not needs_a_person(RpcLost("CreateTopics"))
    for answer in (Answer.WAIT, Answer.RETRY):
        assert not any(needs_a_person(RpcError("x", code)) for code in SAID[answer])
