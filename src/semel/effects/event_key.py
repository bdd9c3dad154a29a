"""The effect of an event: its key comes from what the event is, never from what a handler makes of it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from semel.effects.effect import Effect, EffectKey, Place, check_name
from semel.errors import HandlingError
from semel.event import EventIdentity

# The first byte of an id, so that a dedup id is no place.
_ID, _PLACE = b"i", b"p"


def effect_of(event: EventIdentity, step: str = "") -> Effect:
    """The effect `step` of an event (protocol rule 22). Its dedup id names it, else its place in this very topic.

    HandlingError for a step that is no name.
    """
    check_name("step", step)
    place = Place(event.topic, event.topic_id, event.partition, event.offset)
    named = event.id is not None
    key = (
        _ID + event.id
        if event.id is not None
        # A broker that is older than ids of topics has names alone.
        else _PLACE + f"{event.topic_id or event.topic}/{event.partition}/{event.offset}".encode()
    )
    scope = f"{event.app}:{event.agent}" if event.agent else event.app
    return Effect(
        EffectKey(scope, step, key, event.edition),
        event.payload,
        place,
        event.at_ms,
        event.window_ms if named else None,
    )


class OncePerAttempt(NamedTuple):
    """Two effects of one event with one key would be one: the second would silently not happen."""

    done: set[EffectKey]

    def begin(self, key: EffectKey) -> None:
        """HandlingError where the event has carried this one out in this attempt, or is at it."""
        if key in self.done:
            raise HandlingError(
                f"effect {key} was carried out by this event a moment ago, or is being; a second one needs a name of its own, as "
                'once(event, step="receipt"), or it would be taken for a repeat of the first'
            )
        self.done.add(key)

    def failed(self, key: EffectKey) -> None:
        """The attempt may try it again."""
        self.done.discard(key)
