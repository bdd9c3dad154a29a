"""What a run asks of its brokers, which come and go meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from semel.errors import SemelError
from semel.port import RpcError, RpcLost

ASKED_S = 60.0
AGAIN_S = 0.2


async def until_done(what: str, ask: Callable[[], Awaitable[object]]) -> None:
    """Ask until it is done; `ask` may be carried out more than once. SemelError after a minute of that."""
    deadline = time.monotonic() + ASKED_S
    while True:
        try:
            await ask()
        except (RpcError, RpcLost) as error:
            if time.monotonic() > deadline:
                raise SemelError(
                    f"{what} could not be set for {ASKED_S:g} s ({error}); its brokers' logs lie beside this run's"
                ) from error
            await asyncio.sleep(AGAIN_S)
        else:
            return
