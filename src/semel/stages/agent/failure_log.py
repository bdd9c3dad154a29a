"""Failure log: says which events failed and why, however many there are.

Of failures that are alike (the same kind of error, raised at the same place) one is said every ten seconds, and the
others are counted. A failed attempt is a line; the traceback is shown when an event is given up.
"""

from __future__ import annotations

import logging
import traceback
from typing import NamedTuple

from semel.display.folding import folded
from semel.errors import AmbiguousResult, described, errors_in
from semel.port import TP, Record

log = logging.getLogger("semel.agent")

# Often enough to follow an outage, seldom enough that one event in a hundred failing leaves the log readable.
SAID_EVERY_S = 10.0
ERROR_CHARACTERS = 300
KEY_CHARACTERS = 80


class _Alike(NamedTuple):
    """What failures have in common. `ending`: what came of them; `place`: where the error was raised."""

    ending: str
    error: str
    place: str


class _Report:
    __slots__ = ("at_s", "more")

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s
        self.more = 0


class FailureLog:
    """One agent's. Times are the clock's monotonic seconds."""

    def __init__(self) -> None:
        self._reports: dict[_Alike, _Report] = {}
        self._said_returned = False

    def retried(
        self, tp: TP, record: Record, exc: BaseException, attempt: int, attempts: int, delay_s: float, now_s: float
    ) -> None:
        """The event is tried again after `delay_s`. It has had more attempts than there are where it is never given up
        (`Retry(then="park")`, `"stop"`)."""
        of = f" of {attempts}" if attempt <= attempts else "; it stays parked until one succeeds"
        if self._may_say(_Alike("tried again", *alike_of(exc)), now_s):
            log.warning("%s failed (attempt %d%s), again in %.2f s: %s",
                        _event(tp, record), attempt, of, delay_s, _line(exc))  # fmt: skip

    def given_up(
        self,
        tp: TP,
        record: Record,
        exc: BaseException,
        attempt: int,
        attempts: int,
        now_s: float,
        *,
        why: str,
        hold: bool,
    ) -> None:
        """It was the last attempt. `why`: what of the declaration has it so; `hold`: its key waits for its letter."""
        if self._may_say(_Alike("given up", *alike_of(exc)), now_s):
            log.warning("%s failed for good (attempt %d of %d%s): %s%s",
                        _event(tp, record), attempt, attempts, why and f", {why}", _line(exc),
                        "; its key waits until its letter is replayed or dropped (semel dlq)" if hold else "",
                        exc_info=traced(exc))  # fmt: skip

    def halted(self, agent: str, exc: BaseException, events: int) -> None:
        """So many events failed alike, and nothing succeeded in between."""
        log.error(
            "agent %s: %d events in a row failed alike and none succeeded, which says nothing of the events: %s. It takes no "
            "more of them, gives none up, and tries one now and then until one succeeds: see what it depends on, and declares",
            agent, events, _line(exc), exc_info=traced(exc),
        )  # fmt: skip

    def halted_before(self, agent: str, events: int, error: str) -> None:
        """A process before this one was halted, and this one begins so."""
        log.warning(
            "agent %s begins halted: %d parked events failed last while none succeeded: %s. It tries one now and then until one "
            "succeeds", agent, events, error,
        )  # fmt: skip

    def goes_on(self, agent: str) -> None:
        """An event has succeeded after that."""
        log.warning("agent %s goes on: an event has succeeded", agent)

    def lost_session(self, tp: TP, record: Record, attempt: int, attempts: int) -> None:
        """It held the loop until the session was over. Each costs a session, so there are never many."""
        log.warning("%s held the event loop for longer than the session timeout: the group gives the partition away, and "
                    "this was attempt %d of %d", _event(tp, record), attempt, attempts)  # fmt: skip

    def returned(self, agent: str, where: str) -> None:
        """Its code returned with an event in hand. Said once: it may be meant, and is counted."""
        if self._said_returned:
            return
        self._said_returned = True
        log.warning(
            "agent %s returned with %s in hand, and that event counts as done, with what it wrote: a `break` or `return` in the "
            "loop means that, and an exception that is swallowed around the loop looks the same. Catch what an event may raise "
            "inside the loop, or let it out of the agent. Said once; semel_agent_returned counts them",
            agent, where,
        )  # fmt: skip

    def misused(self, why: BaseException, now_s: float) -> None:
        """The agent's code asks for events in a way that is refused."""
        if self._may_say(_Alike("misused", type(why).__name__, ""), now_s):
            log.error("%s. The event is not done: it waits, and is handled again where the agent starts again", why)

    def suspect_waits(self, tp: TP, record: Record, deaths: int, wait_s: float) -> None:
        """The process died as often with nothing else in hand."""
        log.warning("%s was alone in hand at %d deaths of the process, and waits %.0f s; the other partitions go on meanwhile",
                    _event(tp, record), deaths, wait_s)  # fmt: skip

    def split(self, tp: TP, events: int, exc: BaseException, now_s: float) -> None:
        """A batch failed, and its events are gone through one by one."""
        if isinstance(exc, AmbiguousResult):
            # So does every batch: alone, events have results, and slowly.
            if self._may_say(_Alike("in a batch", type(exc).__name__, ""), now_s):
                log.warning("a batch of %d at %s[%d] is undone, and its events are handled one by one, as those of every batch "
                            "like it: %s", events, tp.topic, tp.partition, _line(exc))  # fmt: skip
            return
        if self._may_say(_Alike("in a batch", *alike_of(exc)), now_s):
            log.info("a batch of %d at %s[%d] failed; its events go on one by one: %s",
                     events, tp.topic, tp.partition, _line(exc))  # fmt: skip

    def sum_up(self, now_s: float) -> None:
        """Say how many more there were of what has been silent for long enough."""
        for alike in [a for a, report in self._reports.items() if now_s - report.at_s >= SAID_EVERY_S]:
            more = self._reports.pop(alike).more
            if more:
                log.warning("%d more like it: %s, %s at %s", more, alike.ending, alike.error, alike.place)

    def _may_say(self, alike: _Alike, now_s: float) -> bool:
        self.sum_up(now_s)
        if alike in self._reports:
            self._reports[alike].more += 1
            return False
        self._reports[alike] = _Report(now_s)
        return True


def alike_of(exc: BaseException) -> tuple[str, str]:
    """The same for errors that are alike: of one type, from one line. Of a group of errors the first counts."""
    first = errors_in(exc)[0]
    try:
        return type(first).__name__, _place(first)
    except Exception:  # its class may answer with code of its own
        return "an error", "an unknown place"


def traced(exc: BaseException) -> BaseException | None:
    """The error, for a log that shows where it was raised; None where its class does not let itself be shown."""
    try:
        traceback.format_exception(exc)
    except Exception:
        return None
    return exc


def _event(tp: TP, record: Record) -> str:
    return f"{tp.topic}[{tp.partition}]@{record.offset} (key {repr(record.key)[:KEY_CHARACTERS]})"


def _line(exc: BaseException) -> str:
    """One line, whatever the message holds."""
    return folded(" ".join(described(exc).split()))[: ERROR_CHARACTERS + len(type(exc).__name__) + 2]


def _place(exc: BaseException) -> str:
    trace = exc.__traceback__
    if trace is None:
        return "an unknown place"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
