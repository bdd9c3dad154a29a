"""Events generated from the types that a source declares, each with a dedup id of its own.

A row of a table lives in the partition that its key hashes to, so the record key must be what the agent takes for its
tables' keys. That stands in the agent's code only: the key is the first field with which the pipeline, run in memory,
refuses none of a few events.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from random import Random
from string import Formatter
from typing import Any, cast

import orjson

from semel.chaos.events import Headers, Input, Made
from semel.chaos.subject import Subject
from semel.chaos.values import POOL, NotMade, build, fields_of, make, unique
from semel.dedup import HeaderKey
from semel.errors import ConfigError, SemelError
from semel.pipeline import Pipeline
from semel.testing import PipelineTester

TRIED = 24
# So many that a key which only happens to fit does not fit all of them.
PARTITIONS_TRIED = 16


def from_types(subject: Subject, seed: int, now_ms: Callable[[], int], key: str | None = None) -> Input:
    """Generated from the source's value type. NotMade where that does not say enough, or its events are refused.

    `key`: the record key as a text with fields in braces, `{origin}-{dest}`; else it is tried out, on a copy of the pipeline
    in memory.
    """
    source = subject.source
    if key is not None and "{" not in key:
        key = f"{{{key}}}"
    note = ""
    if key is not None:
        there = texts(next(_Events(subject, seed, now_ms, None).events()).value or b"")
        if wrong := next((name for name in _names(key) if name not in there), None):
            raise ConfigError(f"--key names field {wrong!r}; an event has {', '.join(there) or 'no fields'}")
    elif subject.pipeline is not None:
        key, note = _tried_out(subject, subject.pipeline, seed, now_ms)
    keyed = f"keyed by {key}" if key is not None else f"with {POOL} keys"
    notes = [f"events are made up from {source.value.name}, {keyed}, seed {seed}", note]
    made = _Events(subject, seed, now_ms, key)
    return Input(made.events(), tuple(filter(None, notes)), json=source.value.type is not bytes)


def _tried_out(subject: Subject, pipeline: Pipeline, seed: int, now_ms: Callable[[], int]) -> tuple[str | None, str]:
    """The key that the fewest events are refused with, any if it will do; and why some are, where none takes all."""
    made = _Events(subject, seed, now_ms, None)
    fields = [texts(one.value or b"") for one in islice(made.events(), TRIED)]
    named = [name for name in fields[0] if all(name in there for there in fields)]
    refusals: dict[str | None, list[str]] = {}
    for key in (None, *(f"{{{name}}}" for name in sorted(named, key=lambda name: name == made.identity))):
        events = islice(_Events(subject, seed, now_ms, key).events(), TRIED)
        refusals[key] = _refused(pipeline, list(events), now_ms())
        if not refusals[key]:
            return key, ""
    key = min(refusals, key=lambda key: len(refusals[key]))
    [first, *_] = refused = refusals[key]
    if len(refused) * 2 > TRIED:
        raise ConfigError(
            f"pipeline {pipeline.name!r} refuses {len(refused)} of {TRIED} events that are made up, whichever field is their "
            f"key ({first[:300]}): say what the key is made of, as --key '{{origin}}-{{dest}}', or define chaos_events(rng) "
            "in the pipeline's module"
        )
    return key, f"the agent fails on events that are made up, so some will be dead letters: {first[:300]}"


def _refused(pipeline: Pipeline, events: Sequence[Made], now_ms: int) -> list[str]:
    """Why events were given up, one reason for each that was."""
    start = datetime.fromtimestamp(now_ms / 1000, UTC)
    log = logging.getLogger("semel")
    before = log.level
    # What it says of these events is said by this function.
    log.setLevel(logging.CRITICAL)
    try:
        with PipelineTester(pipeline, partitions=PARTITIONS_TRIED, start=start) as tester:
            for event in events:
                tester.send(event.value, key=event.key, headers=event.headers, settle=False)
            tester.settle()
            return [letter.error for letter in tester.dead_letters()]
    except SemelError as error:
        return [str(error)] * len(events)
    finally:
        log.setLevel(before)


class _Events:
    """`key`: as text with fields in braces; None: any of a few. `identity`: the field (empty: the whole value) that gets a
    value no other event has; None where nothing needs one.
    """

    def __init__(self, subject: Subject, seed: int, now_ms: Callable[[], int], key: str | None) -> None:
        self._source = subject.source
        self._dedup = subject.dedup
        self._key = key
        self._seed = seed
        self._now_ms = now_ms
        self._rng = Random(f"{seed} events")
        self._type = subject.source.value.type
        if self._type in (dict, list, Any, object) or self._type is None:
            raise NotMade(f"topic {self._source.name!r}, whose values are declared as {self._source.value.name}")
        self._fields = fields_of(self._type)
        self._by_header = self._dedup is None or isinstance(self._dedup.key, HeaderKey)
        self._number = 0
        self.identity: str | None = None
        self.identity = self._find_identity()

    def events(self) -> Iterator[Made]:
        encode = self._source.value.encode
        while True:
            self._number += 1
            if self._fields is None:
                value: Any = (
                    make(self._type, self._rng, self._now_ms(), name="value")
                    if self.identity is None
                    else unique(self._type, str(self._seed), self._number)
                )
                raw, altered = encode(value), None
            else:
                drawn = self._draw()
                raw = encode(build(self._type, drawn))
                altered = self._altered(self._fields, drawn, raw)
            key = self._pool_key() if self._key is None else _filled(self._key, texts(raw))
            yield Made(key, raw, self._headers(), None, altered)

    def _find_identity(self) -> str | None:
        """Of a field that alone changes the dedup key; one that looks like an id goes first. NotMade where none does."""
        fields, what = self._fields, self._source.value.name
        if fields is None:
            if not self._by_header and unique(self._type, "x", 0) is None:
                raise NotMade(f"a dedup key in the value, whose type {what} has too few values")
            return None if self._by_header else ""
        names = [name for name, declared in fields.items() if unique(declared, "x", 0) is not None]
        if self._dedup is None or self._by_header:
            return next((name for name in names if name.lower() in ("id", "uuid")), None)
        if isinstance(self._dedup.key, str):
            names = [name for name in names if name == self._dedup.key]
        for name in sorted(names, key=lambda name: "id" not in name.lower()):
            drawn = self._draw()
            with suppress(Exception):
                probes = (drawn | {name: unique(fields[name], "probe", number)} for number in range(3))
                if len(set(map(self._dedup_key, probes))) == 3:
                    return name
        raise NotMade(f"the dedup key of {what}, no field of which changes it: there is none, or it has too few values")

    def _draw(self) -> dict[str, Any]:
        assert self._fields is not None
        now_ms = self._now_ms()
        drawn = {name: make(declared, self._rng, now_ms, name=name) for name, declared in self._fields.items()}
        time = self._dedup.time if self._dedup is not None else None
        if isinstance(time, str) and time in self._fields:
            # A name that looks like a time gets the present, in the form that the type asks for.
            drawn[time] = make(self._fields[time], self._rng, now_ms, name="time")
        if self.identity:
            drawn[self.identity] = unique(self._fields[self.identity], str(self._seed), self._number)
        return drawn

    def _altered(self, fields: Mapping[str, Any], drawn: dict[str, Any], raw: bytes) -> bytes | None:
        """The same event with one field drawn anew; None where no field allows it, or nothing says which event it is."""
        if self._dedup is None:
            return None
        stay = {self.identity, *(name.partition(".")[0] for name in _names(self._key or ""))}
        others = [name for name in fields if name not in stay]
        self._rng.shuffle(others)
        fresh = self._draw()
        for name in others:
            changed = drawn | {name: fresh[name]}
            altered = self._source.value.encode(build(self._type, changed))
            if altered != raw and self._dedup_key(changed) == self._dedup_key(drawn):
                return altered
        return None

    def _dedup_key(self, drawn: Mapping[str, Any]) -> bytes | None:
        """As far as the value says it."""
        if self._dedup is None or self._by_header:
            return None
        return self._dedup.key_reader()(build(self._type, drawn), None)

    def _headers(self) -> Headers:
        if self._dedup is None or not isinstance(self._dedup.key, HeaderKey):
            return ()
        first, *others = self._dedup.key.names
        return ((first, f"{self._seed}-{self._number:07d}".encode()), *((name, b"chaos") for name in others))

    def _pool_key(self) -> bytes:
        plain = f"key-{self._rng.randrange(POOL):02d}".encode()
        if self._source.key.type is bytes:
            return plain
        with suppress(NotMade, TypeError):
            return self._source.key.encode(make(self._source.key.type, self._rng, self._now_ms(), name="key"))
        return plain


def texts(raw: bytes) -> dict[str, str]:
    """The scalars of a JSON value by their path, `customer.id`, as the texts that a key would be made of."""
    scalars: dict[str, str] = {}
    waiting: list[tuple[str, Any]] = []
    with suppress(orjson.JSONDecodeError):
        waiting.append(("", orjson.loads(raw)))
    while waiting:
        path, part = waiting.pop(0)
        if isinstance(part, dict):
            inner = cast("dict[str, Any]", part)
            waiting += [(f"{path}.{name}" if path else name, value) for name, value in inner.items()]
        elif path and isinstance(part, (str, int)) and not isinstance(part, bool):
            scalars[path] = str(part)
    return scalars


def _names(key: str) -> list[str]:
    """The fields that a key is made of. ConfigError for a text that is none."""
    try:
        return [name for _, name, _, _ in Formatter().parse(key) if name is not None]
    except ValueError as wrong:
        raise ConfigError(
            f"--key {key!r} has a brace that is not closed; write fields as {{field}} ({wrong})"
        ) from wrong


def _filled(key: str, fields: Mapping[str, str]) -> bytes:
    """An optional field that is not there leaves its place empty."""
    parts = Formatter().parse(key)
    return "".join(text + ("" if name is None else fields.get(name, "")) for text, name, _, _ in parts).encode()
