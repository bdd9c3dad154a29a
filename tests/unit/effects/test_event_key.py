"""The key of an event's effect."""

from __future__ import annotations

import pytest

from semel.effects.effect import EffectKey, Place
from semel.effects.event_key import OncePerAttempt, effect_of
from semel.errors import HandlingError
from semel.event import Attempt, EventIdentity

EVENT = EventIdentity("app", "", "orders", "t1", 3, 7, b"o1", b"", b"payload", 10, 1_000, Attempt(1))


def test_a_dedup_id_names_the_effect_wherever_its_record_lies() -> None:
    effect = effect_of(EVENT, "charge")
    assert effect.key == EffectKey("app", "charge", b"io1")
    assert (effect.payload, effect.place, effect.at_ms, effect.window_ms) == (
        b"payload", Place("orders", "t1", 3, 7), 10, 1_000,
    )  # fmt: skip
    assert effect_of(EVENT._replace(partition=4, offset=9, topic_id="t2"), "charge").key == effect.key


def test_without_an_id_its_place_in_this_very_topic_does() -> None:
    placed = EVENT._replace(id=None)
    assert effect_of(placed).key == EffectKey("app", "", b"pt1/3/7")
    assert effect_of(placed).window_ms is None
    others = [placed._replace(topic_id="t2"), placed._replace(partition=4), placed._replace(offset=8)]
    assert len({effect_of(event).key for event in [placed, *others]}) == 4


def test_an_id_is_never_a_place() -> None:
    assert effect_of(EVENT._replace(id=b"t1/3/7")).key != effect_of(EVENT._replace(id=None)).key


def test_topics_without_ids_are_apart_by_their_names() -> None:
    event = EVENT._replace(id=None, topic_id="")
    assert effect_of(event).key != effect_of(event._replace(topic="refunds")).key
    assert effect_of(event).key == effect_of(EVENT._replace(id=None, topic_id="orders")).key


def test_agents_of_one_app_and_editions_of_one_event_are_apart() -> None:
    events = [EVENT, EVENT._replace(agent="a"), EVENT._replace(agent="b"), EVENT._replace(edition=b"e")]
    assert len({effect_of(event).key for event in events}) == 4


def test_a_second_effect_under_one_name_in_one_attempt_is_refused() -> None:
    attempt = OncePerAttempt(EVENT.attempt.done)
    key = effect_of(EVENT).key
    attempt.begin(key)
    attempt.begin(effect_of(EVENT, "receipt").key)
    with pytest.raises(HandlingError, match='step="receipt"'):
        attempt.begin(key)
    attempt.failed(key)
    attempt.begin(key)
