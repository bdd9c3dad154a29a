"""Handler faults: agents' code that fails, ends oddly or does not end, on purpose; for `semel chaos`.

`SEMEL_ODD_CODE` in the environment names a file whose bytes say at any moment whether, so that a run can begin and end it,
and in which the process counts what it did. What ends an attempt here comes out of the agent's loop, or out of its
function, after the agent has done its work; the event is to be undone and tried again. By odd code an event fails only where
its `Retry` leaves it two more attempts; by a dependency that is down it fails for as long as that is.
"""

from __future__ import annotations

import asyncio
import inspect
import mmap
import struct
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from time import sleep
from typing import Any, Literal, NamedTuple, get_args

from semel.errors import HandlingError, OutsideEvent, StaleIncarnation
from semel.plan import AgentPlan, Plan
from semel.stages.agent.runner import AgentRunner
from semel.state.event_context import EventContext, current_context
from semel.state.table_rows import MISSING

# Of what it fails with; nothing else may say so.
ON_PURPOSE = "ended oddly on purpose"
DOWN_ON_PURPOSE = "met a dependency that is down on purpose"
BLOCKS_S = (0.02, 0.1, 0.5)
# A share of the attempts is odd; a share of the events fails, or of the keys.
Mode = Literal["odd", "events", "keys"]
_MODES: tuple[Mode, ...] = get_args(Mode)
_ORDER = struct.Struct("@qdq")
_COUNT = struct.Struct("@q")


class Done(NamedTuple):
    """How many attempts ended oddly, how often the event loop was held, how many tasks outlived their event, how many
    errors were swallowed around the agent's loop, and how many attempts met a dependency that is down.
    """

    ended: int = 0
    held: int = 0
    outlived: int = 0
    swallowed: int = 0
    down: int = 0


SIZE = _ORDER.size + len(Done._fields) * _COUNT.size


class Odd(BaseException):
    """What a library may raise that wants to be caught by nobody."""


ENDINGS: tuple[type[BaseException], ...] = (
    RuntimeError, TimeoutError, asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit, StopAsyncIteration,
    StaleIncarnation, Odd,
)  # fmt: skip


def order(file: Path, share: float, seed: int = 0, mode: Mode = "odd") -> None:
    """So many of them from now on; 0: none. In place: a running process has mapped these bytes."""
    with file.open("r+b" if file.exists() else "w+b") as at:
        at.write(_ORDER.pack(seed, share, _MODES.index(mode)))
        at.truncate(SIZE)


def done(file: Path) -> Done:
    """What was done so far."""
    return Done(*(n for (n,) in _COUNT.iter_unpack(file.read_bytes()[_ORDER.size :])))


class HandlerFaults:
    """By the order in a file, which is to be there."""

    def __init__(self, file: Path) -> None:
        with file.open("r+b") as at:
            self._shared = mmap.mmap(at.fileno(), SIZE)
        # Tasks that nobody holds are collected.
        self._late: set[asyncio.Task[None]] = set()

    def around(self, plan: Plan) -> Plan:
        """The same, with agents that may swallow what ends their loop, and begin another."""
        return replace(plan, agents=[self._around(agent) for agent in plan.agents])

    # -- one event

    def inject(self, runner: AgentRunner) -> None:
        """The agent's events end by it in this slot."""
        finish, complete = runner.finish, runner.complete

        def finish_oddly(context: EventContext) -> None:
            self._act(runner, context)
            finish(context)

        def complete_oddly(context: EventContext) -> None:
            if runner.unit is not None and runner.unit.batch is not None:
                self._act(runner, context)
            complete(context)

        runner.finish, runner.complete = finish_oddly, complete_oddly

    def _act(self, runner: AgentRunner, context: EventContext) -> None:
        seed, share, mode = self._order()
        s = runner.unit
        # Outside of the agent's own code there is nothing that could end oddly.
        if share <= 0 or s is None or current_context.get() is not context:
            return
        offset, failed = s.record.offset, s.failures
        where = f"{s.cursor.tp.topic}[{s.cursor.tp.partition}]@{offset}"
        if mode != "odd":
            which = s.record.key if mode == "keys" else (s.cursor.tp, offset)
            if Random(f"{seed} {which}").random() < share:
                self._count("down")
                raise ConnectionError(f"{where} {DOWN_ON_PURPOSE}")
            return
        rng = Random(f"{seed} {s.cursor.tp} {offset} {failed}")
        if rng.random() >= share:
            return
        match rng.randrange(5):
            case 0:
                self._count("held")
                sleep(rng.choice(BLOCKS_S))
            case 1:
                self._count("outlived")
                late = asyncio.get_running_loop().create_task(self._write_late(context, rng.random() / 5))
                self._late.add(late)
                late.add_done_callback(self._late.discard)
            case _:
                ending = rng.choice(ENDINGS)(f"{where} {ON_PURPOSE}")
                # It fails again by this, or by something else, and still is not given up.
                if runner.plan.retry.delay_s(ending, failed + 2, 0.0) is not None:
                    self._count("ended")
                    raise ending

    async def _write_late(self, context: EventContext, after_s: float) -> None:
        """Deletes rows when the event that it was started in is over; what of that is let through is missed by the proof."""
        while context.mine:  # noqa: ASYNC110  (what it looks at is no event of the loop's)
            await asyncio.sleep(0.01)
        await asyncio.sleep(after_s)
        for name in list(context.tables):
            try:
                rows = context.rows(name)
            except (OutsideEvent, StaleIncarnation):
                continue
            for key in list(rows.hot):
                context.writes.write(rows, key, MISSING)

    # -- one run

    def _around(self, agent: AgentPlan) -> AgentPlan:
        # What it swallows comes back as an error of the engine's own, which must be worth another attempt, too.
        if not inspect.isasyncgenfunction(agent.run) or agent.retry.delay_s(HandlingError(""), 1, 0.0) is None:
            return agent

        def run(stream: Any) -> AsyncGenerator[Any, Any]:
            return self._swallowing(agent.run, stream)

        return replace(agent, run=run)

    async def _swallowing(self, run: Callable[[Any], AsyncGenerator[Any]], stream: Any) -> AsyncGenerator[Any, Any]:
        running, thrown = run(stream), None
        try:
            while True:
                try:
                    result = await (anext(running) if thrown is None else running.athrow(thrown))
                    thrown = None
                except StopAsyncIteration:
                    return
                except BaseException:
                    seed, share, mode = self._order()
                    if share <= 0 or mode != "odd" or Random(f"{seed} swallows").random() < 0.5:
                        raise
                    self._count("swallowed")
                    running, thrown = run(stream), None
                    continue
                try:
                    yield result
                except HandlingError as refused:
                    # What it may catch, as without this.
                    thrown = refused
        finally:
            await running.aclose()

    def _order(self) -> tuple[int, float, Mode]:
        given: tuple[int, float, int] = _ORDER.unpack_from(self._shared)
        seed, share, mode = given
        return seed, share, _MODES[mode]

    def _count(self, what: str) -> None:
        at = _ORDER.size + Done._fields.index(what) * _COUNT.size
        _COUNT.pack_into(self._shared, at, _COUNT.unpack_from(self._shared, at)[0] + 1)
