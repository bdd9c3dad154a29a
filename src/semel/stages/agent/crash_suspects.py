"""Crash suspects: which of the events that agents had in hand the end of a process is put down to (protocol rule 3).

A process that dies cannot say why. One death proves nothing: somebody may have killed it. An event is given up when it was
in hand, alone, at so many deaths in a row; between two of them it waits, so that whoever kills processes from outside is
more likely to meet the wait than the event.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from semel.display.counting import counted
from semel.plan import Plan
from semel.port import TP
from semel.retry import Retry
from semel.state.crash_notes import SUSPECTS, CrashNotes, Held, Left, Suspect, boot_id, read
from semel.state.task import Task, TaskState

log = logging.getLogger("semel.worker")

# Fewer deaths in a row are no evidence: of a thousand slow events under a hail of kills at random, three in a row would
# give up ninety, five hardly one (`test_killers_from_outside_do_not_make_an_event_look_guilty`).
LEAST_CRASHES = 5
# The first try comes at once: most deaths are somebody's kill, and recover as ever. Later ones wait for so many seconds, twice
# as long each time, and for a multiple of the time that the event was in hand.
FIRST_WAIT_S, MOST_WAIT_S = 1.0, 60.0
HELD_SHARE, MOST_HELD_WAIT_S = 4, 300.0


def most_crashes(retry: Retry) -> int:
    """At how many deaths an event is given up."""
    return max(LEAST_CRASHES, retry.attempts)


def wait_s(crashes: int, held_s: float) -> float:
    """How long an event that was in hand at so many deaths waits before it is tried again."""
    if crashes < 2:
        return 0.0
    doubled = min(FIRST_WAIT_S * 2.0 ** min(crashes - 2, 16), MOST_WAIT_S)
    return max(doubled, min(held_s * HELD_SHARE, MOST_HELD_WAIT_S))


def suspected(left: Left, boot: str) -> list[Suspect]:
    """Who is suspect after the end of a process; `boot`: the machine's now.

    A process that was told to end, and one whose machine went down, blame nobody. Where nothing was in hand something else
    ends processes here, and the counts begin anew. What was in hand together is gone through one by one; only an event that
    was alone in hand has this death counted.
    """
    known = left.suspects
    if left.explained or left.boot != boot:
        return known
    if not left.held:
        return [replace(s, crashes=0) for s in known]
    by_events = {s.events: s for s in known}
    for held in left.held:
        suspect = by_events.get(held.events) or Suspect(*held.events)
        if held.is_one and len(left.held) == 1:
            held_s = max(suspect.held_s, left.seen - held.since, 0.0)
            suspect = replace(suspect, crashes=suspect.crashes + 1, held_s=held_s)
        by_events[held.events] = suspect
    return sorted(by_events.values(), key=lambda s: s.crashes)[-SUSPECTS:]


def opened(place: Path, plan: Plan) -> CrashNotes:
    """What the process before this one had in hand is looked at, and what this one has is noted from here on."""
    agents = {agent.name: agent.retry for agent in plan.agents}
    boot = boot_id()
    suspects: list[Suspect] = []
    try:
        left = read(place.read_bytes())
    except FileNotFoundError:
        left = None
    except OSError as exc:
        left = None
        log.warning("what the process before this one had in hand cannot be read (%s)", exc)
    if left is not None:
        suspects = [s for s in suspected(left, boot) if s.agent in agents and s.topic in plan.sources]
        if not left.explained and left.boot == boot:
            _say(left.held, suspects, agents)
    try:
        return CrashNotes(plan.slots, list(plan.sources), suspects, boot=boot, place=place)
    except OSError as exc:
        log.warning("what agents have in hand cannot be noted in %s (%s): an event that ends the process each time is handled "
                    "again for ever", place, exc)  # fmt: skip
        return CrashNotes(plan.slots, list(plan.sources), suspects, boot=boot)


def _say(held: Sequence[Held], suspects: Sequence[Suspect], agents: Mapping[str, Retry]) -> None:
    if not held:
        return
    suspect = next((s for s in suspects if len(held) == 1 and held[0].is_one and s.events == held[0].events), None)
    if suspect is None:
        what = "They go one by one now: should one of them end the process, it shows which"
    else:
        limit = most_crashes(agents[suspect.agent])
        what = f"Alone in hand at {counted(suspect.crashes, 'death')} in a row; at {limit} it goes to the dead letters"
    log.warning("the process before this one died; %s. %s", ", ".join(map(str, held)), what)


class CrashSuspects:
    """The suspects among the events that this worker's agents meet."""

    def __init__(self, notes: CrashNotes, plan: Plan) -> None:
        self.notes = notes
        self._most = {agent.name: most_crashes(agent.retry) for agent in plan.agents}

    def of(self, tp: TP, agent: str) -> list[Suspect]:
        return [s for s in self.notes.suspects if (s.agent, s.topic, s.partition) == (agent, *tp)]

    def counting(self, tasks: Mapping[int, Task]) -> bool:
        """An event is on trial. Then events go one by one everywhere, so that each death has one that was in hand alone."""
        return any(s.crashes and s.partition in tasks for s in self.notes.suspects)

    def landed(self, tasks: Mapping[int, Task]) -> list[Suspect]:
        """An epoch is committed: the suspects that are done with it."""
        done: list[Suspect] = []
        for suspect in list(self.notes.suspects):
            task = tasks.get(suspect.partition)
            if task is None or task.state is not TaskState.RUNNING:
                continue
            at = task.committed.topics.get(suspect.topic)
            if at is None or at.stands(suspect.agent) <= suspect.last:
                continue
            agent, topic, _, first, last, _ = suspect.events
            if task.parked is None or not task.parked.holds(agent, topic, first, last):
                done.append(suspect)
                self._done(suspect)
        return done

    def _done(self, suspect: Suspect) -> None:
        self.notes.done(suspect)
        if not suspect.tried or not 0 < suspect.crashes < self._most[suspect.agent]:
            return
        # What was in hand at a death and is done after all did not cause it; as little may the others have caused theirs.
        log.info("%s[%d]@%d, in hand at %d deaths of the process, is done after all", suspect.topic, suspect.partition,
                 suspect.first, suspect.crashes)  # fmt: skip
        for other in self.notes.suspects:
            if other.crashes:
                self.notes.count_anew(other)
