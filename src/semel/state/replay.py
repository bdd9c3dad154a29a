"""Replay: the headers with which an event comes back from the dead letters, and what they say to a worker.

`semel.replay`: the revision, 1 for the first time, one more each time that it failed again. `semel.letter`: where its letter
stands, `payments.dlq[3]@17`. `semel.edited`: a hash of the value that it had, where it has another one now. None of them is
handed on to results: they are of the event that failed, and not of what it leads to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

REVISION, LETTER, EDITED = "semel.replay", "semel.letter", "semel.edited"
HEADERS = frozenset((REVISION, LETTER, EDITED))
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


def _number(raw: bytes) -> int:
    if not raw.isdigit() or len(raw) > 2 or raw.startswith(b"0") or int(raw) > MOST_REVISIONS:
        return 0
    return int(raw)
