"""Action run: one action on dead letters in the background: how far it is, what came of it, and its end when it is told to.

One at a time in a process; who acts elsewhere fences it, as everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple

from semel.broker.answers import is_explained
from semel.dead_letters import decisions, setting_aside
from semel.dead_letters.decisions import Fates, NotReplayable, Selection
from semel.dead_letters.editing import edit_of
from semel.dead_letters.fates import FateWatch
from semel.dead_letters.letter import Letter
from semel.dead_letters.operator import Done, Operator, Why
from semel.dead_letters.reading import NoLetters
from semel.errors import SemelError, described
from semel.port import Clock

log = logging.getLogger("semel.dead_letters")

Kind = Literal["replay", "edit", "drop", "archive"]
KINDS: tuple[Kind, ...] = ("replay", "edit", "drop", "archive")
State = Literal["running", "done", "stopped", "failed"]

# What it was remembered of those that ended: the audit remembers all.
KEPT = 20


class Busy(SemelError):
    """Another action runs here."""


class Asked(NamedTuple):
    """What is to be done. `value`: of an edit."""

    action: Kind
    selection: Selection
    why: Why
    rate: float
    wait_s: float
    keep_going: bool = False
    value: bytes | None = None
    hold: bool = False
    new_id: bool = False


class ActionRun:
    def __init__(self, asked: Asked, clock: Clock) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.asked = asked
        self.state: State = "running"
        self.error = ""
        self._clock = clock
        self._done = Done()
        self._fates: FateWatch | None = None
        self._began_ms = int(clock.time() * 1000)
        self._ended_ms: int | None = None
        self.task: asyncio.Task[None] | None = None

    async def run(self, make: Callable[[], Awaitable[Operator]]) -> None:
        try:
            operator = await make()
            await operator.open()
            if (done := await self._act(operator)) is not None:
                self._done = done
            self.state = "stopped" if self._done.stopped else "done"
            if not self._done.letters and not self._done.skipped and self.asked.action != "archive":
                self.state, self.error = "failed", "there was nothing to do: what fits is done with already"
        except asyncio.CancelledError:
            self.told_to_stop()
            raise
        except Exception as exc:
            self.state = "failed"
            self.error = str(exc) if is_explained(exc) else described(exc)
            if not is_explained(exc):
                log.exception("%s of dead letters failed", self.asked.action)
        finally:
            self._ended_ms = int(self._clock.time() * 1000)

    async def _act(self, operator: Operator) -> Done | None:
        asked, selection, why = self.asked, self.asked.selection, self.asked.why
        match asked.action:
            case "replay":
                self._fates = await operator.watch(asked.wait_s)
                return await operator.write_all(
                    "replay", selection, why, decisions.replayed, rate=asked.rate, fates=self._fates,
                    keep_going=asked.keep_going, told=self._told,
                )  # fmt: skip
            case "edit":
                return await self._edit(operator)
            case "drop":
                return await operator.mark_all("drop", selection, why, self._told)
            case "archive":
                await setting_aside.archive(operator, selection.group or "", why)
                return None

    async def _edit(self, operator: Operator) -> Done:
        asked = self.asked
        assert asked.value is not None
        value = asked.value
        letters = [letter async for letter in operator.selected(asked.selection)]
        if not letters:
            raise NoLetters("something was done with the letter since; nothing was done now")
        [letter] = letters
        try:
            before = await operator.value_of(letter)
        except NotReplayable:
            before = None
        edit = edit_of(operator.plan, letter, before, value)
        if edit.other_id and not asked.new_id:
            raise NotReplayable(f"{edit.other_id}; say new_id if that is meant")
        if not edit.changes:
            raise NotReplayable("the new value is the one that it has; replay it as it is")

        def make(one: Letter, _: bytes | None) -> Any:
            return decisions.held(one, value) if asked.hold else decisions.replayed(one, value, edited=True)

        self._fates = None if asked.hold else await operator.watch(asked.wait_s)
        return await operator.write_all(
            "edit", asked.selection, asked.why, make, fates=self._fates, value_needed=False, told=self._told,
            **edit.more(hold=asked.hold),
        )  # fmt: skip

    def _told(self, done: Done) -> None:
        self._done = done

    def told_to_stop(self) -> None:
        if self.state == "running":
            self.state, self.error = (
                "stopped",
                "it was told to stop; what stands in the audit is done, and nothing else",
            )

    def stop(self) -> None:
        """What is being committed is committed; nothing after it."""
        if self.task is not None:
            self.task.cancel()

    def to_json(self) -> dict[str, Any]:
        asked, done = self.asked, self._done
        fates = self._fates.fates if self._fates is not None else Fates(0, 0, 0)
        at = asked.selection.at
        return {
            "id": self.id,
            "action": asked.action,
            "state": self.state,
            "by": asked.why.by,
            "reason": asked.why.reason,
            "letter": None if at is None else f"{at[0]}@{at[1]}",
            "group": asked.selection.group,
            "began": self._began_ms,
            "ended": self._ended_ms,
            "letters": done.letters,
            "skipped": {why: count for why, (count, _) in done.skipped.items()},
            "known": fates.known,
            "came_back": fates.back,
            "stopped": done.stopped or None,
            "error": self.error or None,
        }


class ActionRuns:
    """The one that runs, and the last ones that did."""

    def __init__(self, make: Callable[[], Awaitable[Operator]], clock: Clock) -> None:
        self._make = make
        self._clock = clock
        self._runs: deque[ActionRun] = deque(maxlen=KEPT)

    def begin(self, asked: Asked) -> ActionRun:
        """Busy where another one runs."""
        for run in self._runs:
            if run.state == "running":
                raise Busy(
                    f"the action {run.id} runs ({run.asked.action} by {run.asked.why.by}); wait for its end, or stop it"
                )
        run = ActionRun(asked, self._clock)
        run.task = asyncio.create_task(run.run(self._make), name=f"dead letters {run.id}")
        # Also where it is stopped before it began.
        run.task.add_done_callback(lambda _: run.told_to_stop())
        self._runs.append(run)
        return run

    def find(self, id: str) -> ActionRun | None:
        return next((run for run in self._runs if run.id == id), None)

    def all(self) -> list[ActionRun]:
        """The last first."""
        return list(self._runs)[::-1]

    async def close(self) -> None:
        """Stop what runs, and wait until its transaction has ended."""
        for run in self._runs:
            if run.task is not None and not run.task.done():
                run.stop()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await run.task
