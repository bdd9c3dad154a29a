"""Deadline: a process that was told to end ends, whatever the code it runs does about that."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from typing import Any, NoReturn, cast

log = logging.getLogger("semel.worker")

STACK_LINES = 12


class Deadline:
    """Ends the process `within_s` after `start`, unless `stop` came first; the log says where its main thread stands.

    `code`: what the process ends with then. A thread of its own watches it: the loop may be the one that stands still.
    """

    def __init__(self, within_s: float, *, code: int) -> None:
        self._within_s = within_s
        self._code = code
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="deadline", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        if self._over.wait(self._within_s):
            return
        log.error("the worker has not ended within %.0f s of being told to, and ends now; what is not committed is handled "
                  "again. It stands here:\n%s", self._within_s, _stack_of_main_thread())  # fmt: skip
        leave(self._code)


class Threads(ThreadPoolExecutor):
    """The threads of `asyncio.to_thread` and of `run_in_executor(None, ...)`, where code belongs to the event that it was
    started in. One that is busy keeps Python from ending; `busy` says what it runs."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="to_thread")
        self._running: dict[Future[Any], Any] = {}

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(copy_context().run, fn, *args, **kwargs)
        self._running[future] = fn
        future.add_done_callback(lambda done: self._running.pop(done, None))
        return future

    def busy(self, wait_s: float) -> list[str]:
        """Nothing more is begun; the functions that still run after this time."""
        self.shutdown(wait=False, cancel_futures=True)
        running = dict(self._running)
        return [_function(running[left]) for left in wait(running, wait_s).not_done]


def _function(fn: Any) -> str:
    """`asyncio.to_thread` wraps what it is given into a call of the context's `run`."""
    if isinstance(fn, partial):
        wrapped = cast("partial[Any]", fn)
        fn = wrapped.args[0] if wrapped.args else wrapped.func
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', repr(fn))}"


_exit = os._exit


def leave(code: int) -> None:
    """End the process without waiting for anything: neither for threads nor for what else runs at an exit."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    _exit(code)


@contextlib.contextmanager
def exits_said() -> Generator[None]:
    """Within, an `os._exit` of the program's own is said on the log, and is no end in order: its 0 becomes 1.

    A supervisor would take 0 for a worker that was told to end, and not start it again. What the program forks exits as it says.
    """
    pid = os.getpid()

    def exit_and_say(status: int) -> NoReturn:
        if os.getpid() == pid:
            at = traceback.extract_stack(limit=2)[0]
            log.error(
                "the program's code ends the process by os._exit(%r), at %s:%s (%s)",
                *(status, at.filename, at.lineno, at.name),
            )
            leave(status or 1)
        _exit(status)

    os._exit = exit_and_say
    try:
        yield
    finally:
        os._exit = _exit


def _stack_of_main_thread() -> str:
    ident = threading.main_thread().ident
    frame = sys._current_frames().get(ident or 0)  # pyright: ignore[reportPrivateUsage]
    return "".join(traceback.format_stack(frame)[-STACK_LINES:]) if frame is not None else "(nowhere)"
