"""Agent: events go in, write sets come out (protocol rules 1, 3 and 5).

A `Lane` runs one agent of this worker: one body at a time over slices of all its partitions, an event at a time within a
partition. Everything between receiving an event and asking for the next belongs to that event. An event that fails is
undone, tried again in place after a while (its partition waits, the epoch and the other partitions do not), then
dead-lettered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

from semel.errors import HandlingError, OutputRefused, OutsideEvent, Reject, StaleIncarnation
from semel.event import Event
from semel.hand import Hand, in_hand
from semel.output import Output
from semel.plan import AgentKind, AgentPlan
from semel.port import TP, Clock, Randomness, Record
from semel.runtime.task import Cursor, Slice, Task, TaskState
from semel.stages.dedup import Verdict, judge, move_time
from semel.stages.sink import DeadLetters, Destination, Out, dead_letter
from semel.stages.source import Undecodable, decoder
from semel.stages.throttle import Throttle
from semel.state.marks import DEAD, DONE, pack, unpack
from semel.state.overlay import MISSING
from semel.state.positions import StreamTime
from semel.state.store import StoreError
from semel.topic import Topic

log = logging.getLogger("semel.agent")

SLICE_RECORDS = 256
# A body that never lets go of the event loop keeps heartbeats and commits waiting; lanes let go this often.
TURN_S = 0.004
# Event times beyond this fit no mark (64 bits, with room for a window).
_FAR_MS = 2**62


class Host(Protocol):
    """What a lane needs of the engine that runs it."""

    app: str
    clock: Clock
    randomness: Randomness
    gate_closed: bool
    landings: int
    epoch_outputs: list[Out]
    dead_letters: DeadLetters

    def gate(self) -> Awaitable[Any]: ...
    def cautious(self) -> bool: ...
    def may_take(self) -> bool: ...
    def finished(self) -> None: ...
    def store_failed(self, exc: StoreError) -> None: ...
    def released(self, cursor: Cursor, lane: Lane) -> None: ...
    def destination(self, topic: Topic) -> Destination | None: ...
    async def open_destination(self, topic: Topic) -> Destination: ...


class Batch(Sequence[Any]):
    """Fresh events of one partition, handled as one: its write set is one, and a failure undoes all of it.

    Iterating moves the event in hand along, so that a result yielded inside the loop keeps its own event's key.
    """

    __slots__ = ("_event", "_hand", "_records", "_values")

    def __init__(self, hand: Hand, values: list[Any], records: list[Record]) -> None:
        self._hand = hand
        self._event = hand.event
        self._values = values
        self._records = records

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]

    def __iter__(self) -> Iterator[Any]:
        hand, event = self._hand, self._event
        for value, record in zip(self._values, self._records, strict=True):
            # A batch that was kept may be looked at again when another one is in hand.
            if hand.event == event:
                hand.record = record
            yield value

    @property
    def records(self) -> list[Record]:
        return self._records


class LaneStream:
    """The stream a plain semel agent receives."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._lane.values()

    def events(self) -> AsyncIterator[Event]:
        """The same events with key, headers, timestamp and position."""
        return self._lane.events()

    def batches(self) -> AsyncIterator[Batch]:
        """The events as `Batch`es, each a unit of work."""
        return self._lane.batches()


class Lane:
    """One agent of this worker."""

    def __init__(self, host: Host, plan: AgentPlan) -> None:
        self.host = host
        self.plan = plan
        self.hand = Hand()
        self.slice: Slice | None = None
        self.index = 0
        self.wall_ms = 0
        self.ready: deque[Cursor] = deque()
        self.wake = asyncio.Event()
        self.closed = False
        self._throttle = Throttle(log, "records went to the dead letters")
        self.waiting = False
        # The record of the last slice that held only one: in cautious epochs, the one to blame (protocol rule 2).
        self.alone: tuple[TP, int] | None = None
        self.sink: Destination | None = None
        self.make_stream: Callable[[], Any] = lambda: LaneStream(self)
        self.on_result: Callable[[Any], Awaitable[None] | None] | None = None
        self._batching = False
        self._batch_events = 0
        self._aside_counts: dict[str, int] = {}
        self._saved_stream: StreamTime | None = None
        # Stream time after the event in hand: it moves when the event is done, not before, and in the same epoch.
        self._moved: tuple[int, tuple[int, ...]] | None = None
        self._child: asyncio.Task[None] | None = None
        self._restart = asyncio.Event()
        self._decoders = {t.name: decoder(t.value) for t in plan.sources}
        dedup = plan.dedup
        if dedup is not None:
            self._id_of = dedup.key_reader()
            self._time_of = dedup.time_reader()
            self._payload_of = dedup.payload_reader()

    # ------------------------------------------------------------------ taking

    def offer(self, cursor: Cursor) -> None:
        """There are records at this cursor."""
        if not cursor.queued:
            cursor.queued = True
            self.ready.append(cursor)
        self.wake.set()

    def _take(self) -> tuple[Slice | None, float | None]:
        """A slice that may run now; else how long until one may."""
        now = self.host.clock.monotonic()
        soonest: float | None = None
        if not self.host.may_take():
            return None, 0.005
        for _ in range(len(self.ready)):
            cursor = self.ready.popleft()
            task = cursor.task
            if task.state is not TaskState.RUNNING or not cursor.queue:
                cursor.queued = False
                continue
            self.ready.append(cursor)
            if cursor.due > now:
                soonest = cursor.due - now if soonest is None else min(soonest, cursor.due - now)
                continue
            if task.holder is not None:
                continue
            chunk = cursor.queue[0]
            limit = SLICE_RECORDS
            if self.host.cautious() or (chunk.records and cursor.position <= cursor.isolate_until):
                limit = 1
            task.holder = self
            return Slice(cursor, chunk, chunk.start, min(chunk.start + limit, len(chunk.records))), None
        return None, soonest

    async def next_slice(self, hand: Hand) -> Slice:
        """The next slice for the run that `hand` belongs to. StaleIncarnation where that run is over."""
        self._leave(hand)
        while True:
            if self.hand is not hand:
                raise StaleIncarnation("this stream belongs to a run that is over")
            if self.host.gate_closed:
                await self.host.gate()
                continue
            taken, soonest = self._take()
            if taken is not None:
                self._hold(taken)
                return taken
            self.wake.clear()
            self.waiting = True
            self.host.finished()
            try:
                async with asyncio.timeout(soonest):
                    await self.wake.wait()
            except TimeoutError:
                pass
            finally:
                self.waiting = False

    def _leave(self, hand: Hand) -> None:
        """A body that began to iterate anew is done with the event it still had in hand."""
        if self.hand is hand and self.slice is not None:
            if hand.holding:
                self.complete(hand)
            self.release()

    def complete(self, hand: Hand) -> None:
        """Whatever is in hand is done: an event, or a batch."""
        if self._batching:
            self._finish_batch(hand, self._batch_events)
        else:
            self.finish(hand)

    def _hold(self, taken: Slice) -> None:
        self.slice = taken
        self.index = taken.start
        self.wall_ms = int(self.host.clock.time() * 1000)
        task = taken.cursor.task
        self.hand.task = task
        self.hand.tables = task.tables
        self.alone = None
        if taken.end - taken.start == 1:
            self.alone = (taken.cursor.tp, taken.chunk.records[taken.start].offset)
        if task.dedup is None and self.plan.dedup is not None:
            task.dedup = self.plan.dedup

    def settle(self) -> None:
        """Bring the cursor's position up to what is done; called before a seal and when the slice is given back."""
        s = self.slice
        if s is not None:
            at = s.start if self._batching and self.hand.holding else self.index
            records = s.chunk.records
            position = records[at].offset if at < len(records) else s.chunk.next_offset
            # A cursor that is ahead of its task's others meets records that it has done.
            s.cursor.position = max(s.cursor.position, position)

    def release(self) -> None:
        """Give the slice back; what was not done of it stays first in its queue."""
        s = self.slice
        if s is None:
            return
        cursor, chunk = s.cursor, s.chunk
        before = cursor.position
        self.settle()
        self.slice = None
        cursor.buffered -= self.index - chunk.start
        chunk.start = self.index
        if chunk.start >= len(chunk.records) and cursor.queue and cursor.queue[0] is chunk:
            cursor.queue.popleft()
        if cursor.position != before:
            # Also where nothing but control records, or records of aborted transactions, were behind the last event.
            cursor.task.touched = True
            self.host.finished()
        cursor.task.holder = None
        self.host.released(cursor, self)

    # ------------------------------------------------------------------ admitting

    def admit(self, s: Slice) -> Iterator[Any]:
        """The values of a slice that are to take effect, one by one; the rest is dealt with on the way.

        The consumer calls `finish` for each before it asks for the next. This loop is the hot path.
        """
        host, hand, cursor = self.host, self.hand, s.cursor
        task = cursor.task
        records = s.chunk.records
        if s.end - s.start != len(records):
            records = records[s.start : s.end]
        values = self._decoders[cursor.tp.topic](records)
        index = s.start - 1
        condemned = cursor.condemned
        dedup, marks = self.plan.dedup, task.marks
        if dedup is None or marks is None:
            for value, record in zip(values, records, strict=True):
                index += 1
                self.index = index
                hand.record = record
                if type(value) is Undecodable:
                    self._quarantine(record, "undecodable", str(value.error))
                elif condemned and record.offset in condemned:
                    self._quarantine(record, "refused", condemned[record.offset])
                else:
                    yield value
            self.index = s.end
            return
        ids = self._ids(values, records)
        known: dict[bytes, bytes] = marks.stored([i for i in ids if type(i) is bytes]) if marks.buckets else {}
        seen = host.landings
        time_of, payload_of = self._time_of, self._payload_of
        window, wall = dedup.window_ms, self.wall_ms
        undo = hand.undo
        for value, record, key in zip(values, records, ids, strict=True):
            index += 1
            self.index = index
            hand.record = record
            if type(value) is Undecodable:
                self._quarantine(record, "undecodable", str(value.error))
                continue
            if condemned and record.offset in condemned:
                self._quarantine(record, "refused", condemned[record.offset])
                continue
            if type(key) is not bytes:
                why = key if type(key) is str else "the event has no dedup key"
                if not self._handled(dedup.missing, "missing", record, why):
                    yield value
                continue
            if time_of is None:
                at = record.timestamp
            else:
                try:
                    at = time_of(value, record)
                    if not -_FAR_MS < at < _FAR_MS:
                        raise ValueError(f"{at} ms is no time")
                except Exception as exc:
                    self._quarantine(record, "missing", f"the event time cannot be read: {type(exc).__name__}: {exc}")
                    continue
            now = task.stream_ms
            if now is not None and now - window <= at <= wall and at <= now + window and not task.pending:
                filed = stream = at if at > now else now
                pending: tuple[int, ...] = ()
            else:
                timed = move_time(task.stream, at, wall, window)
                if timed.verdict is not None:
                    task.stream = timed.stream_time
                    if timed.verdict is Verdict.LATE and (raw := marks.find(key)) is not None:
                        # A late event is protected for a whole window, in which its redelivery is later still.
                        verdict = judge(unpack(raw), record.offset, payload_of(value, record), now or 0, window)
                        if verdict is not Verdict.FRESH:
                            if not self._known(verdict, record, raw):
                                yield value
                            continue
                    if not self._untimely(timed.verdict, record, at):
                        yield value
                    continue
                filed, pending = timed.filed_at, timed.stream_time.pending
                stream = timed.stream_time.ms or 0
            if host.landings != seen:
                # A commit landed since the lookup: a mark it knew nothing of may have moved into the store.
                known = marks.stored([i for i in ids[index - s.start :] if type(i) is bytes])
                seen = host.landings
            payload = payload_of(value, record)
            raw = marks.open.get(key) or marks.sealed.get(key) or known.get(key)
            if raw is not None:
                verdict = judge(unpack(raw), record.offset, payload, stream, window)
                if verdict is not Verdict.FRESH:
                    if self._known(verdict, record, raw):
                        if now is None or min(at, wall) <= now + window:
                            # One event again is no second witness of a jump in time.
                            task.stream_ms, task.pending = stream, pending
                        continue
                    if self._batching:
                        task.stream_ms, task.pending = stream, pending
                    else:
                        self._moved = stream, pending
                    yield value
                    continue
            undo.append((marks, key, key, marks.open.get(key, MISSING)))
            marks.open[key] = pack(record.offset, at, filed, payload, DONE)
            if self._batching:
                task.stream_ms, task.pending = stream, pending
            else:
                self._moved = stream, pending
            yield value
        self.index = s.end

    def _ids(self, values: list[Any], records: Sequence[Record]) -> list[bytes | str | None]:
        read = self._id_of
        try:
            return [None if type(v) is Undecodable else read(v, r) for v, r in zip(values, records, strict=True)]
        except Exception:
            return [self._id(v, r) for v, r in zip(values, records, strict=True)]

    def _id(self, value: Any, record: Record) -> bytes | str | None:
        """The key, None where there is none, or what went wrong reading it."""
        if type(value) is Undecodable:
            return None
        try:
            return self._id_of(value, record)
        except Exception as exc:
            return f"the dedup key cannot be read: {type(exc).__name__}: {exc}"

    def _handled(self, handling: str, reason: str, record: Record, error: str) -> bool:
        if handling == "pass":
            return False
        if handling == "drop":
            self._aside("dropped")
        else:
            self._quarantine(record, reason, error)
        return True

    def _untimely(self, verdict: Verdict, record: Record, at: int) -> bool:
        dedup = self.plan.dedup
        assert dedup is not None
        if verdict is Verdict.CLOCK:
            self._quarantine(
                record, "clock", f"event time {at} is more than the dedup window ahead of this worker's clock"
            )
            return True
        return self._handled(
            dedup.late, "late", record, f"event time {at} is older than stream time less the dedup window"
        )

    def _known(self, verdict: Verdict, record: Record, raw: bytes) -> bool:
        """Deal with an event whose id is known; False where it takes effect all the same."""
        dedup, mark = self.plan.dedup, unpack(raw)
        assert dedup is not None
        if verdict is Verdict.REPLAYED:
            self._aside("replayed")
        elif verdict is Verdict.CONFLICT:
            if dedup.conflict == "pass":
                return False
            self._count("conflicts")
            self._handled(
                dedup.conflict,
                "conflict",
                record,
                f"the same id with another payload was first seen at offset {mark.offset} of this partition",
            )
        elif mark.outcome == DEAD:
            self._quarantine(record, "duplicate", f"its first occurrence, offset {mark.offset}, is in the dead letters")
        else:
            self._aside("duplicates")
        return True

    # ------------------------------------------------------------------ finishing

    def _count(self, name: str) -> None:
        if self._batching:
            self._aside_counts[name] = self._aside_counts.get(name, 0) + 1
        else:
            assert self.slice is not None
            self.slice.cursor.task.counts[name] += 1

    def _aside(self, count: str, out: Out | None = None) -> None:
        """A record is done without the agent: part of the batch in hand, or of the epoch at once."""
        self._count("in")
        self._count(count)
        if self._batching:
            if out is not None:
                self.hand.outputs.append(out)
            return
        assert self.slice is not None
        if out is not None:
            self.host.epoch_outputs.append(out)
        self.slice.cursor.task.touched = True
        self.host.finished()

    def _quarantine(self, record: Record, reason: str, error: str, attempts: int = 0) -> None:
        assert self.slice is not None
        tp = self.slice.cursor.tp
        if self._throttle.may_say(reason, self.host.clock.monotonic()):
            log.warning(
                "%s[%d]@%d goes to the dead letters (%s): %s", tp.topic, tp.partition, record.offset, reason, error
            )
        self._aside("dead", dead_letter(
            self.host.dead_letters, tp, record, pipeline=self.host.app, reason=reason, error=error,
            attempts=attempts, now_ms=int(self.host.clock.time() * 1000),
        ))  # fmt: skip

    def finish(self, hand: Hand) -> None:
        """The event in hand is done: its write set joins the epoch."""
        if not hand.alive:
            raise StaleIncarnation("the event's epoch is over")
        if hand.live:
            hand.write_back()
        task: Task = hand.task
        counts = task.counts
        outputs = hand.outputs
        if outputs:
            self.host.epoch_outputs.extend(outputs)
            counts["out"] += len(outputs)
            outputs.clear()
        else:
            counts["filtered"] += 1
        counts["in"] += 1
        if self._moved is not None:
            task.stream_ms, task.pending = self._moved
            self._moved = None
        hand.undo.clear()
        hand.holding = False
        self.index += 1
        if not task.touched:
            # The next event may take its time; this one is not to wait for it.
            task.touched = True
            self.host.finished()

    def _finish_batch(self, hand: Hand, events: int) -> None:
        if not hand.alive:
            raise StaleIncarnation("the batch's epoch is over")
        hand.write_back()
        s = self.slice
        assert s is not None
        task = s.cursor.task
        dead = self._aside_counts.get("dead", 0)
        results = len(hand.outputs) - dead
        self.host.epoch_outputs.extend(hand.outputs)
        hand.outputs.clear()
        hand.undo.clear()
        hand.holding = False
        self._batching = False
        self.index = s.end
        counts = task.counts
        for name, count in self._aside_counts.items():
            counts[name] += count
        self._aside_counts.clear()
        counts["in"] += events
        counts["out"] += results
        counts["filtered"] += max(0, events - results)
        task.touched = True
        self.host.finished()

    def emit(self, hand: Hand, result: Any) -> None:
        """A result of the event in hand. OutputRefused where its topic would not take it."""
        if not hand.alive:
            raise StaleIncarnation("the event's epoch is over")
        if not hand.holding:
            raise OutsideEvent("a result was yielded where no event is in hand; yield inside the loop over the stream")
        destination = self.sink
        if type(result) is Output and result.topic is not None:
            destination = self.host.destination(result.topic)
        if destination is None:
            raise OutputRefused(
                f"agent {self.plan.name!r} returned a result, and {self.host.app!r} has no sink; give the pipeline a "
                "sink=Topic(...), or the result a topic: Output(value, topic=...)"
            )
        hand.outputs.append(destination.record(result, hand.record, hand.task.partition, self.wall_ms))

    # ------------------------------------------------------------------ the three ways of iterating

    def _begin(self, hand: Hand) -> None:
        if self.hand is not hand:
            raise StaleIncarnation("this stream belongs to a run that is over")
        hand.begin()

    async def values(self) -> AsyncIterator[Any]:
        hand, host = self.hand, self.host
        monotonic = host.clock.monotonic
        while True:
            s = await self.next_slice(hand)
            turn_ends = monotonic() + TURN_S
            for value in self.admit(s):
                self._begin(hand)
                yield value
                self.finish(hand)
                if monotonic() > turn_ends:
                    host.finished()
                    await asyncio.sleep(0)
                    turn_ends = monotonic() + TURN_S
                if host.gate_closed:
                    await host.gate()
            self._end_of_slice(hand)
            await asyncio.sleep(0)

    def _end_of_slice(self, hand: Hand) -> None:
        if self.hand is not hand:
            raise StaleIncarnation("this stream belongs to a run that is over")
        self.release()
        self.host.finished()

    async def events(self) -> AsyncIterator[Event]:
        async for value in self.values():
            assert self.slice is not None
            tp = self.slice.cursor.tp
            yield Event(value, self.hand.record, tp.topic, tp.partition)

    async def batches(self) -> AsyncIterator[Batch]:
        hand, host = self.hand, self.host
        while True:
            s = await self.next_slice(hand)
            task = s.cursor.task
            self._saved_stream = task.stream
            self._batching = True
            values: list[Any] = []
            records: list[Record] = []
            for value in self.admit(s):
                values.append(value)
                records.append(hand.record)
            self.index = s.start
            self._batch_events = len(values)
            self._begin(hand)
            if values:
                hand.record = records[0]
                yield Batch(hand, values, records)
            self._finish_batch(hand, len(values))
            self._end_of_slice(hand)
            if host.gate_closed:
                await host.gate()
            await asyncio.sleep(0)

    def event_in_hand(self) -> Event | None:
        s = self.slice
        if s is None or not self.hand.holding:
            return None
        record = self.hand.record
        value = self._decoders[s.cursor.tp.topic]([record])[0]
        return Event(value, record, s.cursor.tp.topic, s.cursor.tp.partition)

    # ------------------------------------------------------------------ running the body

    async def run(self) -> None:
        """Run the agent until closed; restart its body after a failure, and when its incarnation is over."""
        idle_failures = 0
        try:
            while not self.closed:
                self._restart.clear()
                hand = self.hand
                child = self._child = asyncio.create_task(self._one_run(hand), name=f"agent {self.plan.name}")
                restart = asyncio.create_task(self._restart.wait())
                await asyncio.wait({child, restart}, return_when=asyncio.FIRST_COMPLETED)
                if not child.done():
                    child.cancel()
                    await asyncio.wait({child}, timeout=0.2)
                restart.cancel()
                if self.hand is not hand or not child.done():
                    continue
                error = None if child.cancelled() else child.exception()
                if isinstance(error, StaleIncarnation):
                    continue
                if error is not None and not isinstance(error, Exception):
                    raise error
                if self.slice is not None and error is not None:
                    idle_failures = 0
                    self.failed(error, hand)
                    continue
                if hand.holding:
                    # It returned with an event in hand: that event is done.
                    try:
                        self.complete(hand)
                        self.release()
                    except Exception as exc:
                        self.failed(exc, hand)
                    continue
                if self.closed:
                    return
                self.release()
                idle_failures += 1
                pause = min(0.1 * 2**idle_failures, 10.0)
                log.error("agent %s ended without an event in hand; it starts again in %.1f s", self.plan.name, pause,
                          exc_info=error)  # fmt: skip
                await self.host.clock.sleep(pause)
        finally:
            if self._child is not None and not self._child.done():
                self._child.cancel()
                await asyncio.wait({self._child}, timeout=0.5)

    async def _one_run(self, hand: Hand) -> None:
        in_hand.set(hand)
        if self.plan.kind is AgentKind.STREAM:
            await self._run_stream(hand)
        else:
            await self._run_function(hand)

    async def _run_stream(self, hand: Hand) -> None:
        result = self.plan.run(self.make_stream())
        if not hasattr(result, "__anext__"):
            await result
            return
        step = result.__anext__
        throw = getattr(result, "athrow", None)
        try:
            while True:
                found = await step()
                while True:
                    try:
                        await self._result(hand, found)
                        break
                    except HandlingError as exc:
                        if throw is None:
                            raise
                        found = await throw(exc)
        except StopAsyncIteration:
            return
        finally:
            close = getattr(result, "aclose", None)
            if close is not None:
                await close()

    async def _result(self, hand: Hand, result: Any) -> None:
        if self.on_result is not None:
            waiting = self.on_result(result)
            if waiting is not None:
                await waiting
        elif result is not None:
            if type(result) is Output and result.topic is not None and self.host.destination(result.topic) is None:
                await self.host.open_destination(result.topic)
            self.emit(hand, result)

    async def _run_function(self, hand: Hand) -> None:
        host, run = self.host, self.plan.run
        awaits = self.plan.kind is AgentKind.COROUTINE
        monotonic = host.clock.monotonic
        while True:
            s = await self.next_slice(hand)
            turn_ends = monotonic() + TURN_S
            for value in self.admit(s):
                self._begin(hand)
                try:
                    result = run(value)
                    if awaits:
                        result = await result
                    if result is not None:
                        await self._result(hand, result)
                    self.finish(hand)
                except Exception as exc:
                    self.failed(exc, hand)
                    break
                if monotonic() > turn_ends:
                    host.finished()
                    await asyncio.sleep(0)
                    turn_ends = monotonic() + TURN_S
                if host.gate_closed:
                    await host.gate()
            else:
                self._end_of_slice(hand)
            await asyncio.sleep(0)

    def failed(self, exc: BaseException, hand: Hand) -> None:
        """The event in hand failed: undo it, then decide whether it is tried again."""
        s = self.slice
        if s is None or not hand.alive:
            return
        if isinstance(exc, StoreError):
            # Not the event's fault: it is handled again when the store can be read.
            self.host.store_failed(exc)
            return
        cursor = s.cursor
        marked = any(owner is cursor.task.marks for owner, *_ in hand.undo)
        hand.undo_all()
        hand.holding = False
        self._moved = None
        if self._batching:
            self._batching = False
            self._aside_counts.clear()
            if self._saved_stream is not None:
                cursor.task.stream = self._saved_stream
            self.index = s.start
            if s.end - s.start > 1:
                # One of them did it: go through them one by one.
                cursor.isolate_until = s.chunk.records[s.end - 1].offset
                log.info(
                    "a batch of %d at %s failed (%s); its events go on one by one", s.end - s.start, cursor.tp, exc
                )
                self.release()
                return
        record = s.chunk.records[self.index]
        if cursor.failed_at != record.offset:
            cursor.failed_at, cursor.attempts = record.offset, 0
        cursor.attempts += 1
        delay = self.plan.retry.delay_s(exc, cursor.attempts, self.host.randomness.random())
        if delay is not None:
            self.alone = None
            cursor.due = self.host.clock.monotonic() + delay
            log.warning(
                "%s[%d]@%d failed (attempt %d of %d), again in %.2f s: %s: %s", cursor.tp.topic, cursor.tp.partition,
                record.offset, cursor.attempts, self.plan.retry.attempts, delay, type(exc).__name__, exc,
                exc_info=exc if cursor.attempts == 1 else None,
            )  # fmt: skip
        else:
            reason = "rejected" if isinstance(exc, Reject) else "failed"
            if marked:
                self._mark_dead(record, cursor.task)
            self._quarantine(record, reason, f"{type(exc).__name__}: {exc}", cursor.attempts)
            self.index += 1
        self.release()

    def _mark_dead(self, record: Record, task: Task) -> None:
        """Remember the id of an event that is dead-lettered: its duplicates follow it there."""
        dedup, marks = self.plan.dedup, task.marks
        assert self.slice is not None
        if dedup is None or marks is None:
            return
        value = self._decoders[self.slice.cursor.tp.topic]([record])[0]
        key = self._id(value, record)
        if not isinstance(key, bytes):
            return
        at = record.timestamp if self._time_of is None else self._time_of(value, record)
        timed = move_time(task.stream, at, self.wall_ms, dedup.window_ms)
        if timed.verdict is None:
            task.stream = timed.stream_time
            marks.open[key] = pack(record.offset, at, timed.filed_at, self._payload_of(value, record), DEAD)

    # ------------------------------------------------------------------ epochs

    def detach(self) -> Callable[[], None]:
        """Leave the event in hand out of the epoch about to be sealed; the returned call puts it into the next."""
        hand = self.hand
        taken = hand.detach()
        task: Task = hand.task
        stream = task.stream
        if self._batching and self._saved_stream is not None:
            task.stream = self._saved_stream

        def attach() -> None:
            hand.attach(taken)
            if self._batching:
                task.stream = stream

        return attach

    def abandon(self) -> None:
        """The incarnation is over: whatever is in hand is void, and so is the body that holds it."""
        self.hand.alive = False
        self.hand.undo.clear()
        self.hand = Hand()
        self.slice = None
        self.alone = None
        self._moved = None
        self._batching = False
        self._aside_counts.clear()
        for cursor in self.ready:
            cursor.queued = False
        self.ready.clear()
        self._restart.set()

    async def close(self) -> None:
        self.closed = True
        self._restart.set()
