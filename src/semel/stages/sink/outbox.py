"""Outbox: outputs without a source record, put into the next epoch again until one of them is committed (rule 4)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from semel.errors import CarryOverFull, CommitError
from semel.port import TP
from semel.stages.sink.destination import ProducerRecord
from semel.state.event_context import EventContext, EventHistory, refuse_waiting_for_commit


class Committed(asyncio.Future[None]):
    """Resolves when an output is committed. HandlingError where it is awaited inside an event (protocol rule 5)."""

    def __await__(self) -> Generator[Any, None, None]:
        if not self.done():
            refuse_waiting_for_commit("an output")
        return super().__await__()


class PendingOutput:
    """`done` is resolved when the output is committed. `since`: monotonic seconds."""

    __slots__ = ("done", "out", "since")

    def __init__(self, out: ProducerRecord, done: asyncio.Future[None], since: float) -> None:
        self.out = out
        self.done = done
        self.since = since


class Followers:
    """What tasks send that have outlived their event, while its epoch is on its way: it counts if that is committed.

    Made when the epoch is cut, of the event contexts of agents whose tasks may send.
    """

    def __init__(self, contexts: Iterable[EventContext]) -> None:
        self.outs: list[PendingOutput] = []
        self._sealed: list[tuple[EventHistory, int]] = []
        for context in contexts:
            history = context.history
            history.sealed = context.event - context.holding
            history.after = self.outs
            self._sealed.append((history, history.sealed))

    @property
    def possible(self) -> bool:
        """There are agents that may start tasks which send."""
        return bool(self._sealed)

    def let_go(self, *, committed: bool) -> list[PendingOutput]:
        """The epoch has its answer: what is to be sent now. What followed an epoch that is undone has failed."""
        for history, number in self._sealed:
            if committed:
                history.commit(number)
            if history.after is self.outs:
                history.after = None
        outs, self.outs = self.outs, []
        if committed:
            return outs
        fail(outs, "the event it was sent for is undone, and will be handled again")
        return []


@dataclass(slots=True)
class InDoubt:
    """Outputs of an epoch of which nobody knows whether it was committed.

    If it was, a position record with `stamp` stands in the log `tp` at `since` or later, unless the topic is another than the
    one of `topic_id`. `followers`: what waits for it.
    """

    outs: list[PendingOutput]
    tp: TP
    topic_id: str
    since: int
    stamp: tuple[str, int, int]
    followers: Followers


class Outbox:
    def __init__(self, limit: int, limit_bytes: int) -> None:
        self.limit = limit
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self.in_doubt: list[InDoubt] = []
        self._waiting: deque[PendingOutput] = deque()
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, out: ProducerRecord, now: float) -> asyncio.Future[None]:
        """CarryOverFull where too many wait, or too many bytes; CommitError where the worker has stopped."""
        if self._closed:
            raise CommitError("the worker has stopped: nothing can be sent any more")
        if len(self._waiting) >= self.limit:
            raise CarryOverFull(
                f"{len(self._waiting)} outputs without an event wait for their commit, the limit (carry_over_limit) is "
                f"{self.limit}; await what app.send returns, and send slower"
            )
        if self._waiting and self.bytes + out.size > self.limit_bytes:
            raise self._too_many_bytes()
        self.bytes += out.size
        done = Committed()
        self._waiting.append(PendingOutput(out, done, now))
        return done

    def follow(self, outs: list[PendingOutput], out: ProducerRecord, now: float) -> asyncio.Future[None]:
        """As `add`, where an epoch that is on its way has to be committed first."""
        if len(outs) >= self.limit:
            raise CarryOverFull(f"{len(outs)} outputs wait for an epoch, the limit (carry_over_limit) is {self.limit}")
        if outs and self.bytes + out.size + sum(carried.out.size for carried in outs) > self.limit_bytes:
            raise self._too_many_bytes()
        outs.append(PendingOutput(out, done := Committed(), now))
        return done

    def release(self, outs: list[PendingOutput]) -> None:
        """They come next, in their order."""
        if self._closed:
            fail(outs, "the worker stopped before this was committed")
        else:
            self._waiting.extend(outs)
            self.bytes += sum(carried.out.size for carried in outs)

    def _too_many_bytes(self) -> CarryOverFull:
        return CarryOverFull(
            f"outputs without an event of {self.bytes} bytes wait for their commit, and {self.limit_bytes} bytes of the "
            "memory budget are for them; await what app.send returns, and send slower, or raise memory_budget_bytes"
        )

    def take(self, most: int | None = None, *, bytes_left: int | None = None) -> list[PendingOutput]:
        """The first of them: at most so many, and so many bytes, with one at least."""
        waiting, taken = self._waiting, list[PendingOutput]()
        while waiting and (most is None or len(taken) < most):
            size = waiting[0].out.size
            if bytes_left is not None:
                bytes_left -= size
                if bytes_left < 0 and taken:
                    break
            self.bytes -= size
            taken.append(waiting.popleft())
        return taken

    def put_back(self, outs: list[PendingOutput]) -> None:
        """They come first again, in their order."""
        self._waiting.extendleft(reversed(outs))
        self.bytes += sum(carried.out.size for carried in outs)

    def expire(self, before: float) -> None:
        """Fail what waits since before a time: this worker owns nothing, so nothing can fence what it sends (rule 9)."""
        while self._waiting and self._waiting[0].since < before:
            fail(
                self.take(1),
                "this worker owns no partition, so nothing can fence what it sends; send from a worker that does, or "
                "write to the source topic",
            )

    def give_up(self) -> None:
        """The worker stops."""
        self._closed = True
        fail(self.take(), "the worker stopped before this was committed")
        for doubtful in self.in_doubt:
            unknown = "the worker stopped before it was known whether this was committed"
            fail([*doubtful.outs, *doubtful.followers.outs], unknown)
        self.in_doubt.clear()


def committed(outs: Iterable[PendingOutput]) -> None:
    for carried in outs:
        if not carried.done.done():
            carried.done.set_result(None)


def fail(outs: Iterable[PendingOutput], why: str) -> None:
    for carried in outs:
        if not carried.done.done():
            carried.done.set_exception(CommitError(why))
