"""Topics as they are declared."""

from __future__ import annotations

from dataclasses import dataclass
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
    [{"time": ""}, {"time": 5}, {"time": ["at"]},
     {"partitions": 0}, {"partitions": -1}, {"partitions": "4"}, {"partitions": True}, {"partitions": 2.0}, {"value": complex},
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


@dataclass
class Reading:
    id: str
    taken_at: int

    @property
    def hour(self) -> int:
        return self.taken_at // 3_600_000 * 3_600_000


def test_a_topic_may_say_what_gives_the_time_of_an_event() -> None:
    def by(reading: Reading) -> int:
        return reading.taken_at

    assert Topic("readings").time is None
    for time in ("taken_at", "hour", by):
        assert Topic("readings", value=Reading, time=time).time is time
    assert Topic("readings", time="anything").time == "anything"


@pytest.mark.parametrize("value", [Reading, Reading | None])
def test_a_time_field_that_no_event_has_is_refused_where_the_topic_is_declared(value: Any) -> None:
    with pytest.raises(DeclarationError, match=r"topic 'r': time= names field 'taken', .* did you mean 'taken_at'"):
        Topic("r", value=value, time="taken")
    with pytest.raises(DeclarationError, match="int has no fields"):
        Topic("r", value=int, time="taken_at")
