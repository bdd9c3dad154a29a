"""Effect: what is to happen once; its key, the hash of its payload, and its outcome as it is remembered. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple, cast
from uuid import UUID

import orjson

from semel.dedup import canonical, key_bytes
from semel.errors import HandlingError

# What a store keeps for each key, and reads back on every repeat.
OUTCOME_BYTES_MAX = 1 << 20
# Names stand in messages and in rows.
NAME_CHARACTERS_MAX = 200


class Place(NamedTuple):
    """Where the event of an effect lies. `topic_id` tells a topic from one of its name that was there before."""

    topic: str
    topic_id: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class EffectKey(NamedTuple):
    """What an effect is known by (protocol rule 22): two calls with the same key are one effect.

    `scope`: the pipeline, or what a caller without one says; `step`: which of the effects of one event; `id`: the event's
    dedup id or its place, or the caller's key; `edition`: empty, but for an event that an operator has edited.
    """

    scope: str
    step: str
    id: bytes
    edition: bytes = b""

    @property
    def digest(self) -> bytes:
        """32 bytes for the whole of it, the same in every process and version: the key of a row."""
        parts = (self.scope.encode(), self.step.encode(), self.id, self.edition)
        return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()

    @property
    def lock(self) -> int:
        """A signed number of 64 bits, as PostgreSQL's advisory locks are named."""
        return int.from_bytes(self.digest[:8], "big", signed=True)

    def __str__(self) -> str:
        try:
            id = self.id.decode()
            id = id if id.isprintable() else self.id.hex()
        except UnicodeDecodeError:
            id = self.id.hex()
        names = "/".join(part for part in (self.scope, self.step) if part)
        edited = f", edited to {self.edition.hex()}" if self.edition else ""
        return f"{names + ' ' if names else ''}{id[:100]!r}{edited}"


@dataclass(frozen=True)
class Effect:
    """`payload`: the hash of what must agree between two calls with the same key. `place`, `at_ms`: of its event.
    `window_ms`: for how long its dedup id means this event, in event time; None: for ever."""

    key: EffectKey
    payload: bytes
    place: Place | None = None
    at_ms: int | None = None
    window_ms: int | None = None


def effect(key: Any, payload: Any, *, scope: str = "", step: str = "") -> Effect:
    """An effect of a caller who names it. HandlingError where key or payload have no bytes that are the same everywhere."""
    for name, text in (("scope", scope), ("step", step)):
        check_name(name, text)
    if key is None or key in ("", b"", (), []):
        raise HandlingError(
            f"{key!r} is no key of an effect: all callers without one would be one effect; give each its own"
        )
    if not _plain(key):
        raise HandlingError(
            f"the key {key!r:.80} of an effect is no str, bytes, int, date, UUID, or a list of such; give what names the "
            "effect the same way whenever it is called"
        )
    id = key_bytes(key)
    try:
        return Effect(EffectKey(scope, step, id), hashlib.sha256(canonical(payload)).digest())
    except (TypeError, ValueError) as unfit:
        raise HandlingError(
            f"the payload of effect {key!r:.80} cannot be compared ({unfit}); give what makes it this effect as plain data"
        ) from unfit


def _plain(key: Any) -> bool:
    """Whether a key is the same bytes in every process."""
    if isinstance(key, (list, tuple)):
        return all(_plain(part) for part in cast("list[Any]", key))
    return isinstance(key, (str, bytes, int, date, UUID))


def check_name(name: str, text: Any) -> None:
    if not isinstance(text, str) or len(text) > NAME_CHARACTERS_MAX or "\x00" in text:
        raise HandlingError(f"{name}={text!r:.80} of an effect is no str of up to {NAME_CHARACTERS_MAX} characters")


class Outcome(NamedTuple):
    """What is remembered of an effect that has happened. `refused`: why the outcome itself is not, empty where it is."""

    raw: bytes | None
    refused: str = ""

    @property
    def value(self) -> Any:
        return read_outcome(self.raw)


def outcome(value: Any) -> Outcome:
    """The outcome as it is kept: JSON. What cannot be kept is no reason to forget that the effect happened."""
    if value is None:
        return Outcome(None)
    try:
        raw = orjson.dumps(value)
    except (TypeError, ValueError) as unfit:
        return Outcome(None, f"its outcome of type {type(value).__name__} is no JSON ({unfit})")
    if len(raw) > OUTCOME_BYTES_MAX:
        return Outcome(None, f"its outcome has {len(raw)} bytes, of which {OUTCOME_BYTES_MAX} can be kept")
    return Outcome(raw)


def read_outcome(raw: bytes | None) -> Any:
    return None if raw is None else orjson.loads(raw)
