"""Replay: the headers with which an event comes back from the dead letters, and what they say to a worker.

`semel.replay`: the revision, 1 for the first time, one more each time that it failed again. `semel.letter`: where its letter
stands, `payments.dlq[3]@17`. `semel.edited`: a hash of the value that it had, where it has another one now. `semel.hold`: which
held key it is for, where its letter holds one. None of them is handed on to results: they are of the event that failed, and not
of what it leads to.

`semel.skip`: no event at all, but what lets a held key go on without the event that holds it; no handler gets it, whoever wrote
it. Both headers have the place of the event that holds the key, and say nothing where that key is not held by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from semel.port import TP, Record

REVISION, LETTER, EDITED = "semel.replay", "semel.letter", "semel.edited"
HOLD, SKIP = "semel.hold", "semel.skip"
HEADERS = frozenset((REVISION, LETTER, EDITED, HOLD, SKIP))
# A mark has room for so many.
MOST_REVISIONS = 63

Headers = Sequence[tuple[str, bytes | None]]


class Replay(NamedTuple):
    revision: int
    edited: bool = False


def of(headers: Headers) -> Replay | None:
    """None where a record is no replay. What is no number that a mark has room for was put there by somebody else, and says
    nothing: the record is one like any other."""
    revision, edited = 0, False
    for name, value in headers:
        if name == REVISION:
            revision = _number(value or b"")
        elif name == EDITED:
            edited = True
    return Replay(revision, edited) if revision else None


def revision_of(headers: Headers) -> int:
    """0 where a record is no replay."""
    replay = of(headers)
    return 0 if replay is None else replay.revision


def without(headers: Headers) -> list[tuple[str, bytes | None]]:
    return [header for header in headers if header[0] not in HEADERS]


def place_of(app: str, agent: str, source: TP, record: Record) -> bytes:
    """The event that holds a key, as headers name it. The time tells it from one of a topic that was there before."""
    return f"{app}/{agent}/{source.topic}[{source.partition}]@{record.offset}/{record.timestamp}".encode()


def releases(headers: Headers) -> list[bytes]:
    """The places of events whose hold a record may end."""
    return [value for name, value in headers if name in (HOLD, SKIP) and value]


def is_skip(headers: Headers) -> bool:
    return any(name == SKIP for name, _ in headers)


def _number(raw: bytes) -> int:
    if not raw.isdigit() or len(raw) > 2 or raw.startswith(b"0") or int(raw) > MOST_REVISIONS:
        return 0
    return int(raw)
