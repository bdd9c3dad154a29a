"""Dedup, decided: pure functions of an event, its id's mark and the task's stream time (protocol rules 19-21)."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from semel.state.marks import Mark
from semel.state.positions import StreamTime

IN_A_ROW = 3


class Verdict(Enum):
    """FRESH takes effect. REPLAYED is this very record again, already done. The rest is handled as the rule says."""

    FRESH = "fresh"
    REPLAYED = "replayed"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    MISSING = "missing"
    LATE = "late"
    CLOCK = "clock"


class Timed(NamedTuple):
    """`filed_at`: the time a mark of this event is filed under; None where `verdict` keeps it from taking effect."""

    stream_time: StreamTime
    verdict: Verdict | None
    filed_at: int


def move_time(stream: StreamTime, event_ms: int, wall_ms: int, window_ms: int) -> Timed:
    """Stream time after an event of `event_ms`, and what that says of the event.

    Stream time is the greatest event time seen, never past `wall_ms`; the first event sets it. An event more than a
    window ahead of the wall clock is CLOCK; one older than stream time less the window is LATE. One that would move
    stream time by more than a window (a quiet night, or one bad clock) takes effect, is filed under its own time, and
    waits. Three in a row agree that it is as late as the smallest of them says: stream time moves there, and on as if
    they had come in order. Events that are always further apart than the window move it two events later.
    """
    if event_ms > wall_ms + window_ms:
        return Timed(stream, Verdict.CLOCK, event_ms)
    now = stream.ms
    reach = min(event_ms, wall_ms)
    if now is None:
        return Timed(StreamTime(reach), None, reach)
    if event_ms < now - window_ms:
        return Timed(StreamTime(now), Verdict.LATE, now)
    if reach > now + window_ms:
        waiting = (*stream.pending, reach)
        if len(waiting) < IN_A_ROW:
            return Timed(StreamTime(now, waiting), None, reach)
        now, *later = sorted(waiting)
        for time in later:
            if time <= now + window_ms:
                now = time
        return Timed(StreamTime(now, tuple(t for t in waiting if t > now)), None, max(now, reach))
    return Timed(StreamTime(max(now, reach)), None, max(now, reach))


def judge(
    mark: Mark | None, offset: int, payload: int, stream_ms: int, window_ms: int, hashed_from: int = 0
) -> Verdict:
    """What an event is to the mark of its id. A mark whose window is over protects no more.

    `hashed_from`: marks of records before it have hashes that say nothing of today's payload.
    """
    if mark is None:
        return Verdict.FRESH
    if mark.offset == offset:
        return Verdict.REPLAYED
    if stream_ms > mark.filed_at + window_ms:
        return Verdict.FRESH
    return Verdict.DUPLICATE if mark.payload == payload or mark.offset < hashed_from else Verdict.CONFLICT
