"""Watchdog: a thread that sees what holds the event loop, and says it while it does (decision "one event loop").

While code blocks, the loop can say nothing. The thread looks at where it stands, and names the agent, the record and the
stack.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from semel.stages.agent.runner import AgentRunner

log = logging.getLogger("semel.watchdog")

# How often the thread looks, and the loop says that it runs.
LOOK_S = 0.25
# What holds the loop for so long is said; what goes on holding it, and what is like it, again after AGAIN_S.
SAY_S, AGAIN_S = 1.0, 10.0
FRAMES = 8
_SEMEL = str(Path(__file__).parents[2])
# The interpreter's own way to look at another thread.
_frames = sys._current_frames  # pyright: ignore[reportPrivateUsage]
_BODY = str(Path(__file__).parents[1])
_ASYNCIO = str(Path(asyncio.__file__).parent)
_LIBRARY = str(Path(os.__file__).parent)


class Watchdog:
    """`start` it on the loop that it is to watch. `runners`: whose events may be what holds it. `alive`: told while the process
    lives, whether the loop runs or not."""

    def __init__(
        self,
        runners: Sequence[AgentRunner],
        *,
        session_timeout_ms: int,
        max_block_ms: int = 0,
        alive: Callable[[float], None] = lambda now: None,
    ) -> None:
        self._runners = runners
        self._alive = alive
        self._session_s, self._kept_s = session_timeout_ms / 1000, max_block_ms / 1000
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._beaten = 0.0
        self._cpu_s = 0.0
        # For how long the thread has seen the loop stand still. A process that is stopped as a whole sees nothing.
        self._seen_s = 0.0
        self._said_at_s = 0.0
        self._alike: dict[str, tuple[float, int]] = {}
        self._over = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._beat()
        threading.Thread(target=self._watch, name="semel watchdog", daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        if self._timer is not None:
            self._timer.cancel()

    def awake(self, held_s: float) -> bool:
        """Asked on the loop's thread: whether code held the loop that long, or the whole process stood still meanwhile."""
        computed_s = time.thread_time() - self._cpu_s
        return max(self._seen_s, computed_s) >= held_s / 2

    # -- on the loop

    def _beat(self) -> None:
        assert self._loop is not None
        self._beaten = time.monotonic()
        self._cpu_s = time.thread_time()
        self._seen_s = self._said_at_s = 0.0
        self._timer = self._loop.call_later(LOOK_S, self._beat)

    # -- in the thread

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                self._look()
            except Exception:
                log.debug("the loop could not be looked at", exc_info=True)

    def _look(self) -> None:
        now = time.monotonic()
        self._alive(now)
        if now - self._beaten < 2 * LOOK_S:
            return
        self._seen_s += LOOK_S
        seen = self._seen_s
        if seen >= SAY_S and (not self._said_at_s or seen - self._said_at_s >= AGAIN_S):
            self._said_at_s = seen
            self._say(seen, now)

    def _say(self, seen_s: float, now: float) -> None:
        frame = _frames().get(self._loop_thread)
        if frame is None:
            return
        place, stack = _stack(frame)
        said_at, more = self._alike.get(place, (0.0, 0))
        if said_at and now - said_at < AGAIN_S:
            self._alike[place] = said_at, more + 1
            return
        self._alike[place] = now, 0
        past = f" A thread sends heartbeats for up to {self._kept_s:.0f} s (max_block_ms)." if self._kept_s else ""
        if seen_s > self._kept_s + self._session_s:
            longer = f"max_block_ms ({self._kept_s:.1f} s) and " if self._kept_s else ""
            past = (
                f" It is longer than {longer}the session timeout ({self._session_s:.1f} s): the group has given its partitions "
                "away, and this counts as a failed attempt of the event."
            )
        log.warning(
            "%s has been holding the event loop for %.1f s, at %s%s. Meanwhile nothing is committed and no page "
            "answered.%s Await what takes long, or run it in a thread: Pipeline(threads=) for a plain function, else "
            "`await asyncio.to_thread(...)`. It stands at:\n%s",
            self._who(), seen_s, place, f" ({more} more like it since it was last said)" if more else "", past, stack,
        )  # fmt: skip

    def _who(self) -> str:
        """The agent and the record, where an agent runs."""
        running = asyncio.current_task(self._loop)
        name = running.get_name() if running is not None else "a callback"
        holding = [runner for runner in self._runners if runner.context.holding]
        mine = [runner for runner in holding if name == f"agent {runner.plan.name}" and not runner.awaits]
        at = [f"agent {runner.plan.name} at {runner.where}" for runner in mine or holding]
        if mine or not holding:
            return at[0] if at else name if name.startswith("agent ") else f"task {name!r}"
        return f"task {name!r} (in hand: {', '.join(at)})"


def _stack(frame: FrameType) -> tuple[str, str]:
    """The innermost place of the user's own code, and the stack from where that begins."""
    frames = traceback.extract_stack(frame)
    begins = next((n for n, f in enumerate(frames) if f.filename.startswith(_BODY)), len(frames))
    own = [f for f in frames[begins:] if not f.filename.startswith((_SEMEL, _ASYNCIO))] or list(frames)
    ours = [f for f in own if not f.filename.startswith(_LIBRARY) and "site-packages" not in f.filename]
    at = (ours or own)[-1]
    shown = own[:1] + own[1 - FRAMES :] if len(own) > FRAMES else own
    return f"{at.filename}:{at.lineno} ({at.name})", "".join(traceback.format_list(shown)).rstrip()
