"""Parked events of one task: events that failed and are tried again later, and those of the same key behind them (rule 3).

An event that fails is put here, in the epoch in which its position passes it. Its verdict and its dedup mark are what they
were when it came; its write set is dropped. Later events of its key queue behind it, in order, so that the order of a key is
kept while all other keys go on. Whatever is here is in `{app}-parked`, the record as it came, and survives whoever handles it.

With `Retry(then="hold")` an event whose attempts have ended stays the first of its key, as *held*: it is dead, its record stands
in the dead letters, and those behind it wait until its replay, which takes its place, has succeeded, or until it is let go.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

from semel.display.counting import counted
from semel.port import Record
from semel.retry import Retry
from semel.state import replay
from semel.state.parked_event import (
    GROWS_BYTES,
    ParkedEvent,
    ParkedRecord,
    agent_prefix,
    decode,
    read_row,
    row_of,
)
from semel.state.state_log import RowLog
from semel.state.store import Store, row_prefix

log = logging.getLogger("semel.state")

# The reserved name under which the store numbers these rows.
TABLE = "parked"
# An event that was handled so often for nothing, since others changed what it saw, has its task to itself.
CONFLICTS = 3
# Of a partition that stops for a limit while keys are held.
_BEHIND = "; what ends a hold may stand behind this in the source: raise the limit, and restart the workers"


class Queued:
    """An event's place in the queue of its key; what the log holds of it stays there. `due`: in monotonic seconds. `given_up`: it
    goes to the dead letters. `first_dead`: as `ParkedEvent` has it, by now. `successes`: how many events of this worker had
    succeeded when it failed here first; None: it has not. `conflicts`: how often it was handled and another event had changed
    what it saw. `hold`: it is dead and holds its key, under this name; `to_hold`: so it will when it is done. `place`: as
    `ParkedEvent` has it.
    """

    __slots__ = (
        "attempts", "conflicts", "due", "first_dead", "given_up", "gone", "hold", "in_hand", "key", "offset", "place",
        "successes", "to_hold",
    )  # fmt: skip

    def __init__(self, offset: int, key: bytes | None, attempts: int, due: float) -> None:
        self.offset = offset
        self.key = key
        self.attempts = attempts
        self.due = due
        self.in_hand = self.gone = self.given_up = self.first_dead = False
        self.successes: int | None = None
        self.conflicts = 0
        self.hold = self.to_hold = b""
        self.place = -1


class ParkedQueue:
    """The parked events of one agent in one source partition, a queue a key. Only the first of a key may be tried.

    `keys`: the keys that are parked. An event without a key waits for nobody, and nobody for it. `used_up`: the offsets of those
    that have failed as often as they may and are tried on, which are none where these go to the dead letters. `failing`: of
    those that have failed. `heads`: how many are the first of their key, or have none.
    `ahead`: how many wait for no event that has failed: they are in hand, or their turn comes when others are done.
    `crowded_out`: those that are to be handled one by one while no other of their task is in hand, in their turn.
    `held`: each event that is dead and holds its key, by its name; `count` and `heads` are without these.
    """

    def __init__(self, log: ParkedLog, prefix: bytes, retry: Retry) -> None:
        self._log = log
        self._prefix = prefix
        self._retry = retry
        self.used_up: set[int] = set()
        self.failing: set[int] = set()
        self.crowded_out: deque[Queued] = deque()
        # Lists, though they are used up from the front: most keys have one event, for which a deque is 600 bytes.
        self.keys: dict[bytes, list[Queued]] = {}
        self.held: dict[bytes, Queued] = {}
        # The offsets of those without a key.
        self._unkeyed: set[int] = set()
        # Duplicates that wait, by the offset of the event that they are duplicates of.
        self._followers: dict[int, list[Queued]] = {}
        self._heap: list[tuple[float, int, Queued]] = []
        self.count = self.heads = self.ahead = 0

    def no_room_for(self, event: ParkedEvent) -> str:
        """Why it cannot be parked; empty where it can."""
        return self.full_for(event.record.key) or self.too_large(event)

    def too_large(self, event: ParkedEvent) -> str:
        """Why its log would not take it; empty where it would."""
        log, most_bytes = self._log, self._log.most_bytes - GROWS_BYTES
        if event.size <= most_bytes or (size := len(event.row(most_bytes))) <= most_bytes:
            return ""
        return (
            f"the event of offset {event.record.offset} cannot be parked: it takes {size} bytes there, compressed, and "
            f"{log.topic!r} takes {most_bytes} (raise its max.message.bytes, and restart)"
        )

    def full_for(self, key: bytes | None) -> str:
        """Why no more events of this key can be parked, however small; empty where they can."""
        log = self._log
        if log.count + log.held >= log.limit:
            held = f" and {counted(log.held, 'key is', 'keys are')} held" if log.held else ""
            why = f"{log.count} events of this partition are parked{held}, and {log.limit} is the limit (parked_limit)"
            return why + (_BEHIND if log.held else "")
        behind = self.keys.get(key) if key is not None else None
        if behind is not None and len(behind) >= log.key_limit:
            why = f"{len(behind)} events of the key {key!r:.80} are parked, and {log.key_limit} is the limit (parked_key_limit)"
            return why + (_BEHIND if behind[0].hold else "")
        return ""

    def add(self, event: ParkedEvent, due: float) -> Queued:
        """`due`: in monotonic seconds; what waits for its key is due at once when its turn comes. The replay of an event that
        holds its key takes its place."""
        held = self.held_by(event.record)
        if held is not None:
            event = replace(event, place=held.offset if held.place < 0 else held.place)
            self._note(event)
            return self._in_place_of(held, event, due)
        self._note(event)
        return self.recall(event, due)

    def _note(self, event: ParkedEvent) -> None:
        row = self._row(event.record.offset)
        self._log.open[row] = event.row(self._log.most_bytes)
        self._log.unsealed.add(row)

    def _queued(self, event: ParkedEvent, due: float) -> Queued:
        queued = Queued(event.record.offset, event.record.key, event.attempts, due)
        queued.first_dead, queued.hold, queued.place = event.first_dead, event.hold, event.place
        if event.first >= 0:
            self._followers.setdefault(event.first, []).append(queued)
        self._look_at_attempts(queued)
        return queued

    def recall(self, event: ParkedEvent, due: float) -> Queued:
        """One that the log holds; in the order of their offsets."""
        queued = self._queued(event, due)
        if queued.hold or queued.place >= 0:
            self._first_of_its_key(queued)
            return queued
        self.count += 1
        self._log.count += 1
        if queued.key is not None:
            queue = self.keys.get(queued.key)
            if queue is not None:
                queue.append(queued)
                self.ahead += not queue[0].attempts
                return queued
            self.keys[queued.key] = [queued]
        else:
            self._unkeyed.add(queued.offset)
        self.ahead += not queued.attempts
        self.heads += 1
        self._push(queued)
        return queued

    # -- held keys

    def held_by(self, record: Record) -> Queued | None:
        """The event that is dead and holds its key of which a record says that it ends that."""
        if not self.held:
            return None
        held = (self.held.get(name) for name in replay.releases(record.headers))
        return next((queued for queued in held if queued is not None and queued.key == record.key), None)

    def hold(self, event: ParkedEvent, hold: bytes, queued: Queued | None = None) -> None:
        """An event goes to the dead letters, and its key waits for its letter. `queued`: its place, where it was parked."""
        record, attempts = event.record, max(1, event.attempts)
        nothing_else = ParkedRecord(record.offset, record.timestamp, record.key, None, ())
        held = ParkedEvent(nothing_else, attempts=attempts, first_ms=event.first_ms, hold=hold, place=event.place)
        if queued is None:
            self._note(held)
            self.recall(held, math.inf)
            return
        self._log.open[self._row(queued.offset)] = held.row(self._log.most_bytes)
        self._tell_followers(queued)
        self._is_tried_no_more(queued)
        self.ahead -= 0 if queued.attempts else len(self.keys[record.key or b""])
        queued.attempts, queued.due, queued.hold, queued.to_hold = attempts, math.inf, hold, b""
        queued.in_hand = False
        self.held[hold] = queued
        self.count -= 1
        self.heads -= 1
        self._log.count -= 1
        self._log.held += 1

    def release(self, record: Record) -> None:
        """A record that says so ends the hold of a key, and did nothing else."""
        held = self.held_by(record)
        if held is not None:
            self.remove(held)

    def _in_place_of(self, held: Queued, event: ParkedEvent, due: float) -> Queued:
        queued = self._queued(event, due)
        self._forget_row(held.offset)
        held.gone = True
        del self.held[held.hold]
        self._log.held -= 1
        queue = self.keys[held.key or b""]
        queue[0] = queued
        self.ahead += 0 if queued.attempts else len(queue)
        self._is_first(queued)
        return queued

    def _is_first(self, queued: Queued) -> None:
        self.count += 1
        self._log.count += 1
        self.heads += 1
        self._push(queued)

    def _first_of_its_key(self, queued: Queued) -> None:
        """One that the log holds, and that comes before all of its key, whatever its offset."""
        assert queued.key is not None
        queue = self.keys.setdefault(queued.key, [])
        if queue:
            self.ahead -= 0 if queue[0].attempts else len(queue)
            self.heads -= 1
        queue.insert(0, queued)
        self.ahead += 0 if queued.attempts else len(queue)
        if queued.hold:
            self.held[queued.hold] = queued
            self._log.held += 1
        else:
            self._is_first(queued)

    # -- attempts

    def failed(self, queued: Queued, event: ParkedEvent, due: float) -> None:
        """One more attempt of it has failed: it stays the first of its key."""
        if not queued.attempts:
            queue = (queued,) if queued.key is None else self.keys[queued.key]
            if queue[0] is queued:
                self.ahead -= len(queue)
        queued.attempts, queued.due = event.attempts, due
        self._look_at_attempts(queued)
        self._no_more_crowded_out(queued)
        # Its next attempt may be crowded out as well.
        queued.conflicts = 0
        self._log.open[self._row(queued.offset)] = event.row(self._log.most_bytes)

    def _look_at_attempts(self, queued: Queued) -> None:
        if queued.hold:
            return
        if queued.attempts:
            self.failing.add(queued.offset)
        if not self._retry.gives_up and queued.attempts >= self._retry.attempts:
            self.used_up.add(queued.offset)

    @property
    def stops(self) -> bool:
        """Nothing but parked events is to be handled."""
        return bool(self.used_up) and self._retry.then == "stop"

    @property
    def retrying(self) -> bool:
        """One of them has attempts left, or waits for such a one."""
        return self.heads > len(self.used_up)

    def remove(self, queued: Queued) -> None:
        """It is done, one way or another; the next of its key may come. StoreError."""
        self._tell_followers(queued)
        queued.gone, held = True, bool(queued.hold)
        self._is_tried_no_more(queued)
        if held:
            del self.held[queued.hold]
            self._log.held -= 1
            # The next of its key is not counted as first yet, where there is one.
            self.heads += 1
        else:
            self.count -= 1
            self._log.count -= 1
        self._forget_row(queued.offset)
        self.ahead -= not queued.attempts
        if queued.key is None:
            self._unkeyed.discard(queued.offset)
            self.heads -= 1
            return
        queue = self.keys[queued.key]
        if queue.pop(0) is not queued:
            raise AssertionError(f"offset {queued.offset} was done before an earlier event of its key")
        if queue and bool(queue[0].attempts) != bool(queued.attempts):
            # What is behind it waits for one that has failed from now on, or does no more.
            self.ahead += len(queue) if queued.attempts else -len(queue)
        if not queue:
            self.heads -= 1
            del self.keys[queued.key]
        elif not queue[0].in_hand:
            self._push(queue[0])

    def _tell_followers(self, queued: Queued) -> None:
        """Those that are duplicates of it hear that it is dead. StoreError."""
        for follower in self._followers.pop(queued.offset, ()):
            # Its mark may be gone when their turn comes.
            if queued.given_up and not follower.gone:
                follower.first_dead = True
                row = replace(self.event(follower), first_dead=True).row(self._log.most_bytes)
                self._log.open[self._row(follower.offset)] = row

    def _is_tried_no_more(self, queued: Queued) -> None:
        for offsets in (self.used_up, self.failing):
            offsets.discard(queued.offset)
        self._no_more_crowded_out(queued)

    def _forget_row(self, offset: int) -> None:
        row, log = self._row(offset), self._log
        if row in log.unsealed:
            # Nobody knows of it but the open epoch.
            log.unsealed.discard(row)
            del log.open[row]
        else:
            log.open[row] = None

    # -- taking

    def next_due(self) -> float | None:
        """When the next of them may be tried, in monotonic seconds."""
        heap = self._heap
        while heap:
            due, _, queued = heap[0]
            # Of those that are the first of their key no more: another one has taken its place there since.
            first = queued.key is None or queued.gone or self.keys[queued.key][0] is queued
            if not queued.gone and not queued.in_hand and queued.due == due and first:
                return due
            heapq.heappop(heap)
        return None

    def take(self, now: float, most: int, most_bytes: int, isolate_until: int = -1) -> list[tuple[Queued, ParkedEvent]]:
        """Those that may be tried now, those due first first; one at least, where one is due.

        One that has not failed brings along those behind it that have not, either: they are handled as one stretch. One up to
        the offset `isolate_until` is taken alone.
        """
        taken: list[tuple[Queued, ParkedEvent]] = []
        size = 0
        while len(taken) < most and size < most_bytes:
            due = self.next_due()
            if due is None or due > now:
                break
            head = self._heap[0][2]
            alone = head.offset <= isolate_until
            if alone and taken:
                break
            heapq.heappop(self._heap)
            if alone:
                head.in_hand = True
                return [(head, self.event(head))]
            behind = self.keys[head.key] if head.key is not None and not head.attempts else (head,)
            for queued in behind:
                if queued is not head and (queued.attempts or queued.offset <= isolate_until):
                    break
                queued.in_hand = True
                event = self.event(queued)
                taken.append((queued, event))
                size += event.size
                if len(taken) >= most or size >= most_bytes:
                    break
        return taken

    def take_by_itself(self) -> list[tuple[Queued, ParkedEvent]]:
        queued = self.crowded_out[0]
        queued.in_hand = True
        return [(queued, self.event(queued))]

    def conflicted(self, queued: Queued) -> None:
        """Another event has changed what it saw: it is handled anew, after some times with nothing beside it."""
        queued.conflicts += 1
        if queued.conflicts == CONFLICTS:
            self.crowded_out.append(queued)

    def _no_more_crowded_out(self, queued: Queued) -> None:
        if queued.conflicts >= CONFLICTS and queued in self.crowded_out:
            self.crowded_out.remove(queued)

    def give_back(self, taken: Iterable[Queued]) -> None:
        """What was taken and is not done."""
        for queued in taken:
            queued.in_hand = False
            if not queued.gone and not queued.hold and (queued.key is None or self.keys[queued.key][0] is queued):
                self._push(queued)

    def event(self, queued: Queued) -> ParkedEvent:
        """StoreError; RecoveryError for what this version cannot read."""
        return decode(queued.offset, self._log.row(self._row(queued.offset)))

    def holds(self, first: int, last: int) -> bool:
        """Whether an event of these offsets is parked, or was until the epoch that is open. Looks at each that is."""
        # One that holds its key is dead, if it was before.
        open = self._log.open
        queues = chain.from_iterable(self.keys.values())
        behind = (queued.offset for queued in queues if not queued.hold or self._row(queued.offset) in open)
        done = (read_row(row)[1] for row, raw in self._log.open.items() if raw is None and row.startswith(self._prefix))
        return any(first <= offset <= last for offset in chain(self._unkeyed, behind, done))

    def forget(self) -> None:
        self._unkeyed.clear()
        self.keys.clear()
        self.held.clear()
        for offsets in (self.used_up, self.failing):
            offsets.clear()
        self.crowded_out.clear()
        self._followers.clear()
        self._heap.clear()
        self.count = self.heads = self.ahead = 0

    def _push(self, queued: Queued) -> None:
        heapq.heappush(self._heap, (queued.due, queued.offset, queued))

    def _row(self, offset: int) -> bytes:
        return row_of(self._prefix, offset)


class ParkedLog(RowLog):
    """All parked events of one task, as a state log. `limit`, `key_limit`: how many there may be, in all and of a key;
    `most_bytes`: what the value of a row may have.

    `halted`: of those that the store held, by agent, how many failed last while nothing succeeded, and the error of one.
    """

    def __init__(
        self, store: Store, partition: int, number: int, topic: str, *,
        limit: int, key_limit: int, most_delay_s: float, most_bytes: int,
    ) -> None:  # fmt: skip
        super().__init__(store, row_prefix(partition, number), topic)
        self.limit = limit
        self.key_limit = key_limit
        self.most_bytes = most_bytes
        self.halted: dict[str, tuple[int, str]] = {}
        self._most_delay_s = most_delay_s
        self.queues: dict[tuple[str, str], ParkedQueue] = {}
        # Rows of the open epoch that no log has.
        self.unsealed: set[bytes] = set()
        # `held`: how many are dead and hold their key, beside those that are parked.
        self.count = self.held = 0
        # What the store holds is in the queues.
        self.loaded = False

    def queue(self, topic: str, agent: str, retry: Retry) -> ParkedQueue:
        """`agent`: the name under which its state is (`AgentPlan.state_name`)."""
        queue = ParkedQueue(self, agent_prefix(topic, agent), retry)
        return self.queues.setdefault((topic, agent), queue)

    def holds(self, agent: str, topic: str, first: int, last: int) -> bool:
        """Whether an event of these offsets is parked, or was until the epoch that is open."""
        queue = self.queues.get((topic, agent), self.queues.get((topic, "")))
        return queue is not None and queue.holds(first, last)

    def load(self, now: float, wall_ms: int) -> None:
        """Fill the queues from the store; `now`: monotonic seconds of `wall_ms`. StoreError, RecoveryError."""
        orphans: dict[str, int] = {}
        for row, raw in self._store.scan_rows(self._prefix):
            place, offset = read_row(row)
            queue = self.queues.get(place)
            if queue is None:
                orphans[place[1]] = orphans.get(place[1], 0) + 1
                continue
            event = decode(offset, raw)
            # A clock that was set back meanwhile makes nobody wait for longer than he would have had to.
            wait_s = min(max(0.0, (event.due_ms - wall_ms) / 1000), self._most_delay_s)
            due = math.inf if event.hold else now + wait_s if event.attempts else 0.0
            queue.recall(event, due)
            if event.halted and not event.blamed:
                self.halted[place[1]] = self.halted.get(place[1], (0, ""))[0] + 1, event.error
        # Not before: of a store that cannot be read nobody knows how many there are, and the position says what it said.
        self.loaded = True
        for agent, count in orphans.items():
            log.warning(
                "%s holds %d parked events of agent %r, which is not declared any more: they stay there, and are handled when an "
                "agent of that name reads the same source again", self.topic, count, agent,
            )  # fmt: skip

    # -- as a state log

    def seal(self) -> Iterable[tuple[bytes, bytes | None]]:
        self.unsealed = set()
        return super().seal()

    def drop(self) -> None:
        super().drop()
        self.unsealed = set()
        for queue in self.queues.values():
            queue.forget()
        self.count = self.held = 0
        self.halted.clear()
        self.loaded = False
