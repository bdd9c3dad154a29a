"""Topic: a name, two types, a number of partitions. Declared here, opened by the engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from semel.codec import Codec, check_fields, codec_for, topic_codec
from semel.errors import DeclarationError
from semel.event_time import EventTime, checked

# What the brokers keep for themselves, and let no client write to.
KAFKAS_OWN = frozenset(("__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"))
_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def checked_name(name: str, what: str) -> str:
    """A name Kafka accepts for a topic, or DeclarationError."""
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DeclarationError(f"{what} name {name!r} is of type {type(name).__name__}; give a str")
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise DeclarationError(
            f"{what} name {name!r} is not possible on Kafka; use 1 to 249 of the characters a-z A-Z 0-9 . _ -"
        )
    return name


def is_whole(number: object) -> bool:
    """An int, and no bool, which is one, too."""
    return isinstance(number, int) and not isinstance(number, bool)


def _checked_configs(name: str, configs: Any) -> dict[str, str]:
    if not isinstance(configs, Mapping):
        raise DeclarationError(
            f"topic {name!r} has configs={configs!r}; give a dict, as {{'retention.ms': '86400000'}}"
        )
    given = cast("Mapping[Any, Any]", configs)
    for key, value in given.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise DeclarationError(
                f"topic {name!r}: configs has {key!r}: {value!r}; Kafka takes text for both, as {str(value)!r}"
            )
    return dict(given)


class Topic:
    """A Kafka topic with typed keys and values.

    `key`, `value`: types (`bytes` raw, `str` UTF-8, `int`, `float`, `bool`, `dict`, `list`, dataclasses, msgspec Structs
    and models of pydantic as JSON) or a `Codec`. With `value=T | None` a record without a value (a tombstone) is None;
    else it is dead-lettered. Dataclasses of a union are told apart by a field. `time`: a field's name or a function of the
    value for the time of an event (a datetime or its ISO text, UTC where it names no zone, or a number of ms since 1970, not
    of seconds); the record's timestamp unless given. `partitions` and `configs` are used only
    where semel creates the topic (sinks, never sources); partitions default to the source's.
    """

    def __init__(
        self,
        name: str,
        *,
        key: Any = str,
        value: Any = dict,
        partitions: int | None = None,
        configs: Mapping[str, str] | None = None,
        time: EventTime | None = None,
    ) -> None:
        self.name = checked_name(name, "topic")
        if partitions is not None and (not is_whole(partitions) or partitions < 1):
            raise DeclarationError(f"topic {name!r} has partitions={partitions!r}; it takes a number, one or more")
        self.key: Codec[Any] = codec_for(key)
        self.value: Codec[Any] = topic_codec(value)
        self.time = checked(time, f"topic {name!r}: time")
        if isinstance(time, str):
            check_fields([time], self.value, f"topic {name!r}: time= names")
        self.partitions = partitions
        self.configs = _checked_configs(name, configs or {})

    def __repr__(self) -> str:
        return f"Topic({self.name!r}, key={self.key.name}, value={self.value.name})"


class UnnamedTopic(Topic):
    """A topic that a timer sends to and that no event has named since its worker started: nobody has said of what types it is."""
