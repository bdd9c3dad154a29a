"""Kafka's error codes: their names, and which of several answers weighs most."""

from __future__ import annotations

from semel.codes import RETRIABLE, STALE_COORDINATOR, STALE_METADATA, Code, describe, is_fenced, severity


def test_a_code_is_said_by_its_name_where_it_was_and_in_the_brokers_words() -> None:
    assert describe(3) == "UNKNOWN_TOPIC_OR_PARTITION"
    assert describe(29, "not yours", at="orders[1]") == "TOPIC_AUTHORIZATION_FAILED at orders[1]: not yours"
    assert describe(9999) == "not in semel's table of error codes"


def test_fenced_weighs_more_than_refused_more_than_another_try_more_than_not_attempted() -> None:
    ascending = [
        Code.OPERATION_NOT_ATTEMPTED,
        Code.NOT_COORDINATOR,
        Code.TOPIC_AUTHORIZATION_FAILED,
        Code.PRODUCER_FENCED,
    ]
    assert [severity(code) for code in ascending] == [0, 1, 2, 3]
    assert severity(9999) == severity(Code.TOPIC_AUTHORIZATION_FAILED)
    assert {code for code in Code if severity(code) == 3} == {code for code in Code if is_fenced(code)}


def test_what_makes_something_stale_passes_by_itself() -> None:
    assert STALE_METADATA | STALE_COORDINATOR < RETRIABLE
    assert not any(is_fenced(code) for code in RETRIABLE)
