"""Output: a result that is to go somewhere else than where results go by default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from semel.topic import Topic


class Headers(dict[str, bytes | None]):
    """A record's headers by name: of several with one name the last, as Kafka's own clients say.

    `pairs`: all of them as they came; `all(name)`: every value of a name. As `Output(headers=…)` it hands on `pairs`.
    """

    __slots__ = ("pairs",)

    def __init__(self, pairs: Sequence[tuple[str, bytes | None]]) -> None:
        super().__init__(pairs)
        self.pairs = tuple(pairs)

    def all(self, name: str) -> list[bytes | None]:
        return [value for n, value in self.pairs if n == name]


class _SourceKey:
    def __repr__(self) -> str:
        return "the source record's key"


class _Cancel:
    def __repr__(self) -> str:
        return "what cancels a timer"


SOURCE_KEY: Final = _SourceKey()
CANCEL: Final = _Cancel()
# A name is a part of a row's key, and stands in a transaction beside it.
NAME_BYTES: Final = 200
_MS: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Output:
    """Yield or return it where the default is not wanted.

    By default an output keeps its source record's key, headers and timestamp, hence its order. `key`: another
    key (encoded by the topic's key type, bytes as they are; None for no key). `headers`: instead of the source's.
    `topic`: instead of the pipeline's sink. `timestamp_ms`: since 1970. `of`: whose result it is, where the agent has a
    batch in hand: a value of the batch, or one of its `events` or `records`. `Output(None)` is a tombstone.

    `at`: it is sent then, once, and not with its event: a `datetime` with a time zone, or a `timedelta` after the timestamp of
    its event's record. The wall clock of the worker says when that is; what is past is sent with the event. Its timestamp is
    that time, unless `timestamp_ms` says otherwise. It commits with the event.

    `name`: of those with an `at` that events of one key give this name, the last is pending and no other: it replaces the one
    before, unless that was sent. `Output.cancel(name)` takes it back. The key is that of the event's record, whatever `key` says.

    TypeError where `topic` is no `Topic`, a name for instance, `at` neither of the two, or `name` no str; ValueError for an `at`
    without a time zone, and for a name that is empty, too long, or without `at`.
    """

    __slots__ = ("at", "headers", "key", "name", "of", "timestamp_ms", "topic", "value")

    def __init__(
        self,
        value: Any,
        *,
        key: Any = SOURCE_KEY,
        headers: Mapping[str, bytes | str | None] | Sequence[tuple[str, bytes | str | None]] | None = None,
        topic: Topic | None = None,
        timestamp_ms: int | None = None,
        of: Any = None,
        at: datetime | timedelta | None = None,
        name: str | None = None,
    ) -> None:
        if topic is not None and not isinstance(topic, Topic):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"Output(topic={topic!r:.80}): give a semel.Topic, declared once beside the pipeline")
        if at is not None:
            _check_time(at)
        if name is not None:
            _check_name(name)
            if at is None and value is not CANCEL:
                raise ValueError(
                    f"Output(name={name!r}) without at=: a name is what a pending output is replaced and cancelled by, and this "
                    "one is sent at once; give at=, or leave name= out"
                )
        self.value = value
        self.key = key
        self.headers = headers
        self.topic = topic
        self.timestamp_ms = timestamp_ms
        self.of = of
        self.at = at
        self.name = name

    @classmethod
    def cancel(cls, name: str, *, of: Any = None) -> Output:
        """The output that the event's key has pending under this name is not to be sent. Where there is none, nothing happens: it
        was sent, or never set. It commits with the event. `of`: as of any output of a batch."""
        return cls(CANCEL, name=name, of=of)

    def due_ms(self, event_ms: int) -> int:
        """When it is to be sent, in ms since 1970. `event_ms`: the timestamp of its event. For one that has `at`."""
        at = self.at
        assert at is not None
        due = event_ms + at // _MS if isinstance(at, timedelta) else (at - _EPOCH) // _MS
        return max(0, due)

    def header_list(self) -> list[tuple[str, bytes | None]] | None:
        """The headers as Kafka has them; None where the source's are kept. TypeError or ValueError for what is no header."""
        if self.headers is None:
            return None
        return [header(name, value) for name, value in pairs_of(self.headers)]


def _check_time(at: Any) -> None:
    if not isinstance(at, (datetime, timedelta)):
        raise TypeError(
            f"Output(at={at!r:.80}): give a datetime with a time zone, as datetime.now(UTC) + timedelta(hours=1), or a timedelta"
        )
    if isinstance(at, datetime) and at.utcoffset() is None:
        raise ValueError(
            f"Output(at={at!r}) has no time zone, so nobody knows when that is: give one, as datetime(..., tzinfo=UTC), or a "
            "timedelta after the event's timestamp"
        )


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a timer is a str, not {name!r:.80}")
    if not 0 < len(name.encode()) <= NAME_BYTES:
        raise ValueError(f"the name of a timer has 1 to {NAME_BYTES} bytes, and {name!r:.80} has {len(name.encode())}")


def pairs_of(headers: Any) -> Iterable[tuple[Any, Any]]:
    """Names and values of headers, also two of one name."""
    if isinstance(headers, Headers):
        return headers.pairs
    return headers.items() if isinstance(headers, Mapping) else headers or ()  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]


def header(name: Any, value: Any) -> tuple[str, bytes | None]:
    """A header as Kafka has it. TypeError for what is no header, UnicodeEncodeError for a text that UTF-8 has not."""
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(name, str) or not (value is None or isinstance(value, bytes)):
        raise TypeError(f"header {name!r}: {value!r:.80}; names are str, values bytes, str or None")
    if not name.isascii():
        name.encode()
    # What is written to Kafka is the text itself, also of a member of a StrEnum.
    return name if type(name) is str else str.__str__(name), value
