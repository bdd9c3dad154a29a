"""Dedup and stream time, decided: pure functions of a batch, the marks of its ids and the rule (protocol rules 19-21)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from semel.dedup import Dedup
from semel.state.dedup_marks import DEAD, DONE, Mark, pack, unpack
from semel.state.positions import StreamTime
from semel.state.replay import Replay

IN_A_ROW = 3
# Without a rule there is no window to say what a jump is: an hour is how far ahead of its own clock a broker takes records.
JUMP_MS = 3_600_000


class Verdict(Enum):
    """FRESH takes effect. REPLAYED is this very record again, already done. UNREADABLE: its time cannot be read. The rest is
    handled as the rule says."""

    FRESH = "fresh"
    REPLAYED = "replayed"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    LATE = "late"
    CLOCK = "clock"


# Tuples, since one is made for almost every event. Stream time, as `StreamTime`: its ms, and what is pending.
Moment = tuple[int | None, tuple[int, ...]]
# None, CLOCK or LATE; the time that a mark of the event is filed under; stream time after it.
Timed = tuple[Verdict | None, int, int | None, tuple[int, ...]]


class Columns(NamedTuple):
    """A batch of records, column by column.

    `ids`: None or why, where there is none. `times`: in ms; None where there is none, why where it cannot be read. `payloads`:
    64-bit hashes.
    """

    offsets: Sequence[int]
    ids: Sequence[bytes | str | None]
    times: Sequence[int | str | None]
    payloads: Sequence[int]


class Classified(NamedTuple):
    """What each record of a batch is, column by column, if every one before it that takes effect succeeds.

    `marks`: what an event that is FRESH is remembered by, else None. `streams`: stream time once the record is done. `known`: by
    index, the mark that the record's id had already.
    """

    verdicts: list[Verdict]
    marks: list[bytes | None]
    streams: list[Moment]
    known: dict[int, bytes]


def move_time(now: int | None, pending: tuple[int, ...], event_ms: int, wall_ms: int, window_ms: int) -> Timed:
    """Stream time (`now`, `pending`) after an event of `event_ms`, and what that says of the event.

    Stream time is the greatest event time seen, never past `wall_ms`; the first event sets it. An event more than a
    window ahead of the wall clock is CLOCK; one older than stream time less the window is LATE. One that would move
    stream time by more than a window (a quiet night, or one bad clock) takes effect, is filed under its own time, and
    waits. Three in a row agree that it is as late as the smallest of them says: stream time moves there, and on as if
    they had come in order. Events that are always further apart than the window move it two events later.
    """
    if event_ms > wall_ms + window_ms:
        return Verdict.CLOCK, event_ms, now, pending
    reach = event_ms if event_ms < wall_ms else wall_ms
    if now is None:
        return None, reach, reach, ()
    if event_ms < now - window_ms:
        return Verdict.LATE, now, now, ()
    if reach > now + window_ms:
        waiting = (*pending, reach)
        if len(waiting) < IN_A_ROW:
            return None, reach, now, waiting
        now, *later = sorted(waiting)
        for time in later:
            if time <= now + window_ms:
                now = time
        return None, max(now, reach), now, tuple(t for t in waiting if t > now)
    now = max(now, reach)
    return None, now, now, ()


def move_times(stream: StreamTime, times: Sequence[int], wall_ms: int) -> StreamTime:
    """Stream time after events that no rule judges, one after the other: `move_time` for each, with `JUMP_MS` for the window.
    None of them is refused for its time; one that is late, or too far ahead, does not move it."""
    if not times:
        return stream
    now, latest = stream.ms, max(times)
    if now is not None and latest <= now + JUMP_MS and latest <= wall_ms + JUMP_MS:
        # Almost always: none of them is a jump.
        return StreamTime(max(now, min(latest, wall_ms)))
    pending = stream.pending
    for at in times:
        _, _, now, pending = move_time(now, pending, at, wall_ms, JUMP_MS)
    return StreamTime(now, pending)


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


def judge_replay(verdict: Verdict, mark: Mark, replay: Replay | None) -> Verdict:
    """What an event is that comes back from the dead letters; `verdict`: what it would be otherwise, other than FRESH.

    An event whose mark is dead gets another chance where its revision is above the mark's; nothing else that a record says of
    itself makes an event act again. Where the event took effect, by an earlier replay or since, a replay of it is a duplicate,
    and no conflict although its value was edited.
    """
    if replay is None or verdict is Verdict.REPLAYED:
        return verdict
    if mark.outcome == DEAD and replay.revision > mark.revision:
        return Verdict.FRESH
    if verdict is Verdict.CONFLICT and (replay.edited or mark.revision):
        return Verdict.DUPLICATE
    return verdict


def _no_replay(nth: int) -> Replay | None:
    return None


def _no_hold(nth: int) -> bool:
    return False


def classify(
    batch: Columns,
    marks: Mapping[bytes, bytes],
    stream: StreamTime,
    rule: Dedup,
    wall_ms: int,
    hashed_from: int = 0,
    replay_of: Callable[[int], Replay | None] = _no_replay,
    releases: Callable[[int], bool] = _no_hold,
) -> Classified:
    """Judge records in their order. `marks`: of those ids in the batch that have one. `replay_of`: what the nth record says of
    itself, asked where it matters. `releases`: whether the nth is the replay of an event that holds its key. Changes
    nothing; `streams` and `marks` of the answer are to be applied as each record is done.
    """
    window = rule.window_ms
    now, pending = stream.ms, stream.pending
    after: Moment = now, pending
    seen = dict(marks)
    passed = Verdict.CONFLICT if rule.conflict == "pass" else None
    fresh = Verdict.FRESH
    verdicts, written, streams, known = list[Verdict](), list[bytes | None](), list[Moment](), dict[int, bytes]()
    for offset, id, at, payload in zip(*batch, strict=True):
        mark = raised = None
        if type(id) is bytes and type(at) is int:
            if now is not None and now - window <= at <= wall_ms and at <= now + window:
                # What `move_time` says of almost every event, without its call: neither late nor a jump, by a clock that
                # is not ahead.
                verdict, untimely, waiting = fresh, None, ()
                filed = ms = at if at > now else now
            else:
                untimely, filed, ms, waiting = move_time(now, pending, at, wall_ms, window)
                verdict = fresh if untimely is None else untimely
            raw = seen.get(id)
            if raw is not None and untimely is not Verdict.CLOCK:
                # A late event is protected for a whole window, in which its redelivery is later still.
                of_known = judge(unpack(raw), offset, payload, ms or 0, window, hashed_from)
                if of_known is not fresh:
                    # A mark ends in a zero byte where its event took effect and never was in the dead letters.
                    if raw[-1] or of_known is Verdict.CONFLICT:
                        before, replay = unpack(raw), replay_of(len(verdicts))
                        of_known = judge_replay(of_known, before, replay)
                        if of_known is fresh and replay is not None:
                            raised = _raised(before, replay, offset, at, filed, payload, hashed_from)
                    # One that waited in the dead letters is late for that reason, and takes effect all the same.
                    verdict = of_known
                    if raised is None:
                        known[len(verdicts)] = raw
            if verdict is Verdict.LATE and releases(len(verdicts)):
                # Its key has waited for it, so that nobody need ask whether it took effect meanwhile.
                verdict = fresh
            if verdict is fresh:
                mark = seen[id] = pack(offset, at, filed, payload, DONE) if raised is None else raised
            elif untimely is None and now is not None and min(at, wall_ms) > now + window and verdict is not passed:
                # One event again is no second witness of a jump in time.
                ms, waiting = now, pending
            if ms != now or waiting is not pending:
                now, pending = after = ms, waiting
        else:
            verdict = Verdict.UNREADABLE if type(id) is bytes and at is not None else Verdict.MISSING
        verdicts.append(verdict)
        written.append(mark)
        streams.append(after)
    return Classified(verdicts, written, streams, known)


def _raised(before: Mark, replay: Replay, offset: int, at: int, filed: int, payload: int, hashed_from: int) -> bytes:
    """The mark of a dead event that is accepted again. A redelivery of its first record has the payload of that one."""
    first = payload if before.offset < hashed_from else before.payload
    return Mark(offset, at, filed, first, DONE, replay.revision).pack()
