"""Topics as they are declared."""

from __future__ import annotations

from typing import Any

import pytest

from semel.errors import DeclarationError
from semel.topic import Topic


def test_a_topic_has_strings_for_keys_and_dicts_for_values_unless_told() -> None:
    topic = Topic("payments")
    assert topic.key.decode(b"k") == "k"
    assert topic.value.decode(b'{"a":1}') == {"a": 1}
    assert (topic.partitions, topic.configs) == (None, {})
    assert repr(Topic("t", key=bytes, value=list[int])) == "Topic('t', key=bytes, value=list[int])"


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 249, "...", "payments.dlq"])
def test_names_that_kafka_takes_are_taken(name: str) -> None:
    assert Topic(name).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "x" * 250, "a b", "ä", "a/b", "a\n"])
def test_names_that_kafka_refuses_are_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="1 to 249 of the characters"):
        Topic(name)


@pytest.mark.parametrize(
    "declared",
    [{"partitions": 0}, {"partitions": -1}, {"partitions": "4"}, {"partitions": True}, {"partitions": 2.0}, {"value": complex},
     {"key": object}, {"configs": {"retention.ms": 5}}, {"configs": "retention.ms=5"}],
)  # fmt: skip
def test_what_cannot_be_is_refused_where_it_is_declared(declared: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError):
        Topic("t", **declared)


def test_a_topic_has_configs_of_its_own() -> None:
    configs = {"cleanup.policy": "compact"}
    topic = Topic("t", configs=configs)
    configs.clear()
    assert topic.configs == {"cleanup.policy": "compact"}


def test_a_name_that_is_no_text_is_refused_with_words() -> None:
    with pytest.raises(DeclarationError, match="topic name 5 is of type int; give a str"):
        Topic(5)  # type: ignore[arg-type]
