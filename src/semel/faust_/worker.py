"""A `semel.App` as `semel worker` runs it: with Faust's services around the engine."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semel.faust_.app import App


class AppWorker:
    """A `runtime.supervised.Supervised`. What its services, tasks and timers raise is a failure, as the engine's own is."""

    def __init__(self, app: App, *, instance: str | None, adopt: bool) -> None:
        self._app = app
        app.instance = instance or app.instance
        app.adopt = adopt
        app.supervised = True
        self._starting: asyncio.Task[Any] | None = None
        # Faust tells of every service that starts and stops; what matters here is said by semel.
        for noisy in ("faust", "mode", "semel.faust_"):
            logging.getLogger(noisy).setLevel(logging.WARNING)

    def start(self) -> None:
        self._starting = asyncio.create_task(self._app.start(), name="app")

    async def wait_failed(self) -> BaseException:
        app, starting = self._app, self._starting
        assert starting is not None, "not started"
        ends = [asyncio.create_task(event.wait()) for event in (app.engine_failed, app._crashed)]
        waits_for: set[asyncio.Task[Any]] = {starting, *ends}
        try:
            while True:
                await asyncio.wait(waits_for, return_when=asyncio.FIRST_COMPLETED)
                failure = app.engine_failure or app.crash_reason or _failure_of(starting)
                if failure is not None:
                    return failure
                waits_for.discard(starting)
        finally:
            for end in ends:
                end.cancel()

    def told(self) -> None:
        if self._app.host is not None:
            self._app.host.told()

    def died(self) -> None:
        if self._app.host is not None:
            self._app.host.died()

    def in_hand(self) -> list[str]:
        return [] if self._app.host is None else self._app.host.in_hand()

    async def stop(self) -> None:
        await self._app.stop_engine()

    async def close(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        await self._app.stop()


def _failure_of(starting: asyncio.Task[Any]) -> BaseException | None:
    if not starting.done():
        return None
    try:
        starting.result()
    except BaseException as exc:
        return exc
    return None
