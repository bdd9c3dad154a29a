"""Worker: one process that runs one app until it is told to end. What `semel worker` does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from typing import Any

from semel import project
from semel.config import Settings
from semel.errors import SemelError
from semel.pipeline import Pipeline
from semel.port import RpcLost

log = logging.getLogger("semel.worker")


def run(target: Any, settings: Settings, *, instance: str | None = None, adopt: bool = False) -> BaseException | None:
    """Run a `Pipeline` or a `semel.App` until it is told to end. Returns what else ended it, said on the log."""
    from semel.faust_.app import app_of

    settings = project.settings_of(target, settings)
    app = app_of(target, settings) if isinstance(target, Pipeline) else target
    app.instance = instance or app.instance
    app.adopt = adopt
    app.supervised = True
    # Faust tells of every service that starts and stops; what matters here is said by semel.
    for noisy in ("faust", "mode", "semel.faust_"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Batches allocate many objects that live for an epoch; the default collects every 700 of them.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        return asyncio.run(_serve(app))
    except KeyboardInterrupt as interrupted:
        return interrupted


async def _serve(app: Any) -> BaseException | None:
    stop = asyncio.Event()
    failure: BaseException | None = None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    starting = asyncio.create_task(app.start(), name="app")
    told = asyncio.create_task(stop.wait(), name="stop")
    try:
        while not stop.is_set():
            await asyncio.wait({told, *({starting} if not starting.done() else ())}, timeout=0.2,
                               return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            failure = app.engine_failure or app.crash_reason or (starting.exception() if starting.done() else None)
            if failure is not None:
                _say(failure)
                break
        if stop.is_set():
            log.info("stopping: finishing what is in hand")
    finally:
        told.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(app.semel_settings.drain_timeout_ms / 1000 + 5):
                await app.stop_engine()
        starting.cancel()
        with contextlib.suppress(BaseException):
            async with asyncio.timeout(5):
                await app.stop()
    return failure


def _say(failure: BaseException) -> None:
    """What happened, in one line where it is one of ours."""
    if isinstance(failure, (SemelError, RpcLost)):
        log.error("%s", failure)
    else:
        log.error("the worker stops on an unexpected error: %s", failure, exc_info=failure)
